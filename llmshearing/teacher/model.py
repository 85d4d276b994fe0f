"""The teacher, opened: its weights checked and hashed, and its tokens brought to those of the data.

Where the data are made of the tokens that ``trim-vocab`` kept for the student, a teacher with all tokens is asked in
its own ids, and its distribution is restricted to the kept ones and renormalised. The text is then cut into kept
tokens, where the teacher's own tokenizer might have taken a longer one: it reads both.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmshearing.checkpoints.source import load_source
from llmshearing.checkpoints.weight_files import check_has_config, weight_files, weights_folder
from llmshearing.compat.transformers import attention_implementation, dtype_argument, read_tokenizer
from llmshearing.data.fingerprint import describe_tokenizer
from llmshearing.models.source_config import read_config
from llmshearing.teacher.settings import TeachSettings
from llmshearing.utils.checks import check_integer
from llmshearing.vocabulary.settings import read_kept

__all__ = ['Teacher', 'hash_of_model', 'open_teacher']


@dataclass(frozen=True)
class Teacher:
    """A teacher before its weights are read.

    Attributes:
        folder (Path): Of the model.
        name (str): For manifests and messages.
        config (Any): Its config.
        tokenizer (Any): Of the data: its own, or the student's trimmed one.
        vocab_size (int): Tokens that the kept distribution is over.
        kept (tuple[int, ...] | None): Its id of each token of the data; None where they are the same.
        dtype (str): In which it computes.
        device (str): Where.
    """

    folder: Path
    name: str
    config: Any
    tokenizer: Any
    vocab_size: int
    kept: tuple[int, ...] | None
    dtype: str
    device: str

    def load(self) -> LoadedTeacher:
        """Reads the weights.

        Raises:
            ValueError: If they are not those of the config.
        """
        model = load_source(
            f'--teacher {self.folder}',
            str(self.folder),
            self.config,
            attn_implementation=attention_implementation(self.config),
            **dtype_argument(getattr(torch, self.dtype)),
        )
        kept = None if self.kept is None else torch.tensor(self.kept, device=self.device)
        model.config.use_cache = False
        return LoadedTeacher(model.to(self.device).requires_grad_(False).eval(), self.vocab_size, kept)


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher that answers.

    Attributes:
        model (Any): On its device, in evaluation mode.
        vocab_size (int): As of :class:`Teacher`.
        kept (Tensor | None): int64 [vocab_size], as of :class:`Teacher`.
    """

    model: Any
    vocab_size: int
    kept: Tensor | None

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Of the token after each, over the data's tokens.

        Args:
            tokens (Tensor): int64 [batch, length], ids of the data.

        Returns:
            Tensor: [batch, length, vocab_size].
        """
        tokens = tokens.to(self.model.device)
        tokens = tokens if self.kept is None else self.kept[tokens]
        found = self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
        return found[..., : self.vocab_size] if self.kept is None else found[..., self.kept]


def open_teacher(name: str, settings: TeachSettings, device: str) -> Teacher:
    """Finds the teacher, a folder or a model in the hub's cache, and checks what can be checked without its weights.

    Raises:
        ValueError: If there is no such model or tokenizer here, or the tokens cannot be brought together.
    """
    folder = weights_folder(name) or Path(name)
    check_has_config(f'--teacher {name}', folder)
    config: Any = read_config(str(folder))
    try:
        tokenizer = read_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f'--teacher {name} has no tokenizer that opens, so whether its token ids mean those of the data cannot be '
            'checked; save its tokenizer there.'
        ) from error
    vocab_size, kept = config.vocab_size, None
    if settings.shared_vocab_size is not None:
        check_integer('--shared-vocab-size', settings.shared_vocab_size, 2, vocab_size)
        vocab_size = settings.shared_vocab_size
    if settings.like is not None:
        kept = tuple(read_kept(settings.like, describe_tokenizer(tokenizer)['vocabulary']))
        if max(kept) >= vocab_size:
            raise ValueError(f'--like {settings.like}: it has the id {max(kept)}, the teacher {vocab_size} rows.')
        tokenizer, vocab_size = read_tokenizer(settings.like), len(kept)
    dtype = settings.dtype or ('float32' if device == 'cpu' else 'bfloat16')
    known_as = folder.resolve().name if Path(name).is_dir() else name
    return Teacher(folder, known_as, config, tokenizer, vocab_size, kept, dtype, device)


def hash_of_model(folder: Path) -> str:
    """SHA-256 of a model's config and weights, by the content of their files."""
    told = hashlib.sha256()
    for path in [folder / 'config.json', *weight_files(folder)]:
        with open(path, 'rb') as file:
            told.update(f'{path.name} {hashlib.file_digest(file, "sha256").hexdigest()}\n'.encode())
    return told.hexdigest()
