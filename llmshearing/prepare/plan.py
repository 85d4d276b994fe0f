"""Which document goes where: duplicates and splits, decided from hashes before anything is tokenized.

A document's place is a function of its text. With u in [0, 1) from the hash of the text and the seed, each split owns
an interval of [0, 1): a document is in the split whose interval holds its u, in whatever file it stands. A split given
by a token budget gets an interval that holds the budget with near certainty, from the exact bytes below each possible
end and the tokens per byte measured on a sample; its documents are a random sample of the domain, not its beginning.

Equal texts are dropped but the first (domains in the spec's order, documents in reading order). Equal texts of two
domains could otherwise fall into two splits, as each domain has intervals of its own.

Memory does not grow with the input: hashes are on disk, duplicates are found bucket by bucket, and the intervals come
from a histogram over u.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmshearing.data.mixture import GOLDEN, finalize64
from llmshearing.prepare.worker import DOCUMENT

__all__ = ['BINS', 'Demand', 'TokenRate', 'choose', 'intervals', 'mark_duplicates', 'place', 'read_blocks']

BINS = 1 << 18  # intervals end at multiples of 2**-18
DEVIATIONS = 3  # by how many standard deviations the expected tokens exceed a budget
MARGIN = 1.02  # and at least by this, as the deviation is measured too
BLOCK = 1 << 18  # documents in memory at once
BUCKET = 1 << 20  # documents compared at once, about
_INDEXED = np.dtype([('high', '<u8'), ('low', '<u8'), ('index', '<u8')])


@dataclass(frozen=True)
class Demand:
    """What a split wants of a domain: a share of its documents, or a number of tokens, or (neither) all the rest."""

    fraction: float | None
    tokens: int | None


@dataclass(frozen=True)
class TokenRate:
    """Tokens per byte of a domain, as measured on a sample.

    Attributes:
        mean (float): Tokens of the sample by its bytes.
        deviation (float): How far one document's own rate is from it.
        error (float): How far the mean may be from the domain's.
    """

    mean: float
    deviation: float = 0.0
    error: float = 0.0

    @classmethod
    def measured(cls, tokens: int, size: int, tokens_squared: int, product: int, size_squared: int) -> TokenRate:
        """From sums over a sample: tokens, bytes, and their squares and product (ratio estimator)."""
        mean = tokens / size
        residual = max(0.0, tokens_squared - 2 * mean * product + mean**2 * size_squared)
        return cls(mean, math.sqrt(residual / size_squared), math.sqrt(residual) / size)


def place(low: np.ndarray, seed: int) -> np.ndarray:
    """Maps hashes to bins of [0, 1) that look random and depend on the seed.

    Args:
        low (np.ndarray): Second word of the documents' hashes, uint64.
        seed (int): Of the splits.

    Returns:
        np.ndarray: Bin numbers in [0, ``BINS``), int64 (the finalizer of SplitMix64 over hash and seed).
    """
    seeded = low + np.uint64((seed + 1) * GOLDEN % (1 << 64))
    return (finalize64(seeded) >> np.uint64(46)).astype(np.int64)  # the upper 18 bits


def intervals(
    demands: Sequence[Demand], size: np.ndarray, size_squared: np.ndarray, rate: TokenRate, max_seq_len: int
) -> np.ndarray:
    """Ends of the splits' intervals, in bins: split i owns the bins from ``ends[i - 1]`` (or 0) to ``ends[i]``.

    A budget without a fraction takes what surely holds it, but a split that is not the last takes at most half of what
    is left, so that a domain that is too small does not go to evaluation whole.

    Args:
        demands (Sequence[Demand]): In order of priority.
        size (np.ndarray): Bytes of text in each bin, [``BINS``].
        size_squared (np.ndarray): Sum of the squares of the documents' bytes in each bin, [``BINS``].
        rate (TokenRate): Tokens per byte of this domain.
        max_seq_len (int): Tokens in a sample.

    Returns:
        np.ndarray: Ends, non-decreasing, at most ``BINS``, int64, [splits].
    """
    below = np.concatenate([[0.0], np.cumsum(size)])
    squares_below = np.concatenate([[0.0], np.cumsum(size_squared)])
    ends, start = [], 0
    reserved = math.fsum(d.fraction or 0 for d in demands)  # shares of the splits to come
    for index, demand in enumerate(demands):
        reserved -= demand.fraction or 0
        limit = max(start, min(BINS, round((1 - reserved) * BINS)))
        if demand.fraction is not None:
            end = min(limit, start + round(demand.fraction * BINS))
        elif demand.tokens is None:
            end = limit
        elif demand.tokens == 0:
            end = start
        else:
            sure = _sure_tokens(below[start:] - below[start], squares_below[start:] - squares_below[start], rate)
            enough = sure >= demand.tokens + max_seq_len
            end = start + int(enough.argmax()) if enough.any() else limit
            half = (below[start] + below[limit]) / 2
            if index < len(demands) - 1 and below[end] > half:
                end = int(np.searchsorted(below, half, side='right')) - 1
                if below[end] == below[start]:  # the first document is more than half: it has to go somewhere
                    end = int(np.searchsorted(below, below[start], side='right'))
            end = min(limit, end)
        start = max(start, end)
        ends.append(start)
    return np.array(ends, np.int64)


def _sure_tokens(size: np.ndarray, size_squared: np.ndarray, rate: TokenRate) -> np.ndarray:
    """Tokens that so many bytes of text have with near certainty; arrays of one shape, as in :func:`intervals`."""
    spread = np.sqrt(size_squared * rate.deviation**2 + (size * rate.error) ** 2)
    return np.minimum(rate.mean * size - DEVIATIONS * spread, rate.mean * size / MARGIN)


def choose(documents: np.ndarray, duplicate: np.ndarray, ends: np.ndarray, seed: int) -> np.ndarray:
    """Index of the split of each document, -1 for none, int8, [documents]."""
    split = np.searchsorted(ends, place(documents['low'], seed), side='right')
    return np.where(duplicate | (split == len(ends)), -1, split).astype(np.int8)


def read_blocks(path: Path) -> Iterator[np.ndarray]:
    """Reads ``DOCUMENT`` records of a scan, ``BLOCK`` at a time."""
    with open(path, 'rb') as file:
        while data := file.read(BLOCK * DOCUMENT.itemsize):
            yield np.frombuffer(data, DOCUMENT)


def mark_duplicates(scans: Sequence[Path], out: Path, bucket: int = BUCKET) -> None:
    """Writes one byte per document of all scans, in order: 1 if an earlier document has the same text.

    Args:
        scans (Sequence[Path]): Files of ``DOCUMENT`` records, in order of domains.
        out (Path): File to write; buckets are written beside it and removed.
        bucket (int): About how many documents to hold in memory.
    """
    total = sum(path.stat().st_size for path in scans) // DOCUMENT.itemsize
    bits = min(9, math.ceil(math.log2(max(total / bucket, 1))))  # at most 512 open files
    paths = [out.with_name(f'{out.name}.bucket{i}') for i in range(1 << bits)]
    files = [open(path, 'wb') for path in paths]
    try:
        index = 0
        for scan in scans:
            for block in read_blocks(scan):
                rows = np.empty(len(block), _INDEXED)
                rows['high'], rows['low'] = block['high'], block['low']
                rows['index'] = np.arange(index, index + len(block), dtype=np.uint64)
                index += len(block)
                number = (rows['high'] >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(rows), int)
                for i in np.unique(number):
                    files[i].write(rows[number == i].tobytes())
    finally:
        for file in files:
            file.close()
    with open(out, 'wb') as file:
        file.truncate(total)
    if not total:
        return
    flags = np.memmap(out, np.uint8, 'r+')
    for path in paths:
        rows = np.fromfile(path, _INDEXED)
        order = np.lexsort((rows['index'], rows['low'], rows['high']))
        rows = rows[order]
        same = (rows['high'][1:] == rows['high'][:-1]) & (rows['low'][1:] == rows['low'][:-1])
        flags[np.sort(rows['index'][1:][same])] = 1
        path.unlink()
    flags.flush()
