"""Times of a configuration: what they may be, and how they lie to the length of the run.

Composer takes a number for epochs. With ``dynamic_text`` an epoch is one mixing round, so ``max_duration: 10`` is ten
rounds and not ten batches or ten passes over the data: said of every time that is so written, before such a run starts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from llmshearing.config.tree import walk

if TYPE_CHECKING:
    from composer.core import Time

__all__ = ['check_time', 'check_times', 'check_warmup', 'check_within_run', 'describe_epochs']

log = logging.getLogger(__name__)

# Schedulers that hold the warm-up against the end.
COMPARING = ('constant_with_warmup', 'cosine_with_warmup', 'linear_decay_with_warmup')
# Dotted places of times within a run, and whether they are above 0. A checkpoint is written at the end in any case.
WITHIN_RUN = (
    ('eval_interval', False),
    ('save_interval', True),
    ('console_log_interval', True),
    ('scheduler.t_scale', True),
    ('scheduler.t_*', False),
    ('algorithms.targeted_pruning.*warmup', False),
    ('algorithms.targeted_pruning.freeze_masks_after', False),
    ('callbacks.*.interval', True),
    ('callbacks.*.save_interval', True),
    ('callbacks.early_stopper.patience', False),
    ('callbacks.curriculum_learning.schedule.duration', True),
)
EXPECTED = 'expected a time such as 100ba, 1ep or 0.1dur'


def _read_time(key: str, value: Any) -> Time:
    """A time of a YAML.

    Raises:
        ValueError: If it is none.
    """
    from composer.core import Time, TimeUnit

    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f'{key}: {EXPECTED}, got {value!r}.')
    try:
        return Time.from_input(value, TimeUnit.EPOCH)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f'{key}: {EXPECTED}, got {value!r} ({error}).') from error


def check_time(key: str, value: Any, above_zero: bool = False, units: tuple[str, ...] = ()) -> None:
    """Refuses what is no time, is below zero, or has a unit that does not work there."""
    time = _read_time(key, value)
    if time.value < 0 or (above_zero and time.value == 0):
        raise ValueError(f'{key}: expected a time {"above" if above_zero else "of at least"} 0, got {value!r}.')
    if units and time.unit.value not in units:
        raise ValueError(f'{key}: expected a time in {" or ".join(units)}, got {value!r}.')


def check_times(config: Mapping[str, Any]) -> None:
    """Checks every time of a configuration by itself and against the length of the run, and tells what epochs are.

    Args:
        config (Mapping[str, Any]): A whole llm-foundry training configuration; its ``max_duration`` is valid.

    Raises:
        ValueError: For what is no time, below what is possible there, or more than the run.
    """
    loader = config.get('train_loader') or {}
    is_mixed = loader.get('name') == 'dynamic_text' and isinstance(loader.get('dataset'), Mapping)
    batches = loader['dataset'].get('round_batches') if is_mixed else None
    for entry in walk(config):
        above_zero = next((above for pattern, above in WITHIN_RUN if fnmatchcase(entry.place, pattern)), None)
        key, value = entry.shown, entry.value
        if above_zero is None or value is None:
            continue
        check_time(key, value, above_zero and (key != 'save_interval' or bool(config.get('save_folder'))))
        check_within_run(key, value, config['max_duration'])
        time = _read_time(key, value)
        if key != 'eval_interval' and time.unit.value == 'ep' and time.value and isinstance(batches, int):
            log.warning(
                '%s: %s is %d batches: an epoch of dynamic_text is one mixing round and not a pass over the data. '
                'Write %dba to say so.',
                key,
                value,
                time.value * batches,
                time.value * batches,
            )


def check_within_run(key: str, value: Any, max_duration: Any) -> None:
    """Refuses a part of the run that is more than the whole, and tells of a time that the run does not come to.

    The second is not refused: a short trial of a long run, with ``max_duration`` on the command line, is like that.

    Args:
        key (str): Place in the configuration, for the message.
        value (Any): A valid time.
        max_duration (Any): Length of the run; times in another unit than its own cannot be compared and pass.

    Raises:
        ValueError: If it is more than ``1dur``.
    """
    time, end = _read_time(key, value), _read_time('max_duration', max_duration)
    if time.unit.value == 'dur' and time.value > 1:
        raise ValueError(f'{key}: {value} is longer than the run, so it would never come; give less than 1dur.')
    if time.unit == end.unit and time.value > end.value:
        log.warning('%s: %s does not come, because the run ends after %s.', key, value, max_duration)


def check_warmup(scheduler: Mapping[str, Any], max_duration: Any) -> None:
    """Refuses a warm-up that Composer cannot compare with the time at which the learning rate ends.

    Args:
        scheduler (Mapping[str, Any]): The section; its times are valid.
        max_duration (Any): Length of the run.

    Raises:
        ValueError: If one is counted in another unit than the other.
    """
    name, warmup = scheduler.get('name'), scheduler.get('t_warmup')
    if warmup is None or name not in COMPARING:
        return
    end = scheduler.get('t_max', '1dur')
    whole = _read_time('max_duration', max_duration).unit.value
    units = [_read_time(f'scheduler.{key}', time).unit.value for key, time in (('t_warmup', warmup), ('t_max', end))]
    units = [whole if unit == 'dur' else unit for unit in units]
    counted = ['ba' if unit == 'ep' else unit for unit in units]  # Composer counts the batches of epochs
    if counted[0] != counted[1]:
        ends = f'max_duration: {max_duration}' if 't_max' not in scheduler else f't_max: {end}'
        raise ValueError(
            f'scheduler.t_warmup: {warmup} is in {units[0]}, and {ends}, where the learning rate of {name} ends, in '
            f'{units[1]}; write a time in {units[1]}, or a part of the run such as 0.1dur.'
        )


def describe_epochs(config: Mapping[str, Any]) -> str | None:
    """A sentence on how many batches a run of epochs has, or None if its length is given in another unit.

    Args:
        config (Mapping[str, Any]): A checked configuration whose ``train_loader`` is ``dynamic_text``.
    """
    duration = _read_time('max_duration', config['max_duration'])
    batches = config['train_loader']['dataset'].get('round_batches')
    if duration.unit.value != 'ep' or not isinstance(batches, int):
        return None
    return (
        f'max_duration: {config["max_duration"]} ends after {duration.value * batches} batches: an epoch of '
        f'dynamic_text is one mixing round, here {batches} batches, and not a pass over the data. Give batches '
        f'({duration.value * batches}ba) or tokens (1e9tok) to say how long to train.'
    )
