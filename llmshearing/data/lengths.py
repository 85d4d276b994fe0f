"""Samples of another length among equals, found from where samples begin and end, without reading the tokens.

A batch cannot hold them, and a run that meets one stops in its middle. Shards whose encoding fixes the length
(``ndarray:uint16:4096``, as ``prepare`` writes) cannot have any; those of other converters can.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from llmshearing.compat.streaming import MDSReader, decompress
from llmshearing.data.mds import row_bounds

__all__ = ['check_sizes', 'local_bytes', 'token_sizes']

_STREAMED = {'zstd': 'zstd', 'gz': 'gzip', 'bz2': 'bz2', 'br': 'brotli'}  # pyarrow's names


def token_sizes(shard: MDSReader, data: Any) -> np.ndarray | None:
    """Bytes that the column ``tokens`` takes in each sample.

    Args:
        shard (MDSReader): The shard.
        data (bytes | np.ndarray): Its content; the beginning, up to the first sample, is enough where no other column
            has a variable size.

    Returns:
        np.ndarray | None: int64 [samples]; ``None`` where the encoding makes all sizes equal.
    """
    names, sizes = shard.column_names, shard.column_sizes
    if 'tokens' not in names or sizes[names.index('tokens')] is not None:
        return None
    bounds = row_bounds(shard, data).astype(np.int64)
    variable = [name for name, size in zip(names, sizes) if size is None]
    if len(variable) == 1:  # a sample begins with the sizes of such columns, 4 bytes each
        return np.diff(bounds) - 4 - sum(size for size in sizes if size is not None)
    begin = bounds[:-1, None] + 4 * variable.index('tokens') + np.arange(4)
    return np.frombuffer(data, np.uint8)[begin].view('<u4')[:, 0].astype(np.int64)


def check_sizes(where: Any, sizes: np.ndarray | None, expected: int | None = None) -> int | None:
    """Refuses a shard with a sample of another size than the others.

    Args:
        where (Any): The shard, for the message.
        sizes (np.ndarray | None): From :func:`token_sizes`.
        expected (int | None): The size that samples are to have. Default: the one that most have.

    Returns:
        int | None: The size, as far as it is known.

    Raises:
        ValueError: Naming the first such sample.
    """
    if sizes is None or not len(sizes):
        return expected
    if expected is None:
        values, counts = np.unique(sizes, return_counts=True)
        expected = int(values[counts.argmax()])
    odd = np.flatnonzero(sizes != expected)
    if len(odd):
        raise ValueError(
            f'{where}: sample {odd[0]} has {sizes[odd[0]]} bytes of tokens where the others have {expected}; a batch '
            'of dynamic_text cannot hold it, and one of the loader text is padded. Prepare it again.'
        )
    return expected


def local_bytes(shard: MDSReader) -> Any:
    """As much of a shard's content as :func:`token_sizes` needs; ``None`` if the shard is not on this machine."""
    raw, packed = shard.file_pairs[0]
    folder = os.path.join(shard.dirname, shard.split)
    path = os.path.join(folder, raw.basename)
    if os.path.isfile(path):
        return np.memmap(path, np.uint8, 'r')
    path = os.path.join(folder, packed.basename) if packed else ''
    if not os.path.isfile(path):
        return None
    streamed = _STREAMED.get((shard.compression or '').split(':')[0])
    if streamed and shard.column_sizes.count(None) == 1:
        import pyarrow

        with pyarrow.input_stream(path, compression=streamed) as stream:
            return stream.read(4 * (shard.samples + 2))
    with open(path, 'rb') as file:
        return decompress(shard.compression, file.read())
