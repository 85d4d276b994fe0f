"""One lock on a file, for work that several processes share: on this machine, or on others with the same disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ['hold_lock']

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def hold_lock(path: Path, wait: bool = False, optional: bool = False) -> Iterator[bool]:
    """Holds a lock for the block; the system lets go of it when the process dies.

    Args:
        path (Path): File of the lock; made where it is missing, in a folder that is there.
        wait (bool): Wait until it is free. Default: ``False``.
        optional (bool): Go on where the disk has no locks, for work that ends the same if two do it. Default:
            ``False``.

    Yields:
        bool: Whether this process holds it.

    Raises:
        OSError: If there can be no lock, unless it is ``optional``.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except NotImplementedError as error:  # how filelock says it
        if not optional:
            raise OSError(errno.ENOLCK, f'{path}: the disk has no locks') from error
    except OSError as error:
        if not optional or error.errno not in NO_LOCKS:
            raise
    try:
        yield True
    finally:
        lock.release()
