"""One item of each of several streams in turn, so that a part of the whole has something of all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

__all__ = ['interleave']

T = TypeVar('T')


def interleave(streams: Iterable[Iterable[T]]) -> Iterator[T]:
    """Items of the streams in turn, until all are at their end; each is read when it is asked for."""
    waiting = deque(map(iter, streams))
    while waiting:
        stream = waiting.popleft()
        for item in islice(stream, 1):
            yield item
            waiting.append(stream)
