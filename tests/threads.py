"""Threads of a test's process: whoever makes one ends it, before a later test forks.

What a thread holds at the moment of a fork, nobody lets go of in the child. Streaming keeps two threads for each data
set that this process reads itself, until the data set is collected; they are ended here.
"""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import tqdm
from streaming.base import dataset

__all__ = ['end_threads']


class Pool(ThreadPoolExecutor):
    """Where the threads of a data set are."""

    made: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self) -> None:
        super().__init__()
        self.made.add(self)


class Round(dataset._Iterator):
    """What they work for."""

    made: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self, sample_ids: np.ndarray) -> None:
        super().__init__(sample_ids)
        self.made.add(self)


dataset.ThreadPoolExecutor, dataset._Iterator = Pool, Round
tqdm.tqdm.monitor_interval = 0  # no thread that looks after bars


def end_threads(before: set[threading.Thread]) -> None:
    """Ends the threads of Streaming's data sets; every other one that is new is to be ended by its test."""
    for iterator in list(Round.made):
        iterator.non_blocking_exit()
    for pool in list(Pool.made):
        pool.shutdown(wait=False)
    deadline = time.monotonic() + 10
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, f'threads left behind: {sorted(thread.name for thread in left)}'
        time.sleep(0.05)
