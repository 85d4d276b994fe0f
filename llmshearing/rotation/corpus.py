"""Text for the rotation: a few token sequences to look at, and others, held out, to measure losses on.

``--data`` is what is at hand: a folder that ``llmshearing prepare`` wrote (its largest split is looked at, ``eval`` is
held out), any folder with MDS domains, or text (JSON lines, Parquet, plain text, told by their content). Domains and
files take turns, so that all of them count; without a split of its own every tenth sequence is held out, of fewer than
ten the last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmshearing.data.fingerprint import check_model_tokenizer
from llmshearing.data.mds import check_ids, read_tokens
from llmshearing.data.packing import RowPacker
from llmshearing.prepare.beginning import mds_or_text, open_encoder, read_beginning
from llmshearing.prepare.tokenizer import Encoder, TokenizerPlan, plan_tokenizer
from llmshearing.scaling.loss import batches
from llmshearing.utils.interleave import interleave

__all__ = ['Corpus', 'read_corpus']

READ_BYTES = 32  # of a file of text, for each token that is wanted
EVERY = 10  # one of so many sequences is held out
HELD_OUT_SPLIT = 'eval'


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Token sequences of one length each.

    Attributes:
        seen (list[np.ndarray]): To look at, int64 [tokens] each.
        held_out (list[np.ndarray]): To measure losses on.
        where (str): What they were read from.
    """

    seen: list[np.ndarray]
    held_out: list[np.ndarray]
    where: str

    def fingerprint(self) -> str:
        """Changes with any token."""
        digest = hashlib.sha256()
        for row in itertools.chain(self.seen, [np.empty(0)], self.held_out):
            digest.update(row.tobytes() + b'|')
        return digest.hexdigest()

    def batches(self, sequences: int, held_out: bool = False) -> list[Tensor]:
        """Batches [at most ``sequences``, tokens] in order; a change of length begins a new one."""
        return [torch.from_numpy(batch) for batch in batches(self.held_out if held_out else self.seen, sequences)]


def read_corpus(
    data: Path, tokenizer_folder: Path, vocabulary: int, length: int, tokens: int, held_out: int, text_key: str = 'text'
) -> Corpus:
    """Reads what is needed of ``data`` and no more.

    Args:
        data (Path): Folder of MDS splits or domains, or a text file, or a folder of text files.
        tokenizer_folder (Path): The source's folder, whose tokenizer the data must be of.
        vocabulary (int): Rows of the source's embedding.
        length (int): Tokens per sequence of plain text.
        tokens (int): To look at.
        held_out (int): Tokens to measure losses on.
        text_key (str): Field or column that holds the text. Default: ``'text'``.

    Raises:
        ValueError: If there is no text, a file cannot be read as such, or the data are of another tokenizer.
    """
    data = Path(data)
    folders, files = mds_or_text(data)
    if folders:
        check_model_tokenizer(tokenizer_folder, folders)
        seen_streams, held_streams = _mds_streams(data, folders)
    else:
        plan = plan_tokenizer(str(tokenizer_folder), None, None)
        encoder, limit = open_encoder(plan), READ_BYTES * (tokens + held_out)
        texts = (read_beginning('--data', str(path), text_key, limit) for path in files)
        seen_streams, held_streams = [_packed(documents, encoder, plan, length) for documents in texts], []
    if held_streams:
        seen = _taken(interleave(seen_streams), tokens)
        held = _taken(interleave(held_streams), held_out)
    else:
        both = _taken(interleave(seen_streams), tokens + held_out, least=EVERY)
        every = min(EVERY, len(both)) or 1
        held = both[every - 1 :: every]
        seen = [row for number, row in enumerate(both) if number % every != every - 1]
    if not seen or not held:
        raise ValueError(
            f'--data {data} holds {len(seen)} sequences to look at and {len(held)} to measure losses on; '
            f'give more text (a sequence has {length} tokens), or a smaller --seq-len.'
        )
    for row in itertools.chain(seen, held):
        check_ids(f'--data {data}', row, vocabulary)
    return Corpus(seen, held, str(data))


def _mds_streams(data: Path, folders: list[Path]) -> tuple[list[Iterator[np.ndarray]], list[Iterator[np.ndarray]]]:
    """Sequences to look at and to hold out, one stream per domain."""
    by_split: dict[str, list[Path]] = {}
    for folder in folders:
        parents = folder.relative_to(data).parts
        by_split.setdefault(parents[0] if len(parents) > 1 else '', []).append(folder)
    held = by_split.pop(HELD_OUT_SPLIT, []) if len(by_split) > 1 else []
    seen = max(by_split.values(), key=_bytes)
    return [read_tokens(folder) for folder in seen], [read_tokens(folder) for folder in held]


def _bytes(folders: list[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir())


def _packed(documents: Iterable[str], encoder: Encoder, plan: TokenizerPlan, length: int) -> Iterator[np.ndarray]:
    """Documents one after the other with what `prepare` puts between them, cut into sequences."""
    (before, after), packer = plan.around, RowPacker(length)
    for text in documents:
        if text:
            yield from packer.add([*before, *encoder.encode([text])[0].tolist(), *after])


def _taken(rows: Iterator[np.ndarray], tokens: int, least: int = 1) -> list[np.ndarray]:
    taken, count = [], 0
    for row in rows:
        if len(row) < 2:
            continue
        taken.append(row)
        count += len(row)
        if count >= tokens and len(taken) >= least:
            break
    return taken
