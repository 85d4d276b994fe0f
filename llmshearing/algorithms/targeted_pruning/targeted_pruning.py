"""``targeted_pruning``: the Composer Algorithm that learns which units of a model to keep.

The algorithm owns the masks: it draws them before each batch, hands them to the model, collects their gradients after
the backward passes, averages those over ranks, and steps its own optimizer. The model knows nothing of constraints, and
the masks are in no module tree, so neither sharding nor gradient clipping nor mixed precision touches them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from composer.core import Algorithm, Event, Precision, State, Time, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from llmshearing.algorithms.targeted_pruning.agreement import take_from_rank_0
from llmshearing.algorithms.targeted_pruning.calibration_batches import calibration_batches
from llmshearing.algorithms.targeted_pruning.elapsed import elapsed_share, reaches_end, read_time
from llmshearing.algorithms.targeted_pruning.unused_parameters import add_missing_gradients
from llmshearing.masks.axes import AxisPlan, plan_axes
from llmshearing.masks.compensation import Compensation
from llmshearing.masks.constraints import SparsityConstraint, overall_sparsity
from llmshearing.masks.lagrangian import LagrangianMasks
from llmshearing.masks.learner import AxisReport, MaskLearner, axis_reports
from llmshearing.masks.progressive import ProgressiveMasks
from llmshearing.masks.scores import METHODS, Calibration, importance, method_by_axis
from llmshearing.masks.sparsity_target import SparsityTarget, plan_open_axes, read_sparsity_target
from llmshearing.masks.state import KIND, STATE_VERSION
from llmshearing.masks.widths import describe_widths, layer_widths
from llmshearing.models.shapes import ModelShape
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from llmshearing.models.targets import target_shape
from llmshearing.models.units import AXES
from llmshearing.utils.checks import one_of, within

__all__ = ['TargetedPruning', 'find_pruning']

log = logging.getLogger(__name__)

MASK_LEARNING = ('lagrangian', 'progressive', 'one_shot')
EVAL_MASKS = ('expected', 'target')


def find_pruning(state: State) -> TargetedPruning | None:
    """The run's pruning algorithm, or None."""
    return next((algorithm for algorithm in state.algorithms if isinstance(algorithm, TargetedPruning)), None)


class TargetedPruning(Algorithm):
    """Prunes a :class:`ShearedCausalLM` to exactly a target shape while it trains.

    Args:
        target (Mapping[str, Any]): Shape to reach, under Hugging Face names (``num_hidden_layers``, ``hidden_size``,
            ``num_attention_heads``, ``num_key_value_heads``, ``intermediate_size``); what is left out stays. Or a
            ``fraction`` of each, or a budget (``params``, ``size``): see
            :func:`~llmshearing.models.targets.target_shape`. Or ``sparsity`` alone, which leaves the shape of every
            layer to training and does not export: see
            :func:`~llmshearing.masks.sparsity_target.read_sparsity_target`.
        mask_learning (str): ``'lagrangian'``: hard concrete gates under Lagrangian constraints, the paper's way;
            ``'progressive'``: kept counts follow the warm-up and the least important units go; ``'one_shot'``: the
            target's best-scored units from the first batch on. Default: ``'progressive'``.
        scores (str | Mapping[str, str] | None): How units are scored before the first batch, one method
            (:data:`~llmshearing.masks.scores.METHODS`) or one per axis: the order in which
            gates start, the first importance of ``progressive``, and the decision of ``one_shot`` (which needs it).
            Default: ``None``, random order.
        calibration_batches (int): Evaluation batches on every rank that scores are computed from. Default: ``8``.
        lagrangian_warmup (str | Time): How long the target sparsity takes to rise from ``start_sparsity`` to the final
            one. Default: ``'0.2dur'``, as in the paper.
        start_sparsity (float): Fraction removed that the warm-up starts from. Default: ``0.0``.
        fade (float): With ``progressive``, the share of the warm-up during which the mask of a unit that goes falls
            from one to zero; 0 removes it at once. Default: ``0.0``.
        compensate (bool): When units go, change the weights that read them so that the units that stay take over what
            can be told from them: see :mod:`~llmshearing.masks.compensation`. With
            ``progressive`` and ``one_shot``, which then cuts after its first batch. Default: ``False``.
        learning_rate (float): AdamW learning rate of the masks. Default: ``1.0``, as in the paper.
        multiplier_learning_rate (float): AdamW learning rate of the multipliers, which ascend. Default: ``1.0``.
        multiplier_damping (float): How strongly lambda answers to the change of the gap between expected and target
            sparsity, which keeps the counts from overshooting; 0 is the paper's rule. Default: ``20.0``.
        follow_schedule (bool): Scale both rates with the weights' learning-rate schedule. Default: ``True``.
        freeze_masks_after (str | Time | None): From then on the masks are fixed to exactly the target's units and only
            the weights train. Default: ``None``, never before the end.
        freeze_weights (bool): Train masks only. Default: ``False``.
        eval_masks (str): Masks of evaluations: ``'expected'`` number of units or exactly the ``'target'``'s.
            Default: ``'expected'``.
        multiple_of (int): Round kept intermediate counts up while training, for aligned matrix
            products. Default: ``1``.
        tolerance (float): Expected counts may end this fraction away from the target. Default: ``0.05``.
        seed (int): Seeds the start and the noise. Default: ``17``.

    Raises:
        ValueError: For values out of range here, and at the start of the run for a target that the source cannot reach.
    """

    def __init__(
        self,
        target: Mapping[str, Any],
        mask_learning: str = 'progressive',
        scores: str | Mapping[str, str] | None = None,
        calibration_batches: int = 8,
        lagrangian_warmup: str | Time = '0.2dur',
        start_sparsity: float = 0.0,
        fade: float = 0.0,
        compensate: bool = False,
        learning_rate: float = 1.0,
        multiplier_learning_rate: float = 1.0,
        multiplier_damping: float = 20.0,
        follow_schedule: bool = True,
        freeze_masks_after: str | Time | None = None,
        freeze_weights: bool = False,
        eval_masks: str = 'expected',
        multiple_of: int = 1,
        tolerance: float = 0.05,
        seed: int = 17,
    ):
        self.target_settings = dict(target)
        self.mask_learning = one_of('mask_learning', mask_learning, MASK_LEARNING)
        if mask_learning == 'one_shot' and scores is None:
            raise ValueError(f'mask_learning: one_shot decides by scores; set scores to one of {", ".join(METHODS)}.')
        self.scores = scores
        method_by_axis(scores or {}, dict.fromkeys(AXES))  # refuses unknown names here
        self.calibration_batches = int(within('calibration_batches', calibration_batches, 1, 10**6))
        self.lagrangian_warmup = read_time('lagrangian_warmup', lagrangian_warmup)
        self.start_sparsity = within('start_sparsity', start_sparsity, 0.0, 0.99)
        self.fade = within('fade', fade, 0.0, 0.95)
        self.compensate = compensate
        if compensate and (mask_learning == 'lagrangian' or fade > 0 or start_sparsity > 0):
            raise ValueError(
                f'compensate: true with mask_learning: {mask_learning}, fade: {fade} and start_sparsity: '
                f'{start_sparsity} is not possible: it needs units that are there until they go for good; use '
                'progressive or one_shot, fade: 0 and start_sparsity: 0.'
            )
        self.learning_rate = within('learning_rate', learning_rate, 0.0, 100.0)
        self.multiplier_learning_rate = within('multiplier_learning_rate', multiplier_learning_rate, 0.0, 100.0)
        self.multiplier_damping = within('multiplier_damping', multiplier_damping, 0.0, 1000.0)
        self.follow_schedule = follow_schedule
        self.freeze_masks_after = (
            None if freeze_masks_after is None else read_time('freeze_masks_after', freeze_masks_after)
        )
        self.freeze_weights = freeze_weights
        self.eval_masks = one_of('eval_masks', eval_masks, EVAL_MASKS)
        self.multiple_of = int(within('multiple_of', multiple_of, 1, 4096))
        self.tolerance = within('tolerance', tolerance, 0.0, 1.0)
        self.seed = seed
        if 'sparsity' in self.target_settings and (mask_learning != 'lagrangian' or eval_masks == 'target'):
            raise ValueError(
                f'target: {{sparsity: ...}} with mask_learning: {mask_learning} and eval_masks: {eval_masks} is not '
                'possible: only learned masks find widths of their own, and there is no shape to cut to; use '
                'lagrangian and expected.'
            )
        # Known once the run has a model.
        self.source: ModelShape | None = None
        self.target: ModelShape | SparsityTarget | None = None
        self.plans: dict[str, AxisPlan] = {}
        self.learner: MaskLearner | None = None
        self.frozen_masks: dict[str, Tensor] | None = None
        # Of the batch in progress, which Composer may run several times (automatic micro-batch size, out of memory).
        self._drawn: tuple[int | None, dict[str, Tensor]] = (None, {})
        self._updated: int | None = None
        self._watching: Compensation | None = None

    @property
    def find_unused_parameters(self) -> bool:
        """Masked layers are not run, so their parameters may be unused in a batch."""
        return True

    def match(self, event: Event, state: State) -> bool:
        return event in (
            Event.INIT,
            Event.FIT_START,
            Event.BEFORE_TRAIN_BATCH,
            Event.AFTER_TRAIN_BATCH,
            Event.BATCH_END,
            Event.EVAL_START,
            Event.FIT_END,
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.INIT:
            self._prepare(state)
        elif event == Event.FIT_START:
            self._drawn, self._updated = (None, {}), None
            if self.mask_learning != 'one_shot':  # times that cannot be told are refused before the first step
                elapsed_share(state, self.lagrangian_warmup)
                self._is_frozen(state)
            if self.scores is not None and state.timestamp.batch.value == 0:
                self._start_from_scores(state)
        elif event == Event.BEFORE_TRAIN_BATCH:
            _model(state).cutter.set_masks(self.training_masks(state), self.multiple_of)
            self._watch(state)
        elif event == Event.AFTER_TRAIN_BATCH:
            add_missing_gradients(state.optimizers)
            if self._updated != state.timestamp.batch.value:  # once, however often the batch is tried again
                logger.log_metrics({f'pruning/{name}': value for name, value in self._update(state).items()})
                self._updated = state.timestamp.batch.value
        elif event == Event.BATCH_END:
            self._compensate(state)
        elif event == Event.EVAL_START:
            _model(state).cutter.set_masks(take_from_rank_0(self.evaluation_masks(), state.device))
            if self.has_open_widths:
                logger.log_metrics(self._width_metrics())
        elif event == Event.FIT_END:
            take_from_rank_0(self.learner.deciding(), state.device)  # before callbacks read the final masks
            if self.has_open_widths:
                logger.log_metrics(self._width_metrics())
                log.info('Widths of the layers:\n%s', describe_widths(layer_widths(self.final_masks(), self.source)))

    @property
    def has_open_widths(self) -> bool:
        """Whether the target is a sparsity alone, so that every layer finds its own widths."""
        return isinstance(self.target, SparsityTarget)

    def reaches_target(self, state: State) -> bool:
        """Whether the schedule is at the target when the run ends: warmed up, frozen, or there from the start."""
        ways = (self.lagrangian_warmup, self.freeze_masks_after)
        return self.mask_learning == 'one_shot' or any(way is not None and reaches_end(state, way) for way in ways)

    def training_masks(self, state: State) -> dict[str, Tensor]:
        """Masks of the coming batch by axis: drawn, or frozen when their time has come; rank 0's on every rank."""
        batch = state.timestamp.batch.value
        if self.frozen_masks is None and self._is_frozen(state):
            self.frozen_masks = take_from_rank_0(self.final_masks(), state.device)
            log.info('Masks are frozen to the target from batch %d on.', batch)
        if self.frozen_masks is not None:
            return self.frozen_masks
        if self.mask_learning == 'one_shot':  # uncut, for once
            return {axis: torch.ones(plan.mask_shape) for axis, plan in self.plans.items()}
        if self._drawn[0] != batch:
            drawn = self.learner.draw(batch, elapsed_share(state, self.lagrangian_warmup))
            self._drawn = (batch, take_from_rank_0(drawn, state.device))
        return self._drawn[1]

    def evaluation_masks(self) -> dict[str, Tensor]:
        """Masks without noise, as ``eval_masks`` says."""
        return self.learner.deterministic(self.eval_masks) if self.frozen_masks is None else self.frozen_masks

    def final_masks(self) -> dict[str, Tensor]:
        """Masks that keep exactly the target's units; where widths are open, the expected number of each row."""
        if self.frozen_masks is not None:
            return self.frozen_masks
        return self.learner.deterministic('expected' if self.has_open_widths else 'target')

    def reports(self) -> list[AxisReport]:
        """Target, expected and hard counts of every pruned axis."""
        return axis_reports(self.plans, self.learner.kept(), self.learner.hard_counts())

    def state_dict(self) -> dict[str, Any]:
        if self.learner is None:
            return {'kind': KIND, 'version': STATE_VERSION}
        return {
            'kind': KIND,
            'version': STATE_VERSION,
            'source': dataclasses.asdict(self.source),
            'target': dataclasses.asdict(self.target),
            'mask_learning': self.mask_learning,
            'learner': self.learner.state_dict(),
            'frozen_masks': self.frozen_masks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the masks.

        Raises:
            ValueError: If the state was saved by another version, for another source, target or way of learning masks.
        """
        own = {**self.state_dict(), 'learner': None, 'frozen_masks': None}
        differing = [key for key in ('version', 'source', 'target', 'mask_learning') if own.get(key) != state.get(key)]
        if differing:
            listed = '\n'.join(f'  - {key}: checkpoint {state.get(key)}, this run {own.get(key)}' for key in differing)
            raise ValueError(
                f'The checkpoint belongs to another pruning run; start anew or use its settings:\n{listed}'
            )
        self.learner.load_state_dict(state['learner'])
        self.frozen_masks = state['frozen_masks']

    def _prepare(self, state: State) -> None:
        model = _model(state)
        if state.precision == Precision.AMP_FP16:
            raise ValueError(
                'targeted_pruning does not work with precision amp_fp16 (scaled gradients); use amp_bf16 or fp32.'
            )
        self.source = model.cutter.shape
        self.target, constraints = read_sparsity_target(self.target_settings, self.source), None
        if self.has_open_widths:
            self.plans = plan_open_axes(self.source, self.target)
            constraints = [SparsityConstraint(self.source, self.target.sparsity)]
        else:
            self.target = target_shape(model.config, self.target_settings)
            layer_types = model.cutter.family.layer_types
            self.plans = plan_axes(self.source, self.target, layer_types(model.config) if layer_types else None)
        if not self.plans:
            raise ValueError(
                f'target equals the source ({self.source}): there is nothing to prune; lower at least one number.'
            )
        if self.mask_learning == 'lagrangian':
            self.learner = LagrangianMasks(
                self.plans,
                self.learning_rate,
                self.multiplier_learning_rate,
                self.multiplier_damping,
                self.start_sparsity,
                self.seed,
                constraints,
            )
        else:
            self.learner = ProgressiveMasks(self.plans, self.start_sparsity, self.seed, self.fade)
        if self.freeze_weights:
            model.requires_grad_(False)
        log.info('Pruning %s\n     to %s\n  along %s', self.source, self.target, ', '.join(self.plans))

    def _width_metrics(self) -> dict[str, float]:
        return {
            f'pruning/widths/layer_{widths.layer:02d}/{name}': getattr(widths, name)
            for widths in layer_widths(self.final_masks(), self.source)
            for name in ('heads', 'kv_heads', 'intermediate')
        }

    def _start_from_scores(self, state: State) -> None:
        model = _model(state)
        was_training = model.training
        model.eval()
        calibration = Calibration(
            model=model,
            batches=calibration_batches(state, self.calibration_batches),
            precision=lambda: get_precision_context(state.precision, state.precision_config),
            reduce=_average_over_ranks,
            seed=self.seed,
            microbatch_size=math.ceil(state.device_train_microbatch_size or 0) or None,
        )
        methods = method_by_axis(self.scores, self.plans)
        self.learner.start_from(importance(methods, calibration))
        model.train(was_training)
        if self.mask_learning == 'one_shot' and not self.compensate:
            self.frozen_masks = take_from_rank_0(self.learner.deterministic('target'), state.device)
        log.info('Scored units by %s on %d batches.', methods, self.calibration_batches)

    def _watch(self, state: State) -> None:
        if self._watching is not None:  # the batch is tried again
            self._watching.stop()
        self._watching = None
        is_done = self.mask_learning != 'one_shot' and elapsed_share(state, self.lagrangian_warmup) >= 1.0
        if self.compensate and self.frozen_masks is None and not is_done:
            self._watching = Compensation(_model(state), self.plans)

    def _compensate(self, state: State) -> None:
        """Makes the units that the coming batch keeps take over from those it does not; before it is evaluated."""
        if self._watching is not None:
            self._watching.stop()
            masks = self.training_masks(state)
            self._watching.apply(masks, _average_over_ranks)
            self._watching = None
            _model(state).cutter.set_masks(masks, self.multiple_of)  # the ones that the weights are now meant for

    def _is_frozen(self, state: State) -> bool:
        if self.mask_learning == 'one_shot':
            return self.compensate and state.timestamp.batch.value > 0
        return self.freeze_masks_after is not None and elapsed_share(state, self.freeze_masks_after) >= 1.0

    def _update(self, state: State) -> dict[str, float]:
        metrics = {}
        if self.frozen_masks is None and self.mask_learning != 'one_shot':
            gradients = _model(state).cutter.mask_gradients(reduce=_average_over_ranks)
            _check_finite(gradients, state)
            rate = _schedule_factor(state) if self.follow_schedule else 1.0
            metrics = self.learner.update(gradients, elapsed_share(state, self.lagrangian_warmup), rate)
        for report in self.reports():
            metrics[f'{report.axis}/expected'] = report.expected
            metrics[f'{report.axis}/hard'] = report.hard
        metrics['expected_sparsity'] = overall_sparsity(self.learner.kept(), self.source)
        return metrics


def _model(state: State) -> ShearedCausalLM:
    model = state.model.module if hasattr(state.model, 'module') else state.model
    if not isinstance(model, ShearedCausalLM):
        raise ValueError(
            f'targeted_pruning needs the model sheared_causal_lm, got {type(model).__name__}; '
            'set `model.name: sheared_causal_lm`.'
        )
    return model


def _average_over_ranks(gradient: Tensor) -> None:
    dist.all_reduce(gradient, reduce_operation='SUM')
    gradient.div_(dist.get_world_size())


def _schedule_factor(state: State) -> float:
    """The weights' learning rate as a fraction of its peak."""
    if not state.schedulers:
        return 1.0
    scheduler = state.schedulers[0]
    return scheduler.get_last_lr()[0] / scheduler.base_lrs[0] if scheduler.base_lrs[0] else 1.0


def _check_finite(gradients: Mapping[str, Tensor], state: State) -> None:
    broken = [axis for axis, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    if broken:
        raise RuntimeError(
            f'batch {state.timestamp.batch.value}: the gradient of the {", ".join(broken)} mask is not finite '
            'on some rank. The checkpoints saved so far are intact; resume from the last one with a lower '
            'learning rate or other data.'
        )
