"""Progressive shearing: no noise and no multipliers; the kept counts follow the schedule to the target.

At every batch each row keeps as many units as the schedule says, and the units that go are those whose mask has
mattered least: the smallest running mean of |d loss / d z|, a first-order estimate of what removing a unit costs, which
the cut's scales yield for free. It is kept relative to the mean of the axis, so that every batch has the same vote and
scores of any kind can be its first value. A unit that went stands below all others and does not come back, unless the
finished model needs a layer of its kind.
"""
from __future__ import annotations

import math
from typing import Any, Mapping

import torch
from torch import Tensor

from llmshearing.algorithms.targeted_pruning.constraints import target_sparsity
from llmshearing.algorithms.targeted_pruning.masks import AxisPlan, keep_largest

__all__ = ['ProgressiveMasks']

TINY = 1e-6  # an order among equals
REMOVED = -1e9  # below any sum of importances


class ProgressiveMasks:
    """Binary masks that shrink on schedule.

    Args:
        plans (Mapping[str, AxisPlan]): Axes to prune.
        start_sparsity (float): Fraction removed at the beginning of the warm-up.
        seed (int): Orders the units before any gradient was seen.
        decay (float): Of the running mean of |d loss / d z|.
    """

    def __init__(self, plans: Mapping[str, AxisPlan], start_sparsity: float, seed: int, decay: float = 0.9):
        self.plans, self.start_sparsity, self.decay = dict(plans), start_sparsity, decay
        generator = torch.Generator().manual_seed(seed)
        # Tiny distinct values: an order before the first gradient, little after it.
        self.importance = {axis: torch.rand(p.mask_shape, generator=generator) * TINY for axis, p in self.plans.items()}
        self.mask = {axis: torch.ones(plan.mask_shape) for axis, plan in self.plans.items()}

    def start_from(self, scores: Mapping[str, Tensor]) -> None:
        """Makes ``scores`` (mask-shaped, the higher the more important) the first value of the running means."""
        for axis, value in scores.items():
            self.importance[axis] = _relative(value.float() - value.float().min().clamp(max=0), self.mask[axis])

    def draw(self, batch: int, progress: float) -> dict[str, Tensor]:
        """Shrinks the masks to what the schedule allows by now and returns them."""
        del batch
        for axis, plan in self.plans.items():
            sparsity = target_sparsity(progress, self.start_sparsity, plan.final_sparsity)
            keep = max(plan.keep, min(plan.units, math.ceil(plan.units * (1 - sparsity) - 1e-6)))
            scores = self.scores()[axis]
            self.mask[axis] = keep_largest(plan, scores, keep).float()
        return {axis: mask.clone() for axis, mask in self.mask.items()}

    def update(self, gradients: Mapping[str, Tensor], progress: float, rate: float) -> dict[str, float]:
        """Adds |d loss / d z|, relative to its mean over the kept units, to the running means."""
        del rate
        metrics = {}
        for axis, plan in self.plans.items():
            gradient = _relative(gradients[axis].abs(), self.mask[axis])
            self.importance[axis].mul_(self.decay).add_(gradient, alpha=1 - self.decay)
            target = target_sparsity(progress, self.start_sparsity, plan.final_sparsity)
            metrics[f'{axis}/target'] = plan.units * (1 - target)
        return metrics

    def kept(self) -> dict[str, Tensor]:
        """The masks themselves: nothing is uncertain."""
        return {axis: mask.clone() for axis, mask in self.mask.items()}

    def scores(self) -> dict[str, Tensor]:
        """Importance of the kept units; removed ones stand below all of them."""
        return {axis: value.masked_fill(self.mask[axis] == 0, REMOVED) for axis, value in self.importance.items()}

    def deciding(self) -> dict[str, Tensor]:
        """The numbers that masks are made of, themselves and not copies."""
        tensors = {'importance': self.importance, 'mask': self.mask}
        return {f'{name}/{axis}': value for name, by_axis in tensors.items() for axis, value in by_axis.items()}

    def deterministic(self, counts: str) -> dict[str, Tensor]:
        """The masks of the moment (``'expected'``) or exactly the target's count of the most important units."""
        if counts == 'expected':
            return self.kept()
        return {axis: keep_largest(plan, self.scores()[axis]).float() for axis, plan in self.plans.items()}

    def hard_counts(self) -> dict[str, list[int]]:
        """Kept units in each row."""
        return {axis: (plan.rows(self.mask[axis]) > 0.5).sum(1).tolist() for axis, plan in self.plans.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            'importance': {axis: value.clone() for axis, value in self.importance.items()},
            'mask': {axis: value.clone() for axis, value in self.mask.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.importance = {axis: state['importance'][axis].clone() for axis in self.plans}
        self.mask = {axis: state['mask'][axis].clone() for axis in self.plans}


def _relative(value: Tensor, mask: Tensor) -> Tensor:
    """``value``, which is not negative, over its mean where ``mask`` is one."""
    value = value * mask
    return value * (mask.sum() / value.sum()) if value.sum() > 0 else value
