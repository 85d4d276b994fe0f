"""What must hold before a trimmed folder gets its name: the same tokens, the same tensors, the same logits.

*Tokens*: on held-out text, line by line and word by word, every word whose old tokens all stay has the same tokens,
and the written tokenizer opens with transformers and gives each kept token its place. *Tensors*: what stands in the
files is the source's, to the last bit, with the kept rows alone. *Logits*: both models run on the same kept tokens;
what enters the LM head must be equal to the last bit. The logits of the kept tokens are then products of equal
numbers. A matrix product may add in another order when it has fewer rows, so of the logits the largest difference is
measured, and told; it is refused beyond the rounding of the type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor
from llmshearing.checkpoints.source import read_weights
from llmshearing.checkpoints.stored_model import StoredModel
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.data.fingerprint import SAMPLE, fast_backend
from llmshearing.export.model_folder import open_strictly
from llmshearing.export.probe import probe_input
from llmshearing.models.families import find_table
from llmshearing.models.source_config import read_config
from llmshearing.rotation.paging import paged_model
from llmshearing.vocabulary.embeddings import trimmed_tensors
from llmshearing.vocabulary.rewriting import new_numbers

__all__ = ['Agreement', 'check_logits', 'check_tensors_equal', 'check_tokenizer_folder', 'check_words']

# Largest difference of a logit, of the largest logit: sums of equal products in another order.
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclasses.dataclass
class Agreement:
    """How much of a text was compared.

    Attributes:
        words (int): Words of the text, as the tokenizer takes it apart before it looks for tokens.
        kept (int): Of them, those whose tokens all stay: they have the same tokens.
    """

    words: int = 0
    kept: int = 0


def check_words(before: Tokenizer, after: Tokenizer, kept: Sequence[int], texts: Iterable[str]) -> Agreement:
    """Compares the tokens of every word.

    Args:
        before (Tokenizer): The source's.
        after (Tokenizer): The trimmed one.
        kept (Sequence[int]): Old ids in the order of the new ones.
        texts (Iterable[str]): Passages, which are compared line by line. To some tokenizers (Llama 2's) a line is one
            word, of which some token is nearly always gone; what stands between its blanks is compared then, too.

    Raises:
        ValueError: Naming a line, if a word whose tokens all stay has other tokens.
    """
    new = np.full(max(max(kept), *before.get_vocab().values()) + 1, -1, np.int64)
    new[list(kept)] = np.arange(len(kept))
    result = Agreement()
    for text in texts:
        undivided = _compare(before, after, new, text.splitlines(keepends=True), result)
        _compare(before, after, new, [part for line in undivided for part in line.split()], result)
    return result


def _compare(before: Tokenizer, after: Tokenizer, new: np.ndarray, lines: list[str], result: Agreement) -> list[str]:
    """Compares some lines, adds to the result, and returns those that are one word with blanks in it."""
    undivided = []
    encoded = (tokenizer.encode_batch(lines, add_special_tokens=False) for tokenizer in (before, after))
    for line, one, other in zip(lines, *encoded):
        if not one.ids:
            continue
        words, expected = _words(one), new[np.array(one.ids)]
        starts = np.flatnonzero(np.diff(words, prepend=words[0] - 1))
        stays = np.minimum.reduceat(expected, starts) >= 0
        if len(starts) == 1 and ' ' in line.strip():
            undivided.append(line)
        result.words += len(starts)
        result.kept += int(stays.sum())
        chosen = words[starts][stays & (words[starts] >= 0)]
        got = np.array(other.ids)[np.isin(_words(other), chosen)]
        if not np.array_equal(got, expected[np.isin(words, chosen)]):
            raise ValueError(
                f'the trimmed tokenizer makes other tokens of words in {line[:80]!r} whose tokens all stay; nothing '
                'was written. Please report this tokenizer.'
            )
    return undivided


def check_tokenizer_folder(source: Path, folder: Path, kept: Sequence[int], texts: Iterable[str]) -> Agreement:
    """Opens the written tokenizer as anyone does and compares it with the source's.

    Args:
        source (Path): The source's folder.
        folder (Path): The written one.
        kept (Sequence[int]): Old ids in the order of the new ones.
        texts (Iterable[str]): Passages to compare on, beside a sample that is always the same.

    Raises:
        ValueError: If it does not open, a token has another number than it should, or words have other tokens.
    """
    before, after = read_tokenizer(source), read_tokenizer(folder)
    new = new_numbers(kept)
    expected = {token: new[number] for token, number in before.get_vocab().items() if number in new}
    got = after.get_vocab()
    if got != expected:
        odd = sorted(token for token in got.keys() | expected.keys() if got.get(token) != expected.get(token))
        raise ValueError(
            f'{folder}: the written tokenizer gives {odd[0]!r} the number {got.get(odd[0])}, expected '
            f'{expected.get(odd[0])}, and differs in {len(odd)} tokens; nothing was written. Please report '
            'this tokenizer.'
        )
    for name in ('bos_token_id', 'eos_token_id', 'pad_token_id', 'unk_token_id'):
        old = getattr(before, name)
        if getattr(after, name) != (None if old is None else new.get(old)):
            raise ValueError(f'{folder}: {name} is {getattr(after, name)}, not that of {old}; nothing was written.')
    backends = [fast_backend(tokenizer) for tokenizer in (before, after)]
    if None in backends:
        raise ValueError(f'{folder}: the tokenizer does not do what its tokenizer.json says; it cannot be trimmed.')
    one, other = (Tokenizer.from_str(str(backend)) for backend in backends)
    return check_words(one, other, kept, [SAMPLE, *texts])


def check_tensors_equal(
    stored: Mapping[str, StoredTensor],
    by_token: Mapping[str, int],
    kept: Sequence[int],
    folder: Path,
    config: PretrainedConfig,
) -> None:
    """Compares the written tensors with the source's, one after the other.

    Args:
        stored (Mapping[str, StoredTensor]): The source's.
        by_token (Mapping[str, int]): :func:`~llmshearing.vocabulary.embeddings.rows_by_token` of the source.
        kept (Sequence[int]): Old ids in the order of the new ones.
        folder (Path): The written folder.
        config (PretrainedConfig): Of the written model.

    Raises:
        ValueError: Naming a tensor that is not there or differs in a bit.
    """
    written = read_weights(folder, config)
    for name, tensor in trimmed_tensors(stored, by_token, kept):
        got = written[name].read() if name in written else None
        if got is None or got.dtype != tensor.dtype or not torch.equal(got, tensor):
            raise ValueError(f'{folder}: {name} is not what the source has; nothing was written. Please report this.')


def check_logits(source: Path, folder: Path, kept: Sequence[int], dtype: torch.dtype, whole: bool) -> dict[str, Any]:
    """Runs both models, one after the other, on the same kept tokens.

    Args:
        source (Path): The source's folder.
        folder (Path): The written one.
        kept (Sequence[int]): Old ids in the order of the new ones.
        dtype (torch.dtype): To compute in.
        whole (bool): Hold a model in memory as a whole; otherwise one tensor, where its family has a table.

    Returns:
        dict[str, Any]: ``computed_in``, ``largest_logit_difference`` and ``equal``, whether that is nought.

    Raises:
        ValueError: If what enters the LM head differs in a bit, or logits by more than rounding explains.
    """
    ids = probe_input(len(kept))
    hidden, logits = _run(folder, ids, dtype, whole)
    expected_hidden, expected = _run(source, torch.tensor(list(kept))[ids], dtype, whole)
    expected = expected[..., list(kept)]
    difference = (logits.double() - expected.double()).abs().max().item()
    allowed = ROUNDING[dtype] * max(1.0, expected.abs().max().item())
    if not torch.equal(hidden, expected_hidden) or not difference <= allowed:
        raise ValueError(
            f'{folder}: logits differ by {difference:.3g} from those of the source, and what enters the LM head by '
            f'{(hidden.double() - expected_hidden.double()).abs().max().item():.3g}; nothing was written. Please '
            'report this source.'
        )
    return {
        'computed_in': str(dtype).removeprefix('torch.'),
        'largest_logit_difference': difference,
        'equal': difference == 0,
    }


@torch.no_grad()
def _run(folder: Path, ids: Tensor, dtype: torch.dtype, whole: bool) -> tuple[Tensor, Tensor]:
    """What enters the LM head, [1, tokens, hidden], and the logits, [1, tokens, vocabulary]."""
    config = read_config(folder)
    if whole or find_table(config) is None:
        model = open_strictly(folder, dtype, config)
    else:
        model = paged_model(StoredModel(folder, config), dtype)
    entered: list[Tensor] = []
    head: Any = model.get_output_embeddings()
    with head.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0])):
        logits = model(input_ids=ids, use_cache=False).logits
    return entered[0], logits


def _words(encoding: Any) -> np.ndarray:
    """Number of the word that each token belongs to, [tokens]; a token that belongs to none is one by itself."""
    return np.array([-2 - at if word is None else word for at, word in enumerate(encoding.word_ids)], np.int64)
