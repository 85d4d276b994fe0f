"""Progressive shearing: no noise and no multipliers; the kept counts follow the schedule to the target.

At every batch each row is told to lose as many units as the schedule says, and the units that go are those whose mask
has mattered least: the smallest running mean of |d loss / d z|, a first-order estimate of what removing a unit costs,
which the cut's scales yield for free. It is kept relative to the mean of the axis, so that every batch has the same
vote and scores of any kind can be its first value.

A unit that goes does so little by little: its mask falls from one to zero in a straight line, over a share of the
warm-up, while the weights around it learn to do without it. It does not come back, unless the finished model needs a
layer of its kind. The last units are told to go early enough for all masks to be zero or one when the warm-up ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmshearing.masks.axes import AxisPlan, keep_largest
from llmshearing.masks.constraints import target_sparsity

__all__ = ['ProgressiveMasks']

TINY = 1e-6  # an order among equals
REMOVED = -1e9  # below any sum of importances


class ProgressiveMasks:
    """Masks that shrink on schedule.

    Args:
        plans (Mapping[str, AxisPlan]): Axes to prune.
        start_sparsity (float): Fraction removed at the beginning of the warm-up.
        seed (int): Orders the units before any gradient was seen.
        fade (float): Share of the warm-up, below 1, during which a mask falls from one to zero; 0 for at once.
        decay (float): Of the running mean of |d loss / d z|.

    Attributes:
        left_at (dict[str, Tensor]): Elapsed share of the warm-up at which each unit was told to go, infinity for those
            that stay, mask-shaped.
    """

    def __init__(
        self, plans: Mapping[str, AxisPlan], start_sparsity: float, seed: int, fade: float = 0.0, decay: float = 0.9
    ):
        self.plans, self.start_sparsity, self.fade, self.decay = dict(plans), start_sparsity, fade, decay
        generator = torch.Generator().manual_seed(seed)
        # Tiny distinct values: an order before the first gradient, little after it.
        self.importance = {axis: torch.rand(p.mask_shape, generator=generator) * TINY for axis, p in self.plans.items()}
        self.left_at = {axis: torch.full(plan.mask_shape, math.inf) for axis, plan in self.plans.items()}
        self.progress = 0.0

    def start_from(self, scores: Mapping[str, Tensor]) -> None:
        """Makes ``scores`` (mask-shaped, the higher the more important) the first value of the running means."""
        for axis, value in scores.items():
            self.importance[axis] = _relative(value.float() - value.float().min().clamp(max=0), self._stays(axis))

    def draw(self, batch: int, progress: float) -> dict[str, Tensor]:
        """Shrinks the masks to what the schedule allows by now and returns them."""
        del batch
        self.progress = progress
        left_now = progress if progress > 0 else -math.inf  # what the schedule starts from is gone at once
        for axis, plan in self.plans.items():
            sparsity = target_sparsity(progress / (1 - self.fade), self.start_sparsity, plan.final_sparsity)
            keep = max(plan.keep, min(plan.units, math.ceil(plan.units * (1 - sparsity) - 1e-6)))
            stays = keep_largest(plan, self.scores()[axis], keep)
            self.left_at[axis] = torch.where(stays, math.inf, self.left_at[axis].clamp(max=left_now))
        return self.kept()

    def update(self, gradients: Mapping[str, Tensor], progress: float, rate: float) -> dict[str, float]:
        """Adds |d loss / d z|, relative to its mean over the kept units, to the running means."""
        del rate
        metrics = {}
        for axis, plan in self.plans.items():
            gradient = _relative(gradients[axis].abs(), self._stays(axis))
            self.importance[axis].mul_(self.decay).add_(gradient, alpha=1 - self.decay)
            target = target_sparsity(progress, self.start_sparsity, plan.final_sparsity)
            metrics[f'{axis}/target'] = plan.units * (1 - target)
        return metrics

    def kept(self) -> dict[str, Tensor]:
        """The masks themselves: nothing is uncertain."""
        if self.fade == 0 or self.progress >= 1:
            return {axis: self._stays(axis) for axis in self.plans}
        return {axis: (1 - (self.progress - left) / self.fade).clamp(0, 1) for axis, left in self.left_at.items()}

    def scores(self) -> dict[str, Tensor]:
        """Importance of the units that stay; those that go stand below all of them."""
        return {axis: value.masked_fill(self._stays(axis) == 0, REMOVED) for axis, value in self.importance.items()}

    def deciding(self) -> dict[str, Tensor]:
        """The numbers that masks are made of, themselves and not copies."""
        tensors = {'importance': self.importance, 'left_at': self.left_at}
        return {f'{name}/{axis}': value for name, by_axis in tensors.items() for axis, value in by_axis.items()}

    def deterministic(self, counts: str) -> dict[str, Tensor]:
        """The masks of the moment (``'expected'``) or exactly the target's count of the most important units."""
        if counts == 'expected':
            return self.kept()
        return {axis: keep_largest(plan, self.scores()[axis]).float() for axis, plan in self.plans.items()}

    def hard_counts(self) -> dict[str, list[int]]:
        """Masks above one half in each row."""
        return {axis: (self.plans[axis].rows(mask) > 0.5).sum(1).tolist() for axis, mask in self.kept().items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            'importance': {axis: value.clone() for axis, value in self.importance.items()},
            'left_at': {axis: value.clone() for axis, value in self.left_at.items()},
            'progress': self.progress,
            'fade': self.fade,  # for exports of the masks of the moment
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.importance = {axis: state['importance'][axis].clone() for axis in self.plans}
        self.left_at = {axis: state['left_at'][axis].clone() for axis in self.plans}
        self.progress = state['progress']

    def _stays(self, axis: str) -> Tensor:
        """One where a unit has not been told to go, else zero."""
        return (self.left_at[axis] == math.inf).float()


def _relative(value: Tensor, mask: Tensor) -> Tensor:
    """``value``, which is not negative, over its mean where ``mask`` is one."""
    value = value * mask
    return value * (mask.sum() / value.sum()) if value.sum() > 0 else value
