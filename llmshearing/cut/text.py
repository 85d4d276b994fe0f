"""Text for a cut: a few token sequences of every file to choose units by, and others, held out, to measure losses on.

A file of any size is read as far as :data:`READ_BYTES` of text and taken apart into passages. Their order is that of a
hash of seed and passage, so it depends neither on how a file is sorted nor on its format; every fourth passage is held
out. No passage is on both sides: one that occurs twice, in two files even, counts once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmshearing.data.packing import RowPacker
from llmshearing.prepare.beginning import open_encoder, read_passages
from llmshearing.prepare.tokenizer import Encoder, TokenizerPlan, plan_tokenizer
from llmshearing.scaling.loss import batches
from llmshearing.utils.interleave import interleave

__all__ = ['READ_BYTES', 'Text', 'token_batches', 'read_texts']

READ_BYTES = 32 * 2**20
EVERY = 4  # one passage of so many is held out
TOKENIZED_AT_ONCE = 8  # passages


@dataclasses.dataclass(frozen=True)
class Text:
    """Token sequences of one text, all of one length.

    Attributes:
        name (str): The file's, without folder and ending.
        seen (list[np.ndarray]): To choose units by, int64 [tokens] each.
        held_out (list[np.ndarray]): To measure losses on.
        bytes_per_token (float): UTF-8 bytes that a token of the held-out passages stands for.
    """

    name: str
    seen: list[np.ndarray]
    held_out: list[np.ndarray]
    bytes_per_token: float


def read_texts(
    paths: Sequence[str | Path],
    tokenizer_folder: Path,
    vocabulary: int,
    length: int,
    seen: int,
    held_out: int,
    seed: int,
    text_key: str = 'text',
) -> list[Text]:
    """Reads and tokenizes what is needed of each text and no more.

    Args:
        paths (Sequence[str | Path]): JSON lines, Parquet or plain text, by content; or folders of them.
        tokenizer_folder (Path): The source's folder.
        vocabulary (int): Rows of the source's embedding.
        length (int): Tokens per sequence.
        seen (int): Tokens to choose units by, in all; every text gives the same share.
        held_out (int): Tokens to measure losses on, in all.
        seed (int): Which passages are taken.
        text_key (str): Field or column that holds the text. Default: ``'text'``.

    Raises:
        ValueError: For a file that is not there, is no text in UTF-8 or UTF-16, or holds too little.
    """
    plan = plan_tokenizer(str(tokenizer_folder), None, None)
    encoder = open_encoder(plan)
    shares = [-(-tokens // len(paths) // length) for tokens in (seen, held_out)]
    texts: list[Text] = []
    taken: set[bytes] = set()
    for name, path in zip(_names(paths), paths):
        passages, repeated = _passages(str(path), text_key, seed, taken)
        rows, size, tokens = _sequences(passages, encoder, plan, length, shares)
        if texts and not any(rows):
            raise ValueError(
                f'--text {path}: every passage of its beginning is in another --text, too, or there is none; give '
                'each text once.'
            )
        if not all(rows):
            advice = 'Give more text.'
            if repeated:
                among = f'{repeated} of its {repeated + len(passages)} passages'
                advice = f'{among} repeat others, and what repeats counts once: give more text that differs.'
            raise ValueError(
                f'--text {path} holds too little: after setting one of {EVERY} passages aside there are '
                f'{[len(kind) for kind in rows]} sequences of {length} tokens to choose units by and to measure '
                f'losses on; expected up to {shares} and at least one of each. {advice}'
            )
        largest = max(int(row.max()) for row in (*rows[0], *rows[1]))
        if largest >= vocabulary:
            raise ValueError(
                f"--text {path}: the source's tokenizer made the token {largest}, but its embedding has {vocabulary} "
                'rows; put the tokenizer that belongs to the model into its folder.'
            )
        texts.append(Text(name, rows[0], rows[1], size / tokens))
    return texts


def token_batches(texts: Sequence[Text], sequences: int, device: str = 'cpu') -> list[dict[str, Tensor]]:
    """The sequences that units are chosen by, one of each text in turn, as batches with ``input_ids`` and ``labels``.

    Args:
        texts (Sequence[Text]): Of one length.
        sequences (int): In a batch; the last one may have fewer.
        device (str): Where they are to be. Default: the CPU.
    """
    rows = interleave(text.seen for text in texts)
    stacked = [torch.from_numpy(batch).to(device) for batch in batches(rows, sequences)]
    return [{'input_ids': ids, 'labels': ids} for ids in stacked]


def _names(paths: Sequence[str | Path]) -> list[str]:
    """File names up to their first dot; whole paths where two are the same."""
    names = [Path(path).name.partition('.')[0] or str(path) for path in paths]
    counts = Counter(names)
    return [str(path) if counts[name] > 1 else name for name, path in zip(names, paths)]


def _passages(path: str, text_key: str, seed: int, taken: set[bytes]) -> tuple[list[str], int]:
    """Passages of the beginning of a text that are not ``taken``, which they then are; in an order by the seed.

    The second is how many were.
    """
    repeated = 0
    found: dict[bytes, str] = {}
    for passage in read_passages('--text', path, text_key, READ_BYTES):
        digest = hashlib.blake2b(f'{seed}:{passage}'.encode()).digest()
        if digest in taken:
            repeated += 1
        else:
            taken.add(digest)
            found[digest] = passage
    return [found[digest] for digest in sorted(found)], repeated


def _sequences(
    passages: Sequence[str], encoder: Encoder, plan: TokenizerPlan, length: int, shares: Sequence[int]
) -> tuple[list[list[np.ndarray]], int, int]:
    """Sequences to see and held-out ones, at most ``shares`` of them; bytes and tokens of the held-out passages."""
    before, after = plan.around
    rows: list[list[np.ndarray]] = [[], []]
    packers = [RowPacker(length), RowPacker(length)]
    size = tokens = 0
    for start in range(0, len(passages), TOKENIZED_AT_ONCE):
        some = passages[start : start + TOKENIZED_AT_ONCE]
        for number, (passage, ids) in enumerate(zip(some, encoder.encode(some)), start):
            kind = int(number % EVERY == 0)
            if kind:
                size, tokens = size + len(passage.encode()), tokens + len(ids)
            rows[kind].extend(packers[kind].add([*before, *ids.tolist(), *after]))
        if all(len(kind) >= share for kind, share in zip(rows, shares)):
            break
    return [kind[:share] for kind, share in zip(rows, shares)], size, tokens
