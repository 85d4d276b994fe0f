"""Checking finished MDS folders: everything the index promises is there, whole, and fits.

A loader finds a broken shard when it comes to it, hours into a run, and a token outside the model's vocabulary
never, or as an error of the GPU. Looking beforehand costs one reading of the data. Folders written by others
are checked as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmshearing.prepare.manifest import MANIFEST, parse_manifest
from llmshearing.utils.paths import check_mds_index

if TYPE_CHECKING:
    from llmshearing.compat.streaming import FileInfo, MDSReader


def check_folder(folder: Path, vocab_size: int | None = None) -> dict[str, Any]:
    """Checks an MDS folder against its index.

    Args:
        folder (Path): Has an ``index.json``.
        vocab_size (int, optional): All ids in the column ``tokens`` must be below it. Default: they are not looked at.

    Returns:
        dict[str, Any]: ``samples``, ``shards``, ``bytes``, ``columns`` (name to encoding), ``hashes`` (those compared)
        and ``largest_id`` (``None`` if there is no sample, or ``vocab_size`` is not given).

    Raises:
        ValueError: For a file that is missing, cut, changed or does not fit, or whose ids cannot be read, naming it.
    """
    folder = Path(folder)
    readers = _read_index(folder)
    facts: dict[str, Any] = {
        'samples': 0,
        'shards': len(readers),
        'bytes': 0,
        'columns': {},
        'hashes': set(),
        'largest_id': None,
    }
    for reader in readers:
        stored = reader.zip_data or reader.raw_data
        path = folder / stored.basename
        data = _read_whole(path, stored)
        facts['samples'] += reader.samples
        facts['bytes'] += len(data)
        facts['columns'] = dict(zip(reader.column_names, reader.column_encodings))
        facts['hashes'] |= set(stored.hashes)
        if vocab_size is not None and reader.samples:
            least, largest = _range_of_ids(path, reader, data)
            if least < 0 or largest >= vocab_size:
                as_read = ' (bytes, read as int64)' if facts['columns']['tokens'] == 'bytes' else ''
                raise ValueError(
                    f'{path} has the token id {least if least < 0 else largest}, outside a vocabulary of '
                    f"{vocab_size}{as_read}; prepare it with the model's own tokenizer"
                )
            facts['largest_id'] = max(largest, facts['largest_id'] or 0)
    facts['hashes'] = sorted(facts['hashes'])
    return facts


def _read_index(folder: Path) -> list[MDSReader]:
    from llmshearing.compat.streaming import reader_from_json

    path = folder / 'index.json'
    if not path.exists():
        raise ValueError(f'{folder} has no index.json: it is not an MDS folder, or was never finished')
    try:
        shards = check_mds_index(path)
        if other := [shard['format'] for shard in shards if shard['format'] != 'mds']:
            raise ValueError(f'it has shards of the format {other[0]!r}')
        return [reader_from_json(str(folder), None, shard) for shard in shards]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not an index of MDS shards ({error}); fetch or prepare the folder again'
        ) from error


def _read_whole(path: Path, stored: FileInfo) -> bytes:
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


def _range_of_ids(path: Path, reader: MDSReader, data: bytes) -> tuple[int, int]:
    """Least and largest id in a shard's column ``tokens``: integers, or bytes of int64 as llm-foundry writes them."""
    columns = dict(zip(reader.column_names, reader.column_encodings))
    if columns.get('tokens', '').split(':')[0] not in ('bytes', 'ndarray'):
        raise ValueError(
            f'{path} has no token ids to compare with --vocab-size: its columns are {columns}, expected '
            'tokens as ndarray or bytes; tokenize the text first, or leave --vocab-size out'
        )
    data = _decompressed(path, reader, data)
    try:
        reader.validate(allow_unsafe_types=False)
        starts = np.frombuffer(data, np.uint32, reader.samples + 1, 4)  # after their number; the last is the end
        if reader.column_names == ['tokens'] and reader.column_sizes[0]:  # nothing but ids, one sample after the other
            parts = [np.frombuffer(data, columns['tokens'].split(':')[1], offset=int(starts[0]))]
        else:
            samples = (reader.decode_sample(data[start:end])['tokens'] for start, end in zip(starts, starts[1:]))
            parts = (np.frombuffer(ids, np.int64) if isinstance(ids, bytes) else ids for ids in samples)
        ranges = [_range(ids) for ids in parts if ids.size]
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f'{path}: its token ids cannot be read ({error}); fetch or prepare it again') from error
    return min((least for least, _ in ranges), default=0), max((largest for _, largest in ranges), default=0)


def _range(ids: np.ndarray) -> tuple[int, int]:
    if ids.dtype.kind not in 'iu':
        raise ValueError(f'tokens are {ids.dtype}, expected whole numbers')
    return int(ids.min()), int(ids.max())


def _decompressed(path: Path, reader: MDSReader, data: bytes) -> bytes:
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


def check(out: Path, vocab_size: int | None = None) -> dict[str, dict[str, Any]]:
    """Checks one MDS folder, or all folders below a result of `prepare` and its manifest.

    Args:
        out (Path): An MDS folder or a folder of them.
        vocab_size (int, optional): See :func:`check_folder`.

    Returns:
        dict[str, dict[str, Any]]: What :func:`check_folder` says, by the folder's path below ``out``.

    Raises:
        ValueError: For anything that is broken, unfinished or missing.
    """
    out = Path(out)
    manifest = out / MANIFEST
    if (out / 'index.json').exists() or not out.is_dir():
        return {'.': check_folder(out, vocab_size)}
    folders = sorted(
        path.parent.relative_to(out).as_posix()
        for path in out.rglob('index.json')
        if not any(part.startswith('.') for part in path.relative_to(out).parts)
    )
    if not folders:
        raise ValueError(f'{out} holds no finished MDS folder')
    result = {folder: check_folder(out / folder, vocab_size) for folder in folders}
    if manifest.exists():
        stated = parse_manifest(manifest.read_text(encoding='utf-8', errors='replace'), manifest)
        if stated.get('unfinished'):
            raise ValueError(f'{out} is unfinished: prepare was interrupted; run it again to continue')
        for domain, entry in stated['domains'].items():
            for split, expected in entry['splits'].items():
                found = result.get(f'{split}/{domain}', {}).get('samples')
                if found != expected['samples']:
                    raise ValueError(
                        f'{out}/{split}/{domain} has {found or "no"} samples, the manifest says '
                        f'{expected["samples"]}; prepare it again'
                    )
    elif (out / '.prepare').exists():
        raise ValueError(f'{out} is unfinished: prepare was interrupted; run it again to continue')
    return result
