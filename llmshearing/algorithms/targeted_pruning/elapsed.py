"""Times of the pruning schedule: which may be given, and how much of one has passed.

A run whose ``max_duration`` is in epochs, and a time given in epochs, move with every batch, as they do for Composer's
learning-rate schedulers. Composer's own elapsed duration stands still until an epoch ends, so that a warm-up over a
fifth of a one-epoch run would never begin.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from composer.core import State, Time, TimeUnit
from composer.utils import dist

__all__ = ['elapsed_share', 'reaches_end', 'schedule_time']

UNITS = (TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN, TimeUnit.EPOCH, TimeUnit.DURATION)


def schedule_time(name: str, value: Any) -> Time:
    """A time of the schedule, in one of :data:`UNITS`.

    Raises:
        ValueError: If it is no time, below zero, or in another unit.
    """
    try:
        time = Time.from_input(value)
    except (ValueError, TypeError, RuntimeError):  # of Composer, for parts of whole units and numbers without one
        time = None
    if time is None or time.value < 0 or time.unit not in UNITS:
        raise ValueError(
            f'{name}={value!r} is not possible; give a time of at least 0 in one of '
            f'{", ".join(unit.value for unit in UNITS)}, such as 640ba or 0.2dur.'
        )
    return time


def elapsed_share(state: State, duration: str | Time) -> float:
    """How much of ``duration`` has passed since the run began, 0 and up.

    Args:
        state (State): Read for its timestamp, its max_duration (``duration`` in ``dur``), and the number of batches of
            an epoch (``duration`` or max_duration in ``ep``).
        duration (str | Time): In one of :data:`UNITS`.

    Raises:
        ValueError: If max_duration or the length of an epoch is needed and not known.
    """
    duration = Time.from_input(duration)
    if duration.value <= 0:
        return 1.0
    if duration.unit != TimeUnit.DURATION:
        return _share(state, duration, duration)
    whole = state.max_duration
    if whole is None or whole.unit == TimeUnit.ITERATION:
        raise ValueError(
            f'a time of {duration.to_timestring()} needs a max_duration in ba, sp, tok, ep or sec, and it is '
            f'{_describe(whole)}; set one, or give the time in batches (ba).'
        )
    return _share(state, whole, duration) / duration.value


def reaches_end(state: State, duration: str | Time) -> bool:
    """Whether ``duration`` is over when the last batch begins, whose masks are the run's last.

    Units are compared by what a batch is in each. Where nobody knows that of the run's, the time only has to end before
    the run; where one of two units is not known, that it does is taken for granted.
    """
    duration, whole = Time.from_input(duration), state.max_duration
    if whole is None:
        return duration.unit != TimeUnit.DURATION or duration.value < 1
    batch, own = _batch(state, whole.unit), _batch(state, duration.unit)
    last = whole.value if batch is None else (math.ceil(whole.value / batch) - 1) * batch
    end = {TimeUnit.DURATION: float(last / whole.value), whole.unit: last}.get(duration.unit)
    if end is None:
        if batch is None or own is None:
            return True
        end = last / batch * own
    return duration.value < end or (batch is not None and duration.value == end)


def _batch(state: State, unit: TimeUnit) -> Fraction | None:
    """How much a whole batch of all ranks is in ``unit``; None where that is not known."""
    if unit == TimeUnit.BATCH:
        return Fraction(1)
    if unit == TimeUnit.EPOCH:
        return None if state.dataloader_len is None else Fraction(1, int(state.dataloader_len))
    samples = (getattr(state.train_dataloader, 'batch_size', None) or 0) * dist.get_world_size()
    length = getattr(getattr(state.train_dataloader, 'dataset', None), 'max_seq_len', None) or 0
    known = {TimeUnit.SAMPLE: samples, TimeUnit.TOKEN: samples * length}.get(unit)
    return Fraction(known) if known else None


def _share(state: State, whole: Time, duration: Time) -> float:
    """Share of ``whole`` that has passed; ``duration`` is named in the message."""
    passed = state.timestamp.get(whole.unit).value
    if whole.unit != TimeUnit.EPOCH:
        return passed / whole.value
    if state.dataloader_len is None:
        raise ValueError(
            f'a time of {duration.to_timestring()} with max_duration {_describe(state.max_duration)} needs the number '
            'of batches in an epoch, and the training data does not tell it; give the time in batches (ba), samples '
            '(sp) or tokens (tok), or set train_subset_num_batches.'
        )
    length = int(state.dataloader_len)
    return (passed * length + state.timestamp.batch_in_epoch.value) / (length * whole.value)


def _describe(time: Time | None) -> str | None:
    return None if time is None else time.to_timestring()
