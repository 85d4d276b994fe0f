"""Putting finished work in place, so that at every instant a folder is either absent or complete.

A folder of shards is renamed into place in one step, and what it replaces is renamed away first. At a remote address,
where nothing can be renamed, the index is uploaded after all shards: a loader believes the index.
"""
from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmshearing.data.prepare_spec import Domain, Spec

MANIFEST = 'manifest.json'


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Holds the working folder, creating it, for the length of the block; a killed process lets go of it.

    Raises:
        ValueError: If another process holds it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with open(work / 'lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f'another prepare is at work in {work}; wait for it, or set work to another '
                             'folder') from error
        try:
            yield
        finally:
            if work.exists() and os.listdir(work) == ['lock']:  # stopped before anything was done
                shutil.rmtree(work)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is never seen half written."""
    new = path.with_name(f'.{path.name}.new')
    new.write_text(text, encoding='utf-8')
    os.replace(new, path)


def check_remote(remote: str) -> None:
    """Tries an address before any work is done for it.

    Raises:
        ValueError: If Streaming cannot write to it.
    """
    from streaming.base.storage.upload import UPLOADERS, CloudUploader
    scheme = remote.split(':', 1)[0] if ':' in remote else ''
    if scheme not in UPLOADERS:
        raise ValueError(f'{remote} begins with {scheme!r}, which Streaming cannot write to; it can write to '
                         f'{", ".join(sorted(filter(None, UPLOADERS)))} and to local folders')
    with tempfile.TemporaryDirectory() as empty:
        CloudUploader.get((empty, remote), keep_local=True)


def upload(folder: Path, remote: str) -> None:
    """Copies a finished folder to a remote address, its index last, so that the index stands for all of it."""
    from streaming.base.storage.upload import CloudUploader
    with tempfile.TemporaryDirectory() as empty:  # it insists on an empty folder when it is made
        uploader = CloudUploader.get((empty, remote), keep_local=True)
    uploader.local = str(folder)
    names = sorted(path.name for path in folder.iterdir())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(uploader.upload_file, [name for name in names if name != 'index.json']))
    if 'index.json' in names:
        uploader.upload_file('index.json')


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
    """Looks for results of an earlier run in ``spec.out``.

    Args:
        spec (Spec): The request.
        key (str): Hash of everything that decides the result.
        overwrite (bool): Whether results of another request may be replaced.

    Returns:
        dict[str, Any] | None: The manifest, if the same request has been completed.

    Raises:
        ValueError: If there is something else, and it may not be replaced.
    """
    if spec.out is None:
        return None
    out, manifest = Path(spec.out), Path(spec.out) / MANIFEST
    if manifest.exists():
        found = json.loads(manifest.read_text(encoding='utf-8'))
        folders = [out / split / name for name, entry in found['domains'].items() for split in entry['splits']]
        if found['key'] == key and all((folder / 'index.json').exists() for folder in folders):
            return found
        if not overwrite:
            raise ValueError(f'{out} holds another data set (other input, spec or tokenizer, or folders are missing); '
                             'choose another out, or replace it with --overwrite')
        manifest.unlink()
    for domain in spec.domains:
        ours = read_state(spec, domain, key) is not None
        for split in spec.splits:
            folder = out / split.name / domain.name
            if folder.exists() and not ours and not overwrite:
                raise ValueError(f'{folder} exists and is not of this run; choose another out, or replace it with '
                                 '--overwrite')
    return None


def _state_path(spec: Spec, domain: Domain) -> Path:
    return Path(spec.work) / f'{domain.name}.state.json'


def read_state(spec: Spec, domain: Domain, key: str) -> dict[str, Any] | None:
    """The manifest's entry of a domain whose shards are complete, in the working folder or in place."""
    path = _state_path(spec, domain)
    if not path.exists():
        return None
    state = json.loads(path.read_text(encoding='utf-8'))
    return state['splits'] if state['key'] == key else None


def write_state(spec: Spec, domain: Domain, key: str, splits: dict[str, Any]) -> None:
    """Records that the shards of a domain are complete."""
    write_whole(_state_path(spec, domain), json.dumps({'key': key, 'splits': splits}))


def publish(spec: Spec, shards: Path, split: str, domain: str) -> None:
    """Puts the folder ``shards / split`` in place, locally, remotely or both."""
    folder = shards / split
    if spec.remote:
        upload(folder, f'{spec.remote.rstrip("/")}/{split}/{domain}')
    if spec.out:
        move_whole(folder, Path(spec.out) / split / domain)
    else:
        shutil.rmtree(folder)


def in_place(spec: Spec, split: str, domain: str) -> bool:
    """Whether a folder that is not in the working folder any more is where it belongs."""
    return spec.out is None or (Path(spec.out) / split / domain / 'index.json').exists()


def publish_manifest(spec: Spec, text: str) -> None:
    """Writes the manifest: the last step of a run."""
    if spec.remote:
        folder = Path(spec.work) / 'manifest'
        folder.mkdir(exist_ok=True)
        write_whole(folder / MANIFEST, text)
        upload(folder, spec.remote)
    if spec.out:
        write_whole(Path(spec.out) / MANIFEST, text)
