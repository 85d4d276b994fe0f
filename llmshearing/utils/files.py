"""Files: those that are either the old ones or the new ones, never half of one, and those that hold JSON."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    'NO_ROOM',
    'atomic_path',
    'dump_json',
    'give_usual_modes',
    'load_json',
    'refuse_pointer',
    'refuse_unwritable',
    'write_atomically',
]

LFS_POINTER = b'version https://git-lfs.github.com/spec/'
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of the errors of a full disk


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A hidden path beside ``path`` to write to, which becomes ``path`` when the block ends without an error.

    The name is new each time, so that two processes that write the same file do not mix; the last one stays. Folders
    above ``path`` are made. A link is followed: the file that it leads to is replaced.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{secrets.token_hex(8)}')
    partial.touch(0o600 if path.exists() else 0o666, exist_ok=False)
    try:
        yield partial
        if path.exists():
            shutil.copymode(path, partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Writes a whole file through :func:`atomic_path`; the content is on the disk before the name is.

    Args:
        path (str | Path): File to write or replace; what is none, such as ``/dev/stdout``, is written to.
        content (str | bytes): Text is written as UTF-8.
    """
    content = content.encode('utf-8') if isinstance(content, str) else content
    if os.path.exists(path) and not os.path.isfile(path):
        Path(path).write_bytes(content)
        return
    try:
        with atomic_path(path) as partial, open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names none
        raise


def load_json(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ValueError: If it is no JSON, or no object, naming the file.
    """
    refuse_pointer(path)
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8-sig'))  # some editors begin with a byte order mark
    except (ValueError, RecursionError) as error:  # also no text, numbers of thousands of digits, endless nesting
        raise ValueError(f'{path} is not JSON ({error}).') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path}: expected a JSON object, got a {type(content).__name__}.')
    return content


def dump_json(path: str | Path, content: Any, indent: int | None = 2, end: str = '\n', **layout: Any) -> None:
    """Writes JSON through :func:`write_atomically`, as model folders have it; ``layout`` is for ``json.dumps``."""
    write_atomically(path, json.dumps(content, indent=indent, **layout) + end)


def refuse_pointer(path: str | Path) -> None:
    """Raises a ValueError for the few lines that git leaves in the place of a file which it has not fetched."""
    with open(path, 'rb') as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f'{path} is a pointer of git-lfs, not the file itself; run `git lfs pull` in that folder.')


def give_usual_modes(folder: Path) -> None:
    """Gives every file below a folder the permissions of new ones; safetensors writes for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob('*'):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~mask)


def refuse_unwritable(where: str, folder: str | Path) -> None:
    """Raises a ValueError if no folder could be made there, and leaves none behind.

    Args:
        where (str): What is to write there, for the message.
        folder (str | Path): Destination, which does not exist yet.
    """
    parent = next(parent for parent in Path(folder).absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryDirectory(prefix='.export-', dir=parent):
            pass
    except OSError as error:
        raise ValueError(f'{where}: {folder} cannot be written ({error}); choose another folder.') from error
