"""Putting finished work in place, so that at every instant a folder is either absent or complete.

A folder of shards is renamed into place in one step, and what it replaces is renamed away first. At a remote address,
where nothing can be renamed, the indexes of an earlier data set are emptied before the first shard is uploaded, and
each new one follows its shards: a loader believes the index.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmshearing.prepare.manifest import MANIFEST, folders_of, parse_manifest, read_manifest
from llmshearing.prepare.remote import below, empty_index, has_index, read_remote, upload, upload_text
from llmshearing.prepare.spec import Domain, Spec
from llmshearing.utils.files import dump_json, load_json, write_atomically
from llmshearing.utils.locks import hold_lock

__all__ = [
    'claim_local',
    'claim_remote',
    'find_finished',
    'in_place',
    'locked',
    'move_whole',
    'publish',
    'publish_manifest',
    'read_state',
    'write_state',
]


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Holds the working folder, creating it, for the length of the block; a killed process lets go of it.

    Raises:
        ValueError: If another process holds it, or there is a file in its way.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f'{work.parent} is, or lies below, a file; expected a folder: change out or work') from error
    with hold_lock(work / 'lock') as mine:
        if not mine:
            raise ValueError(f'another prepare is at work in {work}; wait for it, or set work and out to other folders')
        try:
            yield
        finally:
            if work.exists() and os.listdir(work) == ['lock']:  # stopped before anything was done
                shutil.rmtree(work)


def move_whole(source: Path, target: Path) -> None:
    """Moves a folder so that ``target`` is never incomplete, also from one disk to another."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():  # on the disk before the name is, should the power fail
        with open(path, 'rb') as file:
            os.fsync(file.fileno())
    old, new = (target.with_name(f'.{target.name}.{what}') for what in ('old', 'new'))
    for leftover in (old, new):
        shutil.rmtree(leftover, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(source, new)
        os.replace(new, target)
        shutil.rmtree(source)
    shutil.rmtree(old, ignore_errors=True)


def find_finished(spec: Spec, key: str, overwrite: bool) -> dict[str, Any] | None:
    """Looks for results of an earlier run wherever this one would write.

    Args:
        spec (Spec): The request.
        key (str): Hash of everything that decides the result.
        overwrite (bool): Whether results of another request may be replaced.

    Returns:
        dict[str, Any] | None: The manifest, if the same request has been completed. What is complete in ``spec.out``
        only is copied to ``spec.remote``.

    Raises:
        ValueError: If there is something else, and it may not be replaced.
    """
    remote = _find_remote(spec, spec.remote, key, overwrite) if spec.remote else None  # before a local one is replaced
    local = _find_local(spec, Path(spec.out), key, overwrite) if spec.out else None
    if spec.out is None or spec.remote is None:
        return local or remote
    if local and not remote:
        claim_remote(spec, spec.remote, key)
        for folder in folders_of(local):
            if not has_index(spec.remote, folder):
                upload(Path(spec.out) / folder, below(spec.remote, folder))
        upload_text(spec.remote, MANIFEST, (Path(spec.out) / MANIFEST).read_text(encoding='utf-8'))
    return local


def _find_local(spec: Spec, out: Path, key: str, overwrite: bool) -> dict[str, Any] | None:
    manifest = out / MANIFEST
    if manifest.exists():
        found, why = _read_own(manifest.read_text(encoding='utf-8', errors='replace'), manifest, key)
        if found and not found.get('unfinished') and all((out / f / 'index.json').exists() for f in folders_of(found)):
            return found
        if not overwrite:
            raise _another(str(out), why)
    for domain in spec.domains:
        ours = (_stored_state(spec, domain) or {}).get('out') == spec.out  # also of an earlier one that never ended
        for split in spec.splits:
            folder = out / split.name / domain.name
            if folder.exists() and not ours and not overwrite:
                raise _not_of_this_run(folder)
    return None


def _find_remote(spec: Spec, remote: str, key: str, overwrite: bool) -> dict[str, Any] | None:
    text = read_remote(remote, MANIFEST)
    if text is not None:
        found, why = _read_own(text, below(remote, MANIFEST), key)
        if found and found.get('unfinished'):
            return None
        if found and all(has_index(remote, folder) for folder in folders_of(found)):
            return found
        if not overwrite:
            raise _another(remote, why)
    elif not overwrite:
        for folder in _folders_wanted(spec):
            if has_index(remote, folder):
                raise _not_of_this_run(below(remote, folder))
    return None


def _read_own(text: str, where: Any, key: str) -> tuple[dict[str, Any] | None, str]:
    """A manifest if it is that of this request, or else why it is not."""
    try:
        found = parse_manifest(text, where)
    except ValueError as error:
        return None, str(error)
    if found['key'] == key:
        return found, ''
    return None, (
        f'the key in its {MANIFEST} is {found["key"]}, that of this request {key}: other input, spec or tokenizer'
    )


def _another(place: str, why: str) -> ValueError:
    """The error for a manifest in the way; ``why`` is empty for one of this request that is not finished."""
    return ValueError(
        f'{place} holds another data set ({why or "unfinished, or with folders missing"}); choose another out, or '
        'replace it with --overwrite'
    )


def _not_of_this_run(place: Any) -> ValueError:
    return ValueError(f'{place} exists and is not of this run; choose another out, or replace it with --overwrite')


def _folders_wanted(spec: Spec) -> list[str]:
    return [
        f'{split.name}/{domain.name}'
        for domain in spec.domains
        for split in spec.splits
        if spec.budget(domain, split) != 0
    ]


def claim_local(spec: Spec) -> None:
    """Removes an earlier data set from ``spec.out``, before the first folder of this one is put in place.

    Its folders go first, those that this run does not write among them, and its manifest last.
    """
    manifest = Path(spec.out or '') / MANIFEST
    if spec.out is None or not manifest.exists():
        return
    with contextlib.suppress(ValueError):  # another program's manifest lists nothing, and is replaced with the data
        for folder in folders_of(read_manifest(manifest)):
            shutil.rmtree(Path(spec.out) / folder, ignore_errors=True)
    manifest.unlink()


def claim_remote(spec: Spec, remote: str, key: str) -> None:
    """Makes the remote address this run's, before its first shard is uploaded.

    From here on an index there that is not empty is of this run: those of another data set are emptied, and the
    manifest names this run as unfinished. Does nothing if it does so already.
    """
    text = read_remote(remote, MANIFEST)
    folders = set(_folders_wanted(spec))
    if text is not None:
        try:
            found = parse_manifest(text, MANIFEST)
        except ValueError:  # something else, which find_finished has refused or was told to overwrite
            found = {'key': None, 'domains': {}}
        if found['key'] == key:
            return
        folders |= set(folders_of(found))
    for folder in sorted(folders):
        empty_index(remote, folder)
    domains: dict[str, Any] = {}
    for folder in _folders_wanted(spec):
        split, name = folder.split('/')
        domains.setdefault(name, {'splits': {}})['splits'][split] = {}
    upload_text(remote, MANIFEST, json.dumps({'key': key, 'unfinished': True, 'domains': domains}) + '\n')


def _state_path(spec: Spec, domain: Domain) -> Path:
    return Path(spec.work) / f'{domain.name}.state.json'


def read_state(spec: Spec, domain: Domain, key: str) -> dict[str, Any] | None:
    """The manifest's entry of a domain whose shards are complete, in the working folder or in place."""
    state = _stored_state(spec, domain)
    return state['splits'] if state is not None and state['key'] == key else None


def _stored_state(spec: Spec, domain: Domain) -> dict[str, Any] | None:
    path = _state_path(spec, domain)
    return load_json(path) if path.exists() else None


def write_state(spec: Spec, domain: Domain, key: str, splits: dict[str, Any]) -> None:
    """Records that the shards of a domain are complete."""
    dump_json(_state_path(spec, domain), {'key': key, 'out': spec.out, 'splits': splits}, indent=None, end='')


def publish(spec: Spec, shards: Path, split: str, domain: str) -> None:
    """Puts the folder ``shards / split`` in place, locally, remotely or both."""
    folder = shards / split
    if spec.remote and not has_index(spec.remote, f'{split}/{domain}'):
        upload(folder, below(spec.remote, f'{split}/{domain}'))
    if spec.out:
        move_whole(folder, Path(spec.out) / split / domain)
    else:
        shutil.rmtree(folder)


def in_place(spec: Spec, split: str, domain: str) -> bool:
    """Whether a folder that is not in the working folder any more is wherever it belongs."""
    local = spec.out is None or (Path(spec.out) / split / domain / 'index.json').exists()
    return local and (spec.remote is None or has_index(spec.remote, f'{split}/{domain}'))


def publish_manifest(spec: Spec, text: str) -> None:
    """Writes the manifest: the last step of a run. Raises a ValueError if another run has done so meanwhile."""
    manifest = Path(spec.out or '') / MANIFEST
    if spec.out and manifest.exists():
        raise ValueError(f'another prepare has finished in {spec.out} meanwhile; prepare again, with another out')
    if spec.remote:
        upload_text(spec.remote, MANIFEST, text)
    if spec.out:
        write_atomically(manifest, text)
