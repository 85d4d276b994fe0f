"""Checking finished MDS folders: everything the index promises is there, whole, and fits.

A loader finds a broken shard when it comes to it, hours into a run, and a token outside the model's vocabulary
never, or as an error of the GPU. Looking beforehand costs one reading of the data. Folders written by others
are checked as well.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmshearing.data.mds import (
    decode_rows,
    encodings_of,
    mds_folders,
    read_index,
    read_shard,
    row_bounds,
    stored_file,
    tokens_of,
)
from llmshearing.prepare.manifest import MANIFEST, folders_of, read_manifest

if TYPE_CHECKING:
    from llmshearing.compat.streaming import MDSReader
    from llmshearing.data.stored_teacher import TeacherNote

__all__ = ['check', 'check_folder']


def check_folder(folder: Path, vocab_size: int | None = None) -> dict[str, Any]:
    """Checks an MDS folder against its index.

    Args:
        folder (Path): Has an ``index.json``.
        vocab_size (int | None): All ids in the column ``tokens`` must be below it. Default: in each shard the first
            array of them alone is looked at, whose ids must be whole numbers and not below zero.

    Returns:
        dict[str, Any]: ``samples``, ``shards``, ``bytes``, ``columns`` (name to encoding), ``hashes`` (those compared)
        and ``largest_id`` (``None`` if there is no sample, or ``vocab_size`` is not given).

    Raises:
        ValueError: For a file that is missing, cut, changed or does not fit, whose ids cannot be read, or with a
            teacher's column of other tokens, naming it.
    """
    folder = Path(folder)
    readers = read_index(folder)
    facts: dict[str, Any] = {
        'samples': 0,
        'shards': len(readers),
        'bytes': 0,
        'columns': {},
        'hashes': set(),
        'largest_id': None,
    }
    size_of_tokens = None
    note = _read_teacher(folder, readers)
    for reader in readers:
        path, stored = stored_file(folder, reader)
        data = read_shard(folder, reader)
        facts['samples'] += reader.samples
        facts['bytes'] += stored.bytes
        facts['columns'] = encodings_of(reader)
        facts['hashes'] |= set(stored.hashes)
        if note is not None:
            _check_teacher(path, reader, data, note)
        size_of_tokens = _check_lengths(path, reader, data, size_of_tokens)
        is_array = facts['columns'].get('tokens', '').startswith('ndarray')
        if reader.samples and (vocab_size is not None or is_array):
            least, largest = _range_of_ids(path, reader, data, None if vocab_size is not None else 1)
            if least < 0 or (vocab_size is not None and largest >= vocab_size):
                as_read = '' if is_array else ' (bytes, read as int64)'
                raise ValueError(
                    f'{path} has the token id {least if least < 0 else largest}, outside a vocabulary of '
                    f"{vocab_size or 'any size'}{as_read}; prepare it with the model's own tokenizer"
                )
            if vocab_size is not None:
                facts['largest_id'] = max(largest, facts['largest_id'] or 0)
    facts['hashes'] = sorted(facts['hashes'])
    return facts


def _read_teacher(folder: Path, readers: list[MDSReader]) -> TeacherNote | None:
    """The note of a folder with a teacher's column, whose shards are those that it was written for; else None."""
    if not any('teacher_of' in reader.column_names for reader in readers):
        return None
    from llmshearing.data.stored_teacher import check_shards, read_note

    note = read_note(folder)
    if note is None:
        raise ValueError(
            f"{folder} has a teacher's column of which its index says nothing; run llmshearing teach again"
        )
    check_shards(folder, note, readers)
    return note


def _check_teacher(path: Path, reader: MDSReader, data: bytes, note: TeacherNote) -> None:
    """Refuses what a run would refuse of a teacher's column, in any sample."""
    from llmshearing.data.stored_teacher import read_column

    reader.validate(allow_unsafe_types=False)
    for number, sample in enumerate(decode_rows(reader, data)):
        read_column(sample, tokens_of(sample), note, lambda number=number: f'sample {number} of {path}')


def _check_lengths(path: Path, reader: MDSReader, data: bytes, expected: int | None) -> int | None:
    """Refuses a sample whose tokens take another size than the others'; returns the size, as far as it is known."""
    from llmshearing.data.lengths import check_sizes, token_sizes

    try:
        sizes = token_sizes(reader, data)
    except (ValueError, IndexError) as error:
        raise ValueError(f'{path}: its token ids cannot be read ({error}); fetch or prepare it again') from error
    return check_sizes(path, sizes, expected)


def _range_of_ids(path: Path, reader: MDSReader, data: bytes, rows: int | None) -> tuple[int, int]:
    """Least and largest id in a shard's column ``tokens``: integers, or bytes of int64 as llm-foundry writes them.

    Of the first ``rows`` samples, or of all.
    """
    columns = encodings_of(reader)
    if columns.get('tokens', '').split(':')[0] not in ('bytes', 'ndarray'):
        raise ValueError(
            f'{path} has no token ids to compare with --vocab-size: its columns are {columns}, expected '
            'tokens as ndarray or bytes; tokenize the text first, or leave --vocab-size out'
        )
    try:
        reader.validate(allow_unsafe_types=False)
        samples = islice(decode_rows(reader, data), rows)
        if rows is None and reader.column_names == ['tokens'] and reader.column_sizes[0]:  # ids alone, end to end
            first = int(row_bounds(reader, data)[0])
            samples = [{'tokens': np.frombuffer(data, columns['tokens'].split(':')[1], offset=first)}]
        ranges = [(int(ids.min()), int(ids.max())) for ids in map(tokens_of, samples) if ids.size]
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f'{path}: its token ids cannot be read ({error}); fetch or prepare it again') from error
    return min((least for least, _ in ranges), default=0), max((largest for _, largest in ranges), default=0)


def check(out: Path, vocab_size: int | None = None) -> dict[str, dict[str, Any]]:
    """Checks one MDS folder, or all folders below a result of `prepare` and its manifest.

    Returns:
        dict[str, dict[str, Any]]: What :func:`check_folder` says, by the folder's path below ``out``.

    Raises:
        ValueError: For anything that is broken, unfinished or missing.
    """
    out = Path(out)
    if (out / 'index.json').exists() or not out.is_dir():
        return {'.': check_folder(out, vocab_size)}
    folders = mds_folders(out)
    if not folders:
        raise ValueError(f'{out} holds no finished MDS folder')
    result = {folder: check_folder(out / folder, vocab_size) for folder in folders}
    manifest = out / MANIFEST
    stated: dict[str, Any] = {'unfinished': (out / '.prepare').exists(), 'domains': {}}
    if manifest.exists():
        stated = read_manifest(manifest)
    if stated.get('unfinished'):
        raise ValueError(f'{out} is unfinished: prepare was interrupted; run it again to continue')
    listed = folders_of(stated)  # others, at a remote address, may have been emptied
    unlisted = [folder for folder, facts in result.items() if folder not in listed and facts['samples']]
    if manifest.exists() and unlisted:
        raise ValueError(
            f'{manifest} does not list {out}/{unlisted[0]}: an earlier data set left it, or it came from elsewhere; '
            'remove it, or move it to another place'
        )
    for domain, entry in stated['domains'].items():
        for split, expected in entry['splits'].items():
            found = result.get(f'{split}/{domain}', {}).get('samples')
            if found != expected['samples']:
                raise ValueError(
                    f'{out}/{split}/{domain} has {found or "no"} samples, the manifest says '
                    f'{expected["samples"]}; prepare it again'
                )
    return result
