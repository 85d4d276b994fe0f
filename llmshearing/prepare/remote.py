"""What `prepare` reads and writes at a remote address, through Streaming's downloaders and uploaders alone.

Those can fetch a file and put one, in every store; hardly one can list, and none can delete or rename. So what no
longer holds is written over rather than removed: an emptied index is a folder that no loader takes for data, and an
unfinished manifest says whose shards are being uploaded. What is left over of older shards is never listed again.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ['EMPTY_INDEX', 'below', 'check_remote', 'empty_index', 'has_index', 'read_remote', 'upload', 'upload_text']

EMPTY_INDEX = '{"version": 2, "shards": []}\n'


def below(remote: str, name: str) -> str:
    """The address of a file or folder below a remote address."""
    return f'{remote.rstrip("/")}/{name}'


def check_remote(remote: str) -> None:
    """Tries an address before any work is done for it.

    Raises:
        ValueError: If Streaming cannot write to it.
    """
    from llmshearing.compat.streaming import CloudUploader, writable_schemes

    scheme, possible = remote.split(':', 1)[0] if ':' in remote else '', writable_schemes()
    if scheme not in possible:
        raise ValueError(
            f'{remote} begins with {scheme!r}, which Streaming cannot write to; it can write to '
            f'{", ".join(sorted(filter(None, possible)))} and to local folders'
        )
    with tempfile.TemporaryDirectory() as empty:
        try:
            CloudUploader.get((empty, remote), keep_local=True)
        except Exception as error:  # each store's library has its own kinds
            raise ValueError(f'{remote} cannot be written to ({error}); correct out, or its credentials') from error


def upload(folder: Path, remote: str) -> None:
    """Copies a finished folder to a remote address, its index last, so that the index stands for all of it."""
    from llmshearing.compat.streaming import CloudUploader

    with tempfile.TemporaryDirectory() as empty:  # it insists on an empty folder when it is made
        uploader = CloudUploader.get((empty, remote), keep_local=True)
    uploader.local = str(folder)
    names = sorted(path.name for path in folder.iterdir())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(uploader.upload_file, [name for name in names if name != 'index.json']))
    if 'index.json' in names:
        uploader.upload_file('index.json')


def upload_text(remote: str, name: str, text: str) -> None:
    """Writes one small file, in place of the one of that name."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_text(text, encoding='utf-8')
        upload(Path(folder), remote)


def read_remote(remote: str, name: str) -> str | None:
    """The text of a small file at a remote address, or ``None`` if there is no such file.

    Raises:
        ValueError: If the store does not say whether there is one: nothing is overwritten unseen.
    """
    from llmshearing.compat.streaming import read_remote_text

    return read_remote_text(below(remote, name))


def has_index(remote: str, folder: str) -> bool:
    """Whether a folder at a remote address has an index other than an emptied one."""
    return read_remote(remote, f'{folder}/index.json') not in (None, EMPTY_INDEX)


def empty_index(remote: str, folder: str) -> None:
    """Makes a loader that comes to the folder find no samples, if it has an index."""
    if has_index(remote, folder):
        upload_text(below(remote, folder), 'index.json', EMPTY_INDEX)
