"""The settings of ``targeted_pruning``: what each YAML key means, and which values go together."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping
from typing import Any

from composer.core import Time

from llmshearing.algorithms.targeted_pruning.elapsed import schedule_time
from llmshearing.masks.learner import LEARNER_KEYS, LearnerSettings, learner_class
from llmshearing.masks.scores import RECOMMENDED, method_by_axis
from llmshearing.models.units import AXES
from llmshearing.utils.checks import check_number, check_one_of

__all__ = ['PruningSettings']

log = logging.getLogger(__name__)

EVAL_MASKS = ('expected', 'target')
WARMUP = '0.2dur'
# Of numbers: the least and the largest value.
RANGES = {
    'calibration_batches': (1, 10**6),
    'start_sparsity': (0.0, 0.99),
    'fade': (0.0, 0.95),
    'learning_rate': (0.0, 100.0),
    'multiplier_learning_rate': (0.0, 100.0),
    'multiplier_damping': (0.0, 1000.0),
    'multiple_of': (1, 4096),
    'tolerance': (0.0, 1.0),
}


@dataclasses.dataclass
class PruningSettings(LearnerSettings):
    """All keys of ``targeted_pruning``; those of :class:`~llmshearing.masks.learner.LearnerSettings` are among them.

    Attributes:
        target (Mapping[str, Any]): Shape to reach, under Hugging Face names (``num_hidden_layers``, ``hidden_size``,
            ``num_attention_heads``, ``num_key_value_heads``, ``intermediate_size``, in a mixture ``num_experts``); what
            is left out stays. Or a ``fraction`` of each, or a budget (``params``, ``size``): see
            :func:`~llmshearing.models.targets.target_shape`. Or ``sparsity`` alone, which leaves the shape of every
            layer to training and does not export: see
            :func:`~llmshearing.masks.sparsity_target.read_sparsity_target`.
        mask_learning (str): A registered learner (:mod:`~llmshearing.masks.learner`). ``'lagrangian'``: hard concrete
            gates under Lagrangian constraints, the paper's way; ``'progressive'``: kept counts follow the warm-up and
            the least important units go; ``'one_shot'``: the target's best-scored units from the first batch on.
            Default: ``'progressive'``.
        scores (str | Mapping[str, str] | None): How units are scored before the first batch, one registered method
            (:mod:`~llmshearing.masks.scores`) or one per axis: the order in which gates start, the first importance
            of ``progressive`` (of hidden dimensions, for good), and the decision of ``one_shot``. ``None`` is a random
            order, the paper's way. Default: ``'recommended'``, where there is evaluation data:
            :data:`~llmshearing.masks.scores.RECOMMENDED_SCORES`, and ``position`` for hidden dimensions of a learned
            basis.
        calibration_batches (int): Batches of evaluation data, each as large as a training batch, that scores are
            computed from. Default: ``8``.
        warmup (str | Time): How long the target sparsity takes to rise from ``start_sparsity`` to the final one.
            Default: ``'0.2dur'``, as in the paper.
        compensate (bool): When units go, change the weights that stay so that they take over what can be told from
            them of those that go: with ``progressive`` by :mod:`~llmshearing.masks.compensation`, with ``one_shot`` by
            :mod:`~llmshearing.masks.in_order`, on the first batch before it is trained. Default: ``False``.
        follow_schedule (bool): Scale the learner's rates with the weights' learning-rate schedule. Default: ``True``.
        freeze_masks_after (str | Time | None): From then on the masks are fixed to exactly the target's units and only
            the weights train. Default: ``None``, never before the end.
        freeze_weights (bool): Train masks only. Default: ``False``.
        eval_masks (str): Masks of evaluations: ``'expected'`` number of units or exactly the ``'target'``'s.
            Default: ``'expected'``.
        multiple_of (int): Round kept intermediate counts up while training, for aligned matrix
            products. Default: ``1``.
        tolerance (float): Expected counts may end this fraction away from the target. Default: ``0.05``.
        lagrangian_warmup (str | Time | None): What ``warmup`` was called before; still read. Default: ``None``.

    Raises:
        ValueError: For a value out of range, or values that do not go together.
    """

    target: Mapping[str, Any]
    mask_learning: str = 'progressive'
    scores: str | Mapping[str, str] | None = RECOMMENDED
    calibration_batches: int = 8
    warmup: str | Time = WARMUP
    compensate: bool = False
    follow_schedule: bool = True
    freeze_masks_after: str | Time | None = None
    freeze_weights: bool = False
    eval_masks: str = 'expected'
    multiple_of: int = 1
    tolerance: float = 0.05
    lagrangian_warmup: str | Time | None = None

    def __post_init__(self) -> None:
        self.target = dict(self.target)
        for name, (least, largest) in RANGES.items():
            check_number(name, getattr(self, name), least, largest)
        self.calibration_batches, self.multiple_of = int(self.calibration_batches), int(self.multiple_of)
        check_one_of('eval_masks', self.eval_masks, EVAL_MASKS)
        self.scores_by_axis(AXES)  # refuses unknown names
        self._take_former_name()
        self.warmup = schedule_time('warmup', self.warmup)
        if self.freeze_masks_after is not None:
            self.freeze_masks_after = schedule_time('freeze_masks_after', self.freeze_masks_after)
        self._check_learner()
        self._warn_of_vain_settings()

    def scores_by_axis(self, pruned: Collection[str], learned_basis: bool = False) -> dict[str, str]:
        """Method by pruned axis; empty where units start in random order."""
        return {} if self.scores is None else method_by_axis(self.scores, pruned, learned_basis)

    def _take_former_name(self) -> None:
        if self.lagrangian_warmup is None:
            return
        if self.warmup != WARMUP:
            raise ValueError(
                f'warmup={self.warmup!r} and lagrangian_warmup={self.lagrangian_warmup!r} are one '
                'setting; remove lagrangian_warmup.'
            )
        log.warning('lagrangian_warmup is now called warmup; the old name is still read.')
        self.warmup, self.lagrangian_warmup = schedule_time('lagrangian_warmup', self.lagrangian_warmup), None

    def _check_learner(self) -> None:
        learner, named = learner_class(self.mask_learning), f'mask_learning: {self.mask_learning}'
        if learner.needs_scores and self.scores is None:
            raise ValueError(f'{named} decides by scores; leave scores out, or say which ones instead of null.')
        if self.compensate and (not learner.removes_for_good or self.fade > 0 or self.start_sparsity > 0):
            raise ValueError(
                f'compensate: true with {named}, fade: {self.fade} and start_sparsity: {self.start_sparsity} is not '
                'possible: it needs units that are there until they go for good; use progressive or one_shot, '
                'fade: 0 and start_sparsity: 0.'
            )
        if 'sparsity' in self.target and (not learner.finds_widths or self.eval_masks == 'target'):
            raise ValueError(
                f'target: {{sparsity: ...}} with {named} and eval_masks: {self.eval_masks} is not possible: only '
                'learned masks find widths of their own, and there is no shape to cut to; use lagrangian and expected.'
            )

    def _warn_of_vain_settings(self) -> None:
        learner, named = learner_class(self.mask_learning), f'mask_learning: {self.mask_learning}'
        unread = set(LEARNER_KEYS) - set(getattr(learner, 'reads', LEARNER_KEYS))
        fields = [field for field in dataclasses.fields(self) if field.name in unread]
        values = {field: getattr(self, field.name) for field in fields}
        plain = {field: value.to_timestring() if isinstance(value, Time) else value for field, value in values.items()}
        vain = [field.name for field, value in plain.items() if value != field.default]
        if vain:
            log.warning('%s does not go by %s; remove it, or choose another way of learning.', named, ', '.join(vain))
        warmup, freeze = Time.from_input(self.warmup), Time.from_input(self.freeze_masks_after or self.warmup)
        if learner.follows_warmup and freeze.unit == warmup.unit and freeze < warmup:
            log.warning(
                'freeze_masks_after: %s comes before the end of warmup: %s; masks are then cut to the target at once, '
                'wherever they are. Freeze later, or shorten the warm-up.',
                freeze.to_timestring(),
                warmup.to_timestring(),
            )
