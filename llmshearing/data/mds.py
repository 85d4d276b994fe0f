"""Reading MDS folders without a data set: shard by shard, each compared with the index first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmshearing.utils.paths import check_mds_index

if TYPE_CHECKING:
    from llmshearing.compat.streaming import FileInfo, MDSReader

__all__ = ['decompressed', 'read_index', 'read_rows', 'read_whole', 'row_bounds']


def read_index(folder: str | Path) -> list[MDSReader]:
    """The readers of a folder's shards.

    Raises:
        ValueError: If its index is missing, or none of MDS shards.
    """
    from llmshearing.compat.streaming import MDSReader, reader_from_json

    path = Path(folder) / 'index.json'
    if not path.exists():
        raise ValueError(f'{folder} has no index.json: it is not an MDS folder, or was never finished')
    try:
        shards = check_mds_index(path)
        if other := [shard['format'] for shard in shards if shard['format'] != 'mds']:
            raise ValueError(f'it has shards of the format {other[0]!r}')
        readers = [reader_from_json(str(folder), None, shard) for shard in shards]
        return [reader for reader in readers if isinstance(reader, MDSReader)]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not an index of MDS shards ({error}); fetch or prepare the folder again'
        ) from error


def read_whole(path: Path, stored: FileInfo) -> bytes:
    """The content of a file whose size and hashes are those of the index.

    Raises:
        ValueError: If they are not.
    """
    from llmshearing.compat.streaming import get_hash

    data = path.read_bytes() if path.exists() else b''
    if len(data) != stored.bytes:
        raise ValueError(
            f'{path} has {len(data)} bytes, its index says {stored.bytes}: it is missing or cut; '
            'fetch or prepare it again'
        )
    for algorithm, expected in stored.hashes.items():
        if get_hash(algorithm, data) != expected:
            raise ValueError(
                f'{path} has changed since it was written ({algorithm} differs); fetch or prepare it again'
            )
    return data


def decompressed(path: Path, reader: MDSReader, data: bytes) -> bytes:
    """A shard as it is before compression, from the content of its file.

    Raises:
        ValueError: If it cannot be decompressed.
    """
    from llmshearing.compat.streaming import decompress

    if not reader.zip_data:
        return data
    try:
        data = decompress(reader.compression, data)
    except Exception as error:  # every compression's library has its own kinds
        raise ValueError(f'{path} cannot be decompressed ({error}); fetch or prepare it again') from error
    if len(data) != reader.raw_data.bytes:
        raise ValueError(
            f'{path} has {len(data)} bytes when decompressed, its index says {reader.raw_data.bytes}; '
            'fetch or prepare it again'
        )
    return data


def row_bounds(reader: MDSReader, data: bytes) -> np.ndarray:
    """Where the samples of a shard begin, and where the last one ends, uint32 [samples + 1]."""
    return np.frombuffer(data, np.uint32, reader.samples + 1, 4)  # after their number


def read_rows(folder: str | Path, reader: MDSReader) -> Iterator[dict[str, Any]]:
    """The samples of a shard.

    Raises:
        ValueError: If it is missing, changed or damaged.
    """
    stored = reader.zip_data or reader.raw_data
    path = Path(folder) / stored.basename
    if reader.zip_data and not path.exists():
        stored, path = reader.raw_data, Path(folder) / reader.raw_data.basename
    data = read_whole(path, stored)
    data = decompressed(path, reader, data) if stored is reader.zip_data else data
    reader.validate(allow_unsafe_types=False)
    bounds = row_bounds(reader, data)
    for start, end in zip(bounds, bounds[1:]):
        yield reader.decode_sample(data[start:end])
