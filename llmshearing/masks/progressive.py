"""``progressive``: no noise and no multipliers; the kept counts follow the schedule to the target.

At every batch each row is told to lose as many units as the schedule says, and the units that go are those whose mask
has mattered least: the smallest running mean of |d loss / d z|, a first-order estimate of what removing a unit costs,
which the cut's scales yield for free. It is kept relative to the mean of the axis, so that every batch has the same
vote and scores of any kind can be its first value. Hidden dimensions that were scored keep the order of their scores:
in a rotated basis that order is what the basis is for, and gradients were measured to make it worse.

A unit that goes does so little by little: its mask falls from one to zero in a straight line, over a share of the
warm-up, while the weights around it learn to do without it. It does not come back, unless the finished model needs a
layer of its kind. Heads and KV groups are few in a layer: where the schedule says a fraction of one, some layers have
lost it and others not yet, those first where it matters least. The last units are told to go early enough for all masks
to be zero or one when the warm-up ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmshearing.masks.axes import AxisPlan, finalize_masks, keep_largest
from llmshearing.masks.constraints import Constraint, target_sparsity
from llmshearing.masks.learner import LearnerSettings, MaskLearner, check_saved, mask_learners

__all__ = ['ProgressiveMasks', 'random_order']

TINY = 1e-6  # an order among equals
REMOVED = -1e9  # below any sum of importances
LAYER_BY_LAYER = ('head', 'kv_group')  # axes with few units in a row


@mask_learners('progressive')
class ProgressiveMasks(MaskLearner):
    """Masks that shrink on schedule.

    Args:
        plans (Mapping[str, AxisPlan]): Axes to prune.
        settings (LearnerSettings): The start, the fade, which is below 1, and the seed, which orders the units before
            any gradient was seen.
        constraints (Sequence[Constraint] | None): Not looked at; the target of every axis is met.

    Attributes:
        left_at (dict[str, Tensor]): Elapsed share of the warm-up at which each unit was told to go, infinity for those
            that stay, mask-shaped.
        hidden_is_settled (bool): Gradients do not change the importance of hidden dimensions.
    """

    needs_scores: ClassVar[bool] = False
    follows_warmup: ClassVar[bool] = True
    removes_for_good: ClassVar[bool] = True
    finds_widths: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ('warmup', 'freeze_masks_after', 'start_sparsity', 'fade')
    decay = 0.9  # of the running mean of |d loss / d z|

    def __init__(
        self, plans: Mapping[str, AxisPlan], settings: LearnerSettings, constraints: Sequence[Constraint] | None = None
    ):
        self.plans, self.start_sparsity, self.fade = dict(plans), settings.start_sparsity, settings.fade
        self.importance = random_order(plans, settings.seed)
        self.left_at = {axis: torch.full(plan.mask_shape, math.inf) for axis, plan in self.plans.items()}
        self.progress = 0.0
        self.layer_by_layer = True
        self.hidden_is_settled = False

    @classmethod
    def restore(cls, plans: Mapping[str, AxisPlan], state: Mapping[str, Any]) -> ProgressiveMasks:
        learner = cls(plans, LearnerSettings(fade=state['fade']))
        learner.load_state_dict(state)
        return learner

    def start_from(self, scores: Mapping[str, Tensor]) -> None:
        """Makes the scores the first value of the running means; of hidden dimensions, the only one."""
        self.hidden_is_settled = 'hidden' in scores
        for axis, value in scores.items():
            self.importance[axis] = _relative(value.float() - value.float().min().clamp(max=0), self._stays(axis))

    def draw(self, batch: int, progress: float) -> dict[str, Tensor]:
        """Shrinks the masks to what the schedule allows by now and returns them."""
        del batch
        if progress < self.progress:  # a resumed run whose warm-up became longer
            self._go_on_from(self.current_masks(), progress)
        self.progress = progress
        left_now = progress if progress > 0 else -math.inf  # what the schedule starts from is gone at once
        scores = self.scores()
        for axis, plan in self.plans.items():
            sparsity = target_sparsity(progress / (1 - self.fade), self.start_sparsity, plan.final_sparsity)
            keep = max(plan.fixed_keep, plan.units * (1 - sparsity))
            left = plan.rows(self._stays(axis)).sum(1).long()  # nothing comes back where the schedule went back
            whole = torch.as_tensor(self._whole_units(plan, scores[axis], keep)).minimum(left)
            stays = keep_largest(plan, scores[axis], whole)
            self.left_at[axis] = torch.where(stays, math.inf, self.left_at[axis].clamp(max=left_now))
        return self.current_masks()

    def update(self, gradients: Mapping[str, Tensor], progress: float, rate: float) -> dict[str, float]:
        """Adds |d loss / d z|, relative to its mean over the kept units, to the running means."""
        del rate
        metrics = {}
        for axis, plan in self.plans.items():
            if axis != 'hidden' or not self.hidden_is_settled:
                gradient = _relative(gradients[axis].abs(), self._stays(axis))
                self.importance[axis].mul_(self.decay).add_(gradient, alpha=1 - self.decay)
            target = target_sparsity(progress, self.start_sparsity, plan.final_sparsity)
            metrics[f'{axis}/target'] = plan.units * (1 - target)
        return metrics

    def current_masks(self) -> dict[str, Tensor]:
        """One where a unit stays, zero where it has gone, and between them while it goes."""
        if self.fade == 0 or self.progress >= 1:
            return {axis: self._stays(axis) for axis in self.plans}
        return {axis: (1 - (self.progress - left) / self.fade).clamp(0, 1) for axis, left in self.left_at.items()}

    def scores(self) -> dict[str, Tensor]:
        """Importance of the units that stay; those that go stand below all of them."""
        return {axis: value.masked_fill(self._stays(axis) == 0, REMOVED) for axis, value in self.importance.items()}

    def mask_tensors(self) -> dict[str, Tensor]:
        tensors = {'importance': self.importance, 'left_at': self.left_at}
        return {f'{name}/{axis}': value for name, by_axis in tensors.items() for axis, value in by_axis.items()}

    def deterministic(self, counts: str) -> dict[str, Tensor]:
        """``'expected'``: the masks of the moment; ``'target'``: ones for the most important units."""
        if counts == 'expected':
            return self.current_masks()
        return finalize_masks(self.plans, self.scores())

    def state_dict(self) -> dict[str, Any]:
        return {
            'importance': {axis: value.clone() for axis, value in self.importance.items()},
            'left_at': {axis: value.clone() for axis, value in self.left_at.items()},
            'progress': self.progress,
            'fade': self.fade,  # for exports of the masks of the moment
            'layer_by_layer': self.layer_by_layer,
            'hidden_is_settled': self.hidden_is_settled,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.importance = check_saved(self.plans, state.get('importance', {}))
        self.left_at = check_saved(self.plans, state.get('left_at', {}))
        self.progress = state['progress']
        if state.get('fade', self.fade) != self.fade:
            self._go_on_from(self.restore(self.plans, state).current_masks(), self.progress)
        self.layer_by_layer = state.get('layer_by_layer', False)  # checkpoints before these existed go on as they began
        self.hidden_is_settled = state.get('hidden_is_settled', False)

    def _whole_units(self, plan: AxisPlan, scores: Tensor, keep: float) -> Tensor | int:
        """Units that each row keeps where the schedule says a fraction: one more, or one more in some layers alone."""
        least = math.floor(keep + 1e-6)
        if not self.layer_by_layer or plan.axis not in LAYER_BY_LAYER or least == plan.units:
            return min(plan.units, math.ceil(keep - 1e-6))
        layers = plan.mask_shape[0]
        weakest = plan.rows(scores).topk(least + 1).values[:, -1]  # of one unit more
        order = weakest.view(layers, -1).sum(1).argsort(descending=True, stable=True)
        more = torch.zeros(layers, dtype=torch.long)
        more[order[: math.ceil((keep - least) * layers - 1e-6)]] = 1
        return least + more.repeat_interleave(len(weakest) // layers)

    def _go_on_from(self, masks: Mapping[str, Tensor], progress: float) -> None:
        """Notes of units that go when they would have been told to, for their masks to be these at ``progress``."""
        for axis, left in self.left_at.items():
            told = (progress - (1 - masks[axis]) * self.fade).masked_fill(masks[axis] == 0, -math.inf)
            self.left_at[axis] = torch.where(left == math.inf, left, told)

    def _stays(self, axis: str) -> Tensor:
        """One where a unit has not been told to go, else zero."""
        return (self.left_at[axis] == math.inf).float()


def random_order(plans: Mapping[str, AxisPlan], seed: int) -> dict[str, Tensor]:
    """Tiny distinct values by axis: an order before anything else tells one, and little after it."""
    generator = torch.Generator().manual_seed(seed)
    return {axis: torch.rand(plan.mask_shape, generator=generator) * TINY for axis, plan in plans.items()}


def _relative(value: Tensor, mask: Tensor) -> Tensor:
    """``value``, which is not negative, over its mean where ``mask`` is one."""
    value = value * mask
    return value * (mask.sum() / value.sum()) if value.sum() > 0 else value
