"""``targeted_pruning``: the Composer Algorithm that learns which units of a model to keep.

The algorithm owns the masks: it draws them before each batch, hands them to the model, collects their gradients after
the backward passes, averages those over ranks, and steps its own optimizer. The model knows nothing of constraints, and
the masks are in no module tree, so neither sharding nor gradient clipping nor mixed precision touches them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from llmshearing.algorithms.targeted_pruning.agreement import (
    average_mask_gradients,
    average_over_ranks,
    take_from_rank_0,
)
from llmshearing.algorithms.targeted_pruning.calibration import calibrate, compensate_cut
from llmshearing.algorithms.targeted_pruning.elapsed import elapsed_share, reaches_end
from llmshearing.algorithms.targeted_pruning.settings import PruningSettings
from llmshearing.algorithms.targeted_pruning.unused_parameters import add_missing_gradients
from llmshearing.checkpoints.identity import refuse_other_sources
from llmshearing.compat.composer import unwrapped
from llmshearing.masks.compensation import Compensation
from llmshearing.masks.constraints import SparsityConstraint, overall_sparsity
from llmshearing.masks.learner import build_learner
from llmshearing.masks.sparsity_target import read_sparsity_target
from llmshearing.masks.state import PruningState, plan_masks
from llmshearing.masks.widths import describe_widths, layer_widths, width_metrics
from llmshearing.metrics.names import PRUNING
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from llmshearing.models.source_files import read_source_files
from llmshearing.models.targets import target_shape
from llmshearing.models.units import LayerCounts
from llmshearing.utils.checks import check_precision

__all__ = ['TargetedPruning', 'find_pruning']

log = logging.getLogger(__name__)

EVENTS = (
    Event.INIT,
    Event.FIT_START,
    Event.BEFORE_TRAIN_BATCH,
    Event.AFTER_TRAIN_BATCH,
    Event.BATCH_END,
    Event.EVAL_START,
    Event.FIT_END,
)


def find_pruning(state: State) -> TargetedPruning | None:
    """The run's pruning algorithm, or None."""
    return next((algorithm for algorithm in state.algorithms if isinstance(algorithm, TargetedPruning)), None)


class TargetedPruning(PruningState, Algorithm):
    """Prunes a :class:`ShearedCausalLM` to exactly a target shape while it trains.

    Args:
        target (Mapping[str, Any]): Shape to reach.
        **settings (Any): The other keys of
            :class:`~llmshearing.algorithms.targeted_pruning.settings.PruningSettings`, by name.

    Raises:
        ValueError: For settings that are not possible here, and at the start of the run for a target that the source
            cannot reach.

    Attributes:
        settings (PruningSettings): As given; what the run knows of its masks is that of
            :class:`~llmshearing.masks.state.PruningState`.
    """

    @functools.wraps(PruningSettings.__init__)  # llm-foundry and our checks of a YAML read the keys off the signature
    def __init__(self, *args: Any, **settings: Any):
        self.settings = PruningSettings(*args, **settings)
        PruningState.__init__(self, self.settings.mask_learning)
        # Of the batch in progress, which Composer may run several times (automatic micro-batch size, out of memory).
        self._drawn: tuple[int | None, dict[str, Tensor]] = (None, {})
        self._updated: int | None = None
        self._watching: Compensation | None = None
        self._may_be_unscored = True  # until training begins

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.__qualname__ = TargetedPruning.__qualname__  # under which Composer saves and looks for an algorithm's state

    @property
    def find_unused_parameters(self) -> bool:
        """Masked layers are not run, so their parameters may be unused in a batch."""
        return True

    def match(self, event: Event, state: State) -> bool:
        return event in EVENTS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.INIT:
            self._prepare(state)
        elif event == Event.FIT_START:
            self._drawn, self._updated, self._may_be_unscored = (None, {}), None, False
            elapsed_share(state, self.settings.warmup)  # times that cannot be told are refused before the first step
            self._is_frozen(state)
            if state.timestamp.batch.value == 0:
                calibrate(self, state, _model(state), self.settings)
        elif event == Event.BEFORE_TRAIN_BATCH:
            was_cut, masks = self.frozen_masks is not None, self.training_masks(state)
            if self.settings.compensate and not (was_cut or self.learner.follows_warmup or state.timestamp.batch > 0):
                compensate_cut(self, state, _model(state), masks, self.settings.seed)
            self._install(state, masks, self.settings.multiple_of)
            self._watch(state)
        elif event == Event.AFTER_TRAIN_BATCH:
            add_missing_gradients(state.optimizers)
            if self._updated != state.timestamp.batch.value:  # once, however often the batch is tried again
                _log_metrics(logger, self._update(state))
                self._updated = state.timestamp.batch.value
        elif event == Event.BATCH_END:
            self._compensate(state)
        elif event == Event.EVAL_START:
            is_unscored = self._may_be_unscored and self.settings.scores is not None and state.timestamp.batch == 0
            masks = self._uncut() if is_unscored else self.evaluation_masks()  # uncut: nothing says yet what goes
            self._install(state, take_from_rank_0(masks, state.device))
            if self.has_open_widths:
                self._log_widths(logger)
        elif event == Event.FIT_END:
            take_from_rank_0(self.learner.mask_tensors(), state.device)  # before callbacks read the final masks
            if self.has_open_widths:
                log.info('Widths of the layers:\n%s', describe_widths(self._log_widths(logger)))

    def reaches_target(self, state: State) -> bool:
        """Whether the schedule is at the target when the run ends: warmed up, frozen, or there from the start."""
        ways = (self.settings.warmup, self.settings.freeze_masks_after)
        return not self.learner.follows_warmup or any(way is not None and reaches_end(state, way) for way in ways)

    def training_masks(self, state: State) -> dict[str, Tensor]:
        """Masks of the coming batch by axis: drawn, or frozen when their time has come; rank 0's on every rank."""
        batch = state.timestamp.batch.value
        if self.settings.compensate and self.learner.follows_warmup and batch == 0:
            return self._uncut()  # what units carry is seen before the first of them go
        if self.frozen_masks is None and self._is_frozen(state):
            self.frozen_masks = take_from_rank_0(self.final_masks(), state.device)
            log.info('Masks are frozen to the target from batch %d on.', batch)
        if self.frozen_masks is not None:
            return self.frozen_masks
        if self._drawn[0] != batch:
            drawn = self.learner.draw(batch, elapsed_share(state, self.settings.warmup))
            self._drawn = (batch, take_from_rank_0(drawn, state.device))
        return self._drawn[1]

    def evaluation_masks(self) -> dict[str, Tensor]:
        """Masks without noise, as ``eval_masks`` says."""
        return self.current_masks() if self.settings.eval_masks == 'expected' else self.final_masks()

    def _uncut(self) -> dict[str, Tensor]:
        return {axis: torch.ones(plan.mask_shape) for axis, plan in self.plans.items()}

    def _prepare(self, state: State) -> None:
        model, constraints = _model(state), None
        check_precision(state.precision.value)
        refuse_other_sources(model.source)
        self.source = model.cutter.shape
        self.origin = model.source, read_source_files(model.source, getattr(model.tokenizer, 'name_or_path', None))
        open_target = read_sparsity_target(self.settings.target, self.source)
        if open_target is None:
            self.target = target_shape(model.config, self.settings.target)
        else:
            self.target, constraints = open_target, [SparsityConstraint(self.source, open_target.sparsity)]
        self.plans = plan_masks(model.config, self.target)
        if not self.plans:
            raise ValueError(
                f'target equals the source ({self.source}): there is nothing to prune; lower at least one number.'
            )
        self.learner = build_learner(self.mask_learning, self.plans, self.settings, constraints)
        if self.settings.freeze_weights:
            model.requires_grad_(False)
        log.info('Pruning %s\n     to %s\n  along %s', self.source, self.target, ', '.join(self.plans))

    def _install(self, state: State, masks: Mapping[str, Tensor], multiple_of: int = 1) -> None:
        cutter = _model(state).cutter
        cutter.norm_energies = self.norm_energies
        learns = self.frozen_masks is None or self.settings.freeze_weights  # a loss must depend on something
        cutter.set_masks(masks, multiple_of, constant=not learns)

    def _log_widths(self, logger: Logger) -> list[LayerCounts]:
        widths = layer_widths(self.final_masks(), self.source)
        _log_metrics(logger, width_metrics(widths))
        return widths

    def _watch(self, state: State) -> None:
        if self._watching is not None:  # the batch is tried again
            self._watching.stop()
        self._watching = None
        may_cut = state.timestamp.batch.value == 0 or elapsed_share(state, self.settings.warmup) < 1.0
        if self.settings.compensate and self.frozen_masks is None and may_cut:
            self._watching = Compensation(_model(state).cutter, self.plans)

    def _compensate(self, state: State) -> None:
        """Makes the units that the coming batch keeps take over from those it does not; before it is evaluated."""
        if self._watching is not None:
            self._watching.stop()
            masks = self.training_masks(state)
            self._watching.apply(masks, average_over_ranks, dist.get_world_size())
            self._watching = None
            self._install(state, masks, self.settings.multiple_of)  # the ones that the weights are now meant for

    def _is_frozen(self, state: State) -> bool:
        after = self.settings.freeze_masks_after
        return not self.learner.follows_warmup or (after is not None and elapsed_share(state, after) >= 1.0)

    def _update(self, state: State) -> dict[str, float]:
        metrics = {}
        if self.frozen_masks is None:
            gradients = average_mask_gradients(_model(state).cutter, state.timestamp.batch.value)
            rate = _schedule_factor(state) if self.settings.follow_schedule else 1.0
            metrics = self.learner.update(gradients, elapsed_share(state, self.settings.warmup), rate)
        for report in self.reports():
            metrics[f'{report.axis}/expected'] = report.expected
            metrics[f'{report.axis}/hard'] = report.hard
        metrics['expected_sparsity'] = overall_sparsity(self.learner.expected_kept(), self.source)
        return metrics


def _model(state: State) -> ShearedCausalLM:
    model = unwrapped(state)
    if not isinstance(model, ShearedCausalLM):
        raise ValueError(
            f'targeted_pruning needs the model sheared_causal_lm, got {type(model).__name__}; '
            'set `model.name: sheared_causal_lm`.'
        )
    return model


def _log_metrics(logger: Logger, metrics: Mapping[str, float]) -> None:
    logger.log_metrics({f'{PRUNING}{name}': value for name, value in metrics.items()})


def _schedule_factor(state: State) -> float:
    """The weights' learning rate as a fraction of its peak."""
    if not state.schedulers:
        return 1.0
    scheduler = state.schedulers[0]
    return scheduler.get_last_lr()[0] / scheduler.base_lrs[0] if scheduler.base_lrs[0] else 1.0
