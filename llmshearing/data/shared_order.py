"""Shared memory of a run: the order a rank gives its workers, and what a killed run leaves behind.

Streaming numbers its shared memory blocks by run (``000003_locals``) and gives a new run the first free number. A run
that was killed leaves blocks and lock files; killed at the wrong moment, it makes the next run on the same folders fail
with "Reused local directory". What is dead cannot be told from the blocks, so each of our runs keeps a *marker*: a file
with the run's folders and its number, locked (``flock``) as long as a process of the run lives. The kernel drops the
lock when the last of them dies, however it dies. So a marker that can be locked belongs to a dead run, and only blocks
named by such a marker are ever removed: nothing of a live run, of another user, or of a program that is not ours.

A second lock, per user, is held while a run starts, and while any data set of Streaming takes its number: two runs that
start together neither take the same number nor mistake each other's half-made blocks for a dead run's.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from llmshearing.compat.streaming import (
    BARRIER_FILELOCK,
    CACHE_FILELOCK,
    LOCALS,
    SHM_TO_CLEAN,
    SharedArray,
    block_name,
    distributed,
    guard_numbers,
)

__all__ = ['RunMarker', 'remove_dead_runs', 'shared_order', 'starting']

log = logging.getLogger(__name__)

MIXTURE = 'mixture'
SHARED_MEMORY = Path('/dev/shm')
MARKERS = SHARED_MEMORY
"""Where markers are: beside what they mark. A temporary folder may be shared by machines, whose numbers are others."""
START_TIMEOUT = 120.0
"""Seconds to wait for another run to start before going on without the lock."""


def shared_order(number: int, size: int) -> SharedArray:
    """Shared int64 array in which the first rank of a node tells its workers what to serve.

    Args:
        number (int): Streaming's number for this run; the blocks of that number are ours alone, so one that is there
            already has been left by a dead run.
        size (int): Integers in the array.
    """
    name = block_name(number, MIXTURE)
    (SHARED_MEMORY / name).unlink(missing_ok=True)
    return SharedArray(size, np.int64, name)


class RunMarker:
    """The locked file that says which run is alive. Forked workers share the lock; pickling leaves it out.

    Args:
        folders (Sequence[str]): Local folders of the run's streams.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = list(folders)
        handle, path = tempfile.mkstemp('.run', _marker_prefix(), MARKERS)
        self._file = os.fdopen(handle, 'r+')
        self.path = path
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.set_number(None)

    def set_number(self, number: int | None) -> None:
        """Notes Streaming's number of the run once it is known, and which block that is: numbers are used again."""
        block = None if number is None else _block_id(number)
        self._file.seek(0)
        self._file.truncate()
        json.dump({'folders': self._folders, 'number': number, 'block': block}, self._file)
        self._file.flush()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_file': None}


_is_starting = False


@contextmanager
def starting(folders: Sequence[str]) -> Iterator[RunMarker | None]:
    """Removes what dead runs left, then keeps other runs of this user from starting until the block is left.

    To be entered on every rank, with its local folders: the first of each node does it, the others wait for it.

    Yields:
        RunMarker | None: The run's marker, to be kept as long as the run; None on other ranks than the first of a node.
    """
    global _is_starting
    with _keep_others_from_starting():
        marker = None
        if distributed.get_local_rank() == 0:
            remove_dead_runs()
            marker = RunMarker(folders)
        distributed.barrier()
        outer, _is_starting = _is_starting, True
        try:
            yield marker
        finally:
            _is_starting = outer


@contextmanager
def _keep_others_from_starting() -> Iterator[None]:
    """Keeps other runs of this user from taking a number, from before any rank of this one looks for one."""
    with open(MARKERS / f'{_marker_prefix()}start.lock', 'a') as lock:  # closing it lets go
        if distributed.get_local_rank() == 0 and not _lock(lock, START_TIMEOUT):
            log.warning('Another run has been starting for %d s; going on beside it.', START_TIMEOUT)
        distributed.barrier()
        yield


guard_numbers(lambda: nullcontext() if _is_starting else _keep_others_from_starting())


def remove_dead_runs() -> list[int]:
    """Removes the blocks and lock files of runs none of whose processes is alive.

    Returns:
        list[int]: Streaming's numbers of the runs that were removed.
    """
    removed = []
    for path in MARKERS.glob(f'{_marker_prefix()}*.run'):
        try:
            marker = path.open('r+')
        except FileNotFoundError:
            continue  # removed by another run that starts
        with marker:
            if not _lock(marker, 0):
                continue
            content = marker.read()
            # Killed between making the file and writing it: nothing else can exist yet.
            run = json.loads(content) if content else {'folders': None, 'number': None, 'block': None}
            for number in _numbers_of(run):
                _remove_blocks(number)
                removed.append(number)
            path.unlink(missing_ok=True)
    if removed:
        log.info('Removed the shared memory of %d dead runs: %s', len(removed), removed)
    return removed


def _block_id(number: int) -> int | None:
    """Inode of the block that registers a number, or None if the number is free."""
    path = SHARED_MEMORY / block_name(number, LOCALS)
    return path.stat().st_ino if path.exists() else None


def _numbers_of(run: dict[str, Any]) -> list[int]:
    """The numbers under which a dead run still has blocks.

    A run that was killed before it could note its number (Streaming had hardly begun) is found by its folders, among
    the blocks that no process has in its memory.
    """
    if run['number'] is not None:
        return [run['number']] if _block_id(run['number']) in (None, run['block']) else []
    numbers = []
    for path in SHARED_MEMORY.glob(f'[0-9]*_{LOCALS}'):
        number = int(path.name.split('_')[0])
        try:
            data = path.read_bytes()
        except (PermissionError, FileNotFoundError):
            continue
        size = int(np.frombuffer(data[:4], np.int32)[0])
        if run['folders'] and data[4:size].decode().split('\0')[:-1] == run['folders'] and not _is_mapped(path):
            numbers.append(number)
    return numbers


def _is_mapped(path: Path) -> bool:
    """Whether a process that can be seen has the block in its memory.

    By device and inode: a process in a container has a block of the same path in another shared memory.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    block = f' {os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x} {found.st_ino} '
    for maps in Path('/proc').glob('[0-9]*/maps'):
        try:
            if block in maps.read_text():
                return True
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # another user's, or gone
    return False


def _remove_blocks(number: int) -> None:
    for name in (*SHM_TO_CLEAN, MIXTURE):
        (SHARED_MEMORY / block_name(number, name)).unlink(missing_ok=True)
    for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
        (Path(tempfile.gettempdir()) / block_name(number, name)).unlink(missing_ok=True)


def _marker_prefix() -> str:
    return f'llmshearing-{os.getuid()}-'


def _lock(file: IO[str], timeout: float) -> bool:
    """Takes the lock of a file, waiting up to ``timeout`` seconds. Returns whether it is held."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
