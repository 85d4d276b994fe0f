"""Checking finished MDS folders: everything the index promises is there, whole, and fits.

A loader finds a broken shard when it comes to it, hours into a run, and a token outside the model's vocabulary
never, or as an error of the GPU. Looking beforehand costs one reading of the data. Folders written by others
are checked as well.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.data.prepare_manifest import MANIFEST, parse_manifest


def check_folder(folder: Path, vocab_size: int | None = None) -> dict[str, Any]:
    """Checks an MDS folder against its index.

    Args:
        folder (Path): Has an ``index.json``.
        vocab_size (int, optional): Ids must be below it; looked at in ``tokens`` columns of arrays. Default: any.

    Returns:
        dict[str, Any]: ``samples``, ``shards``, ``bytes``, ``columns`` (name to encoding), ``hashes`` (those compared)
        and ``largest_id`` (``None`` if the tokens are not arrays, or compressed, or ``vocab_size`` is not given).

    Raises:
        ValueError: For a file that is missing, cut, changed or does not fit, naming it.
    """
    from streaming.base.hashing import get_hash
    folder, index = Path(folder), _read_index(Path(folder))
    facts: dict[str, Any] = {'samples': 0, 'shards': len(index), 'bytes': 0, 'columns': {}, 'hashes': set(),
                             'largest_id': None}
    for shard in index:
        stored = shard['zip_data'] or shard['raw_data']
        path = folder / stored['basename']
        data = path.read_bytes() if path.exists() else b''
        if len(data) != stored['bytes']:
            raise ValueError(f'{path} has {len(data)} bytes, its index says {stored["bytes"]}: it is missing or cut; '
                             'fetch or prepare it again')
        for algorithm, expected in stored['hashes'].items():
            if get_hash(algorithm, data) != expected:
                raise ValueError(f'{path} has changed since it was written ({algorithm} differs); fetch or prepare it '
                                 'again')
        facts['samples'] += shard['samples']
        facts['bytes'] += len(data)
        facts['columns'] = dict(zip(shard['column_names'], shard['column_encodings']))
        facts['hashes'] |= set(stored['hashes'])
        dtype = facts['columns'].get('tokens', '').removeprefix('ndarray:').split(':')[0]
        fixed = shard['column_names'] == ['tokens'] and shard['column_sizes'][0] is not None
        if vocab_size is not None and shard['zip_data'] is None and fixed:
            start = 4 + 4 * (shard['samples'] + 1)
            first = int(np.frombuffer(data, np.uint32, 1, 4)[0]) if shard['samples'] else start
            largest = int(np.frombuffer(data, dtype, offset=first).max(initial=0))
            if largest >= vocab_size:
                raise ValueError(f'{path} has the token id {largest}, outside a vocabulary of {vocab_size}; prepare it '
                                 "with the model's own tokenizer")
            facts['largest_id'] = max(largest, facts['largest_id'] or 0)
    facts['hashes'] = sorted(facts['hashes'])
    return facts


def _read_index(folder: Path) -> list[dict[str, Any]]:
    path = folder / 'index.json'
    if not path.exists():
        raise ValueError(f'{folder} has no index.json: it is not an MDS folder, or was never finished')
    try:
        return json.loads(path.read_text(encoding='utf-8'))['shards']
    except (ValueError, KeyError) as error:
        raise ValueError(
            f'{path} is not an index of MDS shards ({error}); fetch or prepare the folder again',
        ) from error


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
    folders = sorted(path.parent.relative_to(out).as_posix() for path in out.rglob('index.json')
                     if not any(part.startswith('.') for part in path.relative_to(out).parts))
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
                    raise ValueError(f'{out}/{split}/{domain} has {found or "no"} samples, the manifest says '
                                     f'{expected["samples"]}; prepare it again')
    elif (out / '.prepare').exists():
        raise ValueError(f'{out} is unfinished: prepare was interrupted; run it again to continue')
    return result
