"""``resume_settings``: what a resumed run takes from its YAML, and a word about what it does not.

Composer restores the optimizer with its learning rate, so a lower one in the YAML of a resumed run changes nothing, and
nobody is told. Here the optimizer's numbers are those of the YAML from the first resumed batch on; its moments go on.
What cannot change in the middle of a run is named once, with both values and the way to have it. The config transform
adds this callback to every run that saves or loads checkpoints.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from composer.core import State, Time, TimeUnit
from composer.loggers import Logger
from llmfoundry.interfaces import CallbackWithConfig

from llmshearing.algorithms.targeted_pruning import find_pruning
from llmshearing.callbacks.missed_end import make_up_missed_end
from llmshearing.checkpoints.shards import read_metadata
from llmshearing.config.parts import pruning_name
from llmshearing.config.resume import check_stage, resume_source

__all__ = ['ResumeSettings']

STATE_KEY = 'state.callbacks.ResumeSettings.settings'
PRUNES = 'prunes'  # beside the settings: whether masks belong to the weights
SCHEDULE = 'schedule'  # likewise: what the masks' way to the target goes by, as :func:`_schedule`
log = logging.getLogger(__name__)

NEW_RUN = 'start a new run, in another save_folder, with load_path: CHECKPOINT and load_weights_only: true'
FROM_SOURCE = 'start a new run from the source, in another save_folder'  # where weights alone would lose the masks
# Settings that a checkpoint decides, by dotted place, and the way to have them otherwise.
FROM_CHECKPOINT = {
    'seed': f'the random state goes on; {NEW_RUN}',
    'model.pretrained_model_name_or_path': 'the weights are those of the checkpoint; start a new run in another '
    'save_folder',
    'algorithms.targeted_pruning.scores': 'units were scored before the first batch; start anew in another save_folder',
    'algorithms.targeted_pruning.calibration_batches': 'units were scored before the first batch; start anew in '
    'another save_folder',
    'algorithms.targeted_pruning.seed': 'units were put in order before the first batch, and only the noise of '
    'lagrangian follows the new one; start anew in another save_folder',
    'train_loader.dataset.proportions': f'the mixture goes on from its weights; {NEW_RUN}',
}
# Settings that a run takes from its YAML at a price.
AS_CONFIGURED = {'optimizer.name': ', whose moments do not fit: they begin anew'}
LOADER = 'train_loader.name'


class ResumeSettings(CallbackWithConfig):
    """Gives a resumed optimizer the numbers of the YAML, and tells which settings stay as in the checkpoint.

    Args:
        train_config (dict[str, Any]): The run's configuration, given by llm-foundry.

    Raises:
        SystemExit: With 0, if the checkpoint is of the run's end and the export that was missing is there now.
        ValueError: If it is of the end and nothing was missing, and if one that pruned is to go on without masks or the
            reverse.
    """

    def __init__(self, train_config: dict[str, Any]) -> None:
        self._own = {place: _setting(train_config, place) for place in (*FROM_CHECKPOINT, *AS_CONFIGURED, LOADER)}
        self._prunes = pruning_name(train_config) is not None
        self._saved: dict[str, Any] = {}
        self._schedule: dict[str, Any] = {}
        self._saved_schedule: dict[str, Any] = {}
        self._checkpoint = _checkpoint_of(train_config)
        self._is_noted = _is_noted_in(self._checkpoint)
        self._trains = not (train_config.get('only_hf_checkpoint') or train_config.get('only_composer_checkpoint'))
        self._groups: list[dict[str, Any]] = []

    def before_load(self, state: State, logger: Logger) -> None:
        self._groups = [_numbers(group) for group in _groups(state)]

    def after_load(self, state: State, logger: Logger) -> None:
        self._is_noted = True  # from now on
        self._schedule = _schedule(state)
        if state.timestamp.batch.value == 0:  # not resumed
            return
        elapsed = state.get_elapsed_duration()
        if self._trains and elapsed is not None and elapsed.value >= 1:
            over = self._over(state, 'where' if elapsed.value == 1 else 'past where')
            try:
                if make_up_missed_end(state, logger):
                    raise SystemExit(0)  # nothing is left to train, which is an error to Composer
            except ValueError as error:
                raise ValueError(f'{over} It was not exported: {error}') from error
            raise ValueError(over)
        changed: dict[str, tuple[Any, Any]] = {}
        schedule = next((one['lr'] / one['initial_lr'] for one in _groups(state) if one.get('initial_lr')), 1.0)
        for group, own in zip(_groups(state), self._groups):
            saved = _numbers(group)
            for key in own:  # a group that the checkpoint does not have comes without numbers
                if own[key] != saved.get(key):
                    if key in saved:
                        changed.setdefault(f'optimizer.{key}', (saved[key], own[key]))
                    _set(group, key, own[key], schedule)
        for scheduler in state.schedulers:
            scheduler.base_lrs = [own['lr'] for own in self._groups]
        differing = {place: (was, self._own[place]) for place, was in self._saved.items() if was != self._own[place]}
        kept = {place: both for place, both in differing.items() if place in FROM_CHECKPOINT}
        changed |= {place: both for place, both in differing.items() if place in AS_CONFIGURED}
        for place, (was, now) in changed.items():
            price = AS_CONFIGURED.get(place, '')
            log.warning('Resumed with %s: %s as configured now; the checkpoint had %s%s.', place, now, was, price)
        for place, (was, now) in kept.items():
            way = FROM_CHECKPOINT[place]
            way = way.replace(NEW_RUN, FROM_SOURCE) if self._prunes else way
            log.warning('Resumed with %s: %s of the checkpoint, not %s: %s.', place, was, now, way)
        self._tell_schedule(state)

    def _tell_schedule(self, state: State) -> None:
        pruning, now, was = find_pruning(state), self._schedule, self._saved_schedule
        moved = [key for key in now if key in was and now[key] != was[key]]
        if pruning is not None and pruning.frozen_masks is None:
            moved = [key for key in moved if key != 'compensate']  # what goes from now on follows it
        if pruning is None or not moved:
            return
        if pruning.frozen_masks is not None:
            for key in moved:
                if key != 'max_duration':  # more to train, which is no wish for other masks
                    place = f'algorithms.targeted_pruning.{key}'
                    why = 'masks are frozen; start anew in another save_folder'
                    log.warning('Resumed with %s: %s of the checkpoint, not %s: %s.', place, was[key], now[key], why)
            return
        log.warning(
            'Resumed with %s as configured now; the checkpoint had %s. So the pruning schedule moved: %s.',
            ', '.join(f'{key}: {now[key]}' for key in moved),
            ', '.join(f'{key}: {was[key]}' for key in moved),
            'units that went stay gone'
            if pruning.learner.removes_for_good
            else 'the target that masks are held to may have stepped back',
        )

    def _over(self, state: State, where: str = 'where') -> str:
        duration = state.max_duration
        assert duration is not None  # else nothing would be over
        return (
            f'The checkpoint is of batch {state.timestamp.batch.value}, {where} max_duration: '
            f'{duration.to_timestring()} ends: nothing is left to train. To train on, give a longer '
            f'max_duration; for the model as it is: llmshearing export {self._checkpoint or "CHECKPOINT"} --out FOLDER.'
        )

    def state_dict(self) -> dict[str, Any]:
        """Settings as one text.

        A sharded checkpoint is loaded only into the very keys that it holds, and into none where it was written before
        this callback was there.
        """
        return (
            {'settings': json.dumps({**self._own, PRUNES: self._prunes, SCHEDULE: self._schedule})}
            if self._is_noted
            else {}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps what the checkpoint was trained with, to be compared once everything is loaded."""
        saved = json.loads(state.get('settings', '{}'))
        if PRUNES in saved:  # one on this machine was refused before it was loaded
            check_stage(self._checkpoint or 'load_path', saved[PRUNES], self._prunes)
        loader, own = saved.get(LOADER), self._own[LOADER]
        if loader not in (None, own):
            raise ValueError(
                f'train_loader.name: {own} cannot go on where the {loader} of the checkpoint was in its data. Set it '
                f'back, or {FROM_SOURCE if self._prunes else NEW_RUN}.'
            )
        self._saved_schedule = saved.get(SCHEDULE, {})
        self._saved = {place: value for place, value in saved.items() if place in self._own}


def _checkpoint_of(config: dict[str, Any]) -> Path | None:
    """What a run goes on from: by either link, as llm-foundry notes no fsdp_config of a run of one process."""
    by_link = {**config, 'load_path': None}
    sharded = {**by_link, 'fsdp_config': {'state_dict_type': 'sharded'}}
    return resume_source(sharded) or resume_source(by_link) or resume_source(config)


def _is_noted_in(checkpoint: Path | None) -> bool:
    if checkpoint is None or not checkpoint.is_dir():
        return False
    return STATE_KEY in read_metadata(checkpoint).state_dict_metadata


def _setting(config: Any, place: str) -> Any:
    for key in place.split('.'):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _schedule(state: State) -> dict[str, Any]:
    """Settings that say where the masks should be by now; the run's length only where a time is a share of it."""
    pruning = find_pruning(state)
    if pruning is None:
        return {}
    settings, whole = pruning.settings, state.max_duration
    if not pruning.learner.follows_warmup:
        return {'compensate': settings.compensate}
    given = {'warmup': settings.warmup, 'freeze_masks_after': settings.freeze_masks_after}
    times = {key: Time.from_input(time) for key, time in given.items() if time is not None}
    schedule: dict[str, Any] = dict.fromkeys(given) | {key: time.to_timestring() for key, time in times.items()}
    schedule |= {'start_sparsity': settings.start_sparsity, 'fade': settings.fade, 'compensate': settings.compensate}
    if whole is not None and any(time.unit == TimeUnit.DURATION for time in times.values()):
        schedule['max_duration'] = whole.to_timestring()
    return schedule


def _groups(state: State) -> Iterator[dict[str, Any]]:
    for optimizer in state.optimizers:
        yield from optimizer.param_groups


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group; ``lr`` is the one before any schedule."""
    numbers = {key: value for key, value in group.items() if isinstance(value, (bool, int, float, tuple, list))}
    numbers = {key: tuple(value) if isinstance(value, list) else value for key, value in numbers.items()}
    numbers.pop('params', None)
    if 'initial_lr' in numbers:
        numbers['lr'] = numbers.pop('initial_lr')
    return numbers


def _set(group: dict[str, Any], key: str, value: Any, schedule: float) -> None:
    if key != 'lr':
        group[key] = value
        return
    group['lr'] = value * schedule  # where it is now
    group['initial_lr'] = value
