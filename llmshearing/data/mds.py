"""Reading MDS folders without a data set: shard by shard, each compared with the index first.

The decision here: what is read once, in order, needs no dataset with its shared memory and workers, and a command that
reads so leaves nothing behind. One shard is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmshearing.utils.files import refuse_pointer
from llmshearing.utils.paths import check_mds_index, is_hidden, walk_files

if TYPE_CHECKING:
    from llmshearing.compat.streaming import FileInfo, MDSReader

__all__ = [
    'MANIFEST',
    'check_ids',
    'check_token_column',
    'decode_rows',
    'encodings_of',
    'mds_folders',
    'read_index',
    'read_rows',
    'read_shard',
    'read_token_index',
    'read_tokens',
    'row_bounds',
    'stored_file',
    'tokens_of',
]

MANIFEST = 'manifest.json'  # what `llmshearing prepare` writes above its folders


def mds_folders(root: Path) -> list[str]:
    """Sorted paths of the MDS folders below ``root``, itself and linked ones among them; hidden ones are unfinished."""
    found = (Path(path).parent.relative_to(root) for path in walk_files(str(root)) if Path(path).name == 'index.json')
    return sorted(folder.as_posix() for folder in found if not is_hidden(folder.parts))


def read_index(folder: str | Path) -> list[MDSReader]:
    """The readers of a folder's shards.

    Raises:
        ValueError: If its index is missing, or none of MDS shards.
    """
    path = Path(folder) / 'index.json'
    if not path.exists():
        raise ValueError(f'{folder} has no index.json: it is not an MDS folder, or was never finished')
    try:
        return [_reader(folder, shard) for shard in check_mds_index(path)]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not an index of MDS shards ({error}); fetch or prepare the folder again'
        ) from error


def _reader(folder: str | Path, shard: dict[str, Any]) -> MDSReader:
    from llmshearing.compat.streaming import MDSReader

    if shard.get('format') != 'mds':
        raise ValueError(f'it has shards of the format {shard.get("format")!r}')
    for key, kind in {'column_names': list, 'column_encodings': list, 'raw_data': dict}.items():
        if not isinstance(shard.get(key), kind):
            raise ValueError(f'a shard has {shard.get(key)!r} for {key}')
    return MDSReader.from_json(str(folder), None, shard)


def encodings_of(reader: MDSReader) -> dict[str, str]:
    """How each column of a shard is stored, such as ``ndarray:uint16:4096``, by its name."""
    return dict(zip(reader.column_names, reader.column_encodings))


def read_token_index(folder: str | Path) -> list[MDSReader]:
    """The readers of a folder's shards, which have a column ``tokens``.

    Raises:
        ValueError: As :func:`read_index`, or if the column is missing, or neither of arrays nor of bytes.
    """
    readers = read_index(folder)
    for reader in readers:
        check_token_column(folder, encodings_of(reader))
    return readers


def check_token_column(where: Any, columns: Mapping[str, str]) -> None:
    """Refuses columns without token ids, as far as their encodings tell: arrays may be of any type.

    Args:
        where (Any): The data, for the message.
        columns (Mapping[str, str]): Encoding by name, from :func:`encodings_of`.

    Raises:
        ValueError: If ``tokens`` is missing, or holds no whole numbers.
    """
    encoding = columns.get('tokens')
    if encoding is None:
        raise ValueError(f'{where}: expected MDS shards with a column named tokens, got {list(columns)}')
    kind, *details = encoding.split(':')
    if kind not in ('bytes', 'ndarray') or (details and np.dtype(details[0]).kind not in 'iu'):
        raise ValueError(
            f'{where}: column tokens is {encoding}, expected ndarray of whole numbers or bytes (int64); tokenize the '
            'text first'
        )


def read_shard(folder: str | Path, reader: MDSReader) -> bytes:
    """The content of a shard, decompressed.

    Raises:
        ValueError: If it is missing, its size or hashes are not those of the index, or it cannot be decompressed.
    """
    path, stored = stored_file(folder, reader)
    data = _read_whole(path, stored)
    return _decompressed(path, reader, data) if stored is reader.zip_data else data


def _read_whole(path: Path, stored: FileInfo) -> bytes:
    """The content of a file whose size and hashes are those of the index."""
    from llmshearing.compat.streaming import get_hash

    data = path.read_bytes() if path.exists() else b''
    if len(data) != stored.bytes:
        if path.exists():
            refuse_pointer(path)
        reason = 'it was cut or changed' if path.exists() else f'shard {path.name} is missing'
        raise ValueError(
            f'{path} has {len(data)} bytes, its index says {stored.bytes}: {reason}; fetch or prepare it again'
        )
    for algorithm, expected in stored.hashes.items():
        if get_hash(algorithm, data) != expected:
            raise ValueError(
                f'{path} has changed since it was written ({algorithm} differs); fetch or prepare it again'
            )
    return data


def _decompressed(path: Path, reader: MDSReader, data: bytes) -> bytes:
    """A shard as it is before compression, from the content of its file."""
    from llmshearing.compat.streaming import decompress

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


def stored_file(folder: str | Path, reader: MDSReader) -> tuple[Path, FileInfo]:
    """The file that holds a shard, and what the index says of it: the compressed one, unless it is not there."""
    stored = reader.zip_data or reader.raw_data
    if reader.zip_data and not Path(folder, stored.basename).exists():
        stored = reader.raw_data
    return Path(folder, stored.basename), stored


def row_bounds(reader: MDSReader, data: bytes | np.ndarray) -> np.ndarray:
    """Where the samples of a shard begin, and where the last one ends, uint32 [samples + 1]."""
    return np.frombuffer(data, np.uint32, reader.samples + 1, 4)  # after their number


def decode_rows(reader: MDSReader, data: bytes) -> Iterator[dict[str, Any]]:
    """The samples of a shard, from its decompressed content."""
    bounds = row_bounds(reader, data)
    for start, end in zip(bounds, bounds[1:]):
        yield reader.decode_sample(data[start:end])


def read_rows(
    folder: str | Path, reader: MDSReader, take: Callable[[dict[str, Any]], Any] = lambda sample: sample
) -> Iterator[Any]:
    """The samples of a shard, or of each what ``take`` makes of it.

    Raises:
        ValueError: If it is missing, changed or damaged.
    """
    data = read_shard(folder, reader)
    reader.validate(allow_unsafe_types=False)
    try:
        for sample in decode_rows(reader, data):
            yield take(sample)
    except (IndexError, TypeError, ValueError) as error:
        path, _ = stored_file(folder, reader)
        raise ValueError(f'{path} is damaged ({error}); fetch or prepare it again') from error


def tokens_of(sample: Mapping[str, Any], encoding: Any = np.int64) -> np.ndarray:
    """Token ids of a stored sample: an array of whole numbers, or bytes, as llm-foundry's older converters write them.

    Args:
        sample (Mapping[str, Any]): Has ``tokens``.
        encoding (Any): NumPy's type of the ids in bytes. Default: int64.

    Raises:
        ValueError: For an array of other than whole numbers.
    """
    tokens = sample['tokens']
    if not isinstance(tokens, np.ndarray):
        return np.frombuffer(tokens, encoding)
    if tokens.dtype.kind not in 'iu':
        raise ValueError(f'its tokens are {tokens.dtype}, expected whole numbers')
    return tokens


def check_ids(where: Any, ids: Any, vocabulary: int, remedy: str = "prepare it with the model's own") -> None:
    """Refuses data with a token id outside of a vocabulary, which were made with another tokenizer.

    Args:
        where (Any): The data, for the message.
        ids (Any): Array or tensor of whole numbers, of any shape.
        vocabulary (int): Ids are to be below this, and not below zero.
        remedy (str): What to do, for the message.

    Raises:
        ValueError: Naming the data, the id and the vocabulary.
    """
    least, largest = int(ids.min()), int(ids.max())
    if least < 0 or largest >= vocabulary:
        raise ValueError(
            f'{where} has the token id {least if least < 0 else largest}, outside a vocabulary of {vocabulary}: '
            f'another tokenizer made it; {remedy}.'
        )


def read_tokens(folder: str | Path) -> Iterator[np.ndarray]:
    """The token sequences of an MDS folder in order, each int64 [tokens].

    Raises:
        ValueError: As :func:`read_token_index` and :func:`read_rows`.
    """
    for reader in read_token_index(folder):
        yield from read_rows(folder, reader, lambda sample: tokens_of(sample).reshape(-1).astype(np.int64))
