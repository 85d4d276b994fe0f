"""What the ranks of a run have to agree on: an error of one ends all, and what must be the same on each is compared.

A rank that stops alone leaves the others waiting in their next collective until it times out, with a message about
that; and nodes with disks of their own may hold other data, or another source, of the same shapes.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist

__all__ = ['from_rank_0', 'is_so_on_any', 'joined_ranks', 'raised_together', 'refuse_differences', 'this_rank']

T = TypeVar('T')
LONGEST_WAIT = datetime.timedelta(days=7)  # the others wait while rank 0 works alone; one that dies ends them at once

# Seconds. Torch 2.7's gloo, ended right after a collective, waited for ever in 3 of 10 tries, with a barrier too.
SETTLING = 1.0


@contextlib.contextmanager
def joined_ranks(ranks: int, device: str) -> Iterator[None]:
    """Makes the processes that a launcher such as torchrun started one group for the block; one alone needs none.

    Args:
        ranks (int): How many there are.
        device (str): Of this one. Tensors on GPUs are added up by nccl, all else by gloo.
    """
    if ranks == 1:
        yield
        return
    on_gpu = device.startswith('cuda')
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group('cpu:gloo,cuda:nccl' if on_gpu else 'gloo', timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        time.sleep(SETTLING)
        dist.destroy_process_group()


def this_rank() -> tuple[int, int]:
    """The number of this process among the ranks, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextlib.contextmanager
def raised_together() -> Iterator[None]:
    """Raises what the block raises on one rank on all of them. A collective, which the block must not contain.

    Raises:
        ValueError: On the ranks where nothing was raised, with the message of the first other one.
    """
    problem = None
    try:
        yield
    except Exception as error:  # of any kind, to be raised again
        problem = error
    told = _gather(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    for place, message in told:
        if message is not None:
            raise ValueError(f'On {place}: {message}')


def from_rank_0(function: Callable[[], T]) -> T:
    """What a function returns on rank 0, or raises there, on every rank; called on rank 0 alone. A collective."""
    result: list[Any] = [None]
    with raised_together():
        if not dist.is_initialized() or dist.get_rank() == 0:
            result = [function()]
    return _gather(result[0])[0][1]


def is_so_on_any(value: bool) -> bool:
    """Whether a value is true on any rank. A collective."""
    return any(other for _, other in _gather(value))


def refuse_differences(values: Mapping[str, Any], remedy: str) -> None:
    """Compares values over ranks. A collective.

    Args:
        values (Mapping[str, Any]): This rank's, by what they are of, for the message; small, and of plain types.
        remedy (str): What to do, for the message.

    Raises:
        ValueError: On every rank, if one has other values than rank 0, naming both.
    """
    (first_place, first), *others = _gather(dict(values))
    for place, other in others:
        for name in [*first, *other]:
            if other.get(name) != first.get(name):
                raise ValueError(
                    f'{name}: {other.get(name, "none")} on {place}, {first.get(name, "none")} on {first_place}; '
                    f'{remedy}.'
                )


def _gather(value: Any) -> list[tuple[str, Any]]:
    """Where each rank is, and its value."""
    if not dist.is_initialized():
        return [('rank 0', value)]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (f'rank {dist.get_rank()} ({platform.node()})', value))
    return gathered
