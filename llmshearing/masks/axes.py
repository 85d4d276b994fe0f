"""Which axes a target prunes, how many units of each row must stay, and how exactly that many are chosen.

A *row* is a set of units among which a fixed number is kept: the hidden vector, the layer vector, one layer's KV
groups, intermediate dimensions, heads or routed experts; in grouped-query models the query heads of one KV head, since
every KV head must end with the same number of them, and in mixtures the intermediate dimensions of one expert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from llmshearing.models.shapes import ModelShape
from llmshearing.models.units import mask_shapes

__all__ = ['AxisPlan', 'finalize_masks', 'keep_largest', 'plan_axes']


@dataclasses.dataclass(frozen=True)
class AxisPlan:
    """One axis to prune.

    Attributes:
        axis (str): Name of the axis.
        mask_shape (tuple[int, ...]): Shape of its mask.
        units (int): Units per row.
        keep (int | None): Units that stay in every row; None where that is left to training.
        kinds (tuple | None): Kind of each unit where the finished model expects kinds by position (sliding and full
            attention layers); None where all units are alike.
    """

    axis: str
    mask_shape: tuple[int, ...]
    units: int
    keep: int | None
    kinds: tuple | None = None

    @property
    def final_sparsity(self) -> float:
        """Fraction of each row that is removed in the end."""
        return 1 - self.fixed_keep / self.units

    @property
    def fixed_keep(self) -> int:
        """``keep`` of an axis whose target says it.

        Raises:
            ValueError: If it is left to training.
        """
        if self.keep is None:
            raise ValueError(f'how many units of axis {self.axis!r} stay is left to training.')
        return self.keep

    def rows(self, values: Tensor) -> Tensor:
        """A mask-shaped tensor as [rows, units]."""
        return values.reshape(-1, self.units)


def plan_axes(source: ModelShape, target: ModelShape, layer_kinds: tuple | None = None) -> dict[str, AxisPlan]:
    """The axes on which the target differs from the source.

    Args:
        source (ModelShape): Shape of the source.
        target (ModelShape): Shape to reach.
        layer_kinds (tuple | None): Kind of each source layer, where kinds follow from the position.
    """
    units_and_keep = {
        'hidden': (source.hidden_size, target.hidden_size),
        'layer': (source.num_hidden_layers, target.num_hidden_layers),
        'intermediate': (source.intermediate_size, target.intermediate_size),
        'expert': (source.num_experts, target.num_experts),
    }
    if source.group_size == 1:
        units_and_keep['head'] = (source.num_attention_heads, target.num_attention_heads)
    else:
        units_and_keep['kv_group'] = (source.num_key_value_heads, target.num_key_value_heads)
        units_and_keep['head'] = (source.group_size, target.group_size)
    shapes = mask_shapes(source)
    return {
        axis: AxisPlan(axis, shapes[axis], units, keep, layer_kinds if axis == 'layer' else None)
        for axis, (units, keep) in units_and_keep.items()
        if keep != units
    }


def keep_largest(plan: AxisPlan, scores: Tensor, keep: Tensor | int | None = None) -> Tensor:
    """Exactly the highest-scored units of each row; of equal scores the first ones.

    Args:
        plan (AxisPlan): The axis.
        scores (Tensor): Mask-shaped scores.
        keep (Tensor | int | None): Units to keep in each row, int64 [rows] or one number; default: the target's.

    Returns:
        Tensor: bool, mask-shaped. At the target's number, units with kinds are chosen so that each kind stands where
        the finished model expects it: of all such choices the one with the largest sum of scores.
    """
    if plan.kinds is not None and (
        keep is None or torch.equal(torch.as_tensor(keep).flatten(), torch.tensor([plan.keep]))
    ):
        return _keep_matching_kinds(scores, plan.kinds, plan.fixed_keep)
    rows = plan.rows(scores)
    keep = torch.as_tensor(plan.fixed_keep if keep is None else keep).expand(len(rows))
    order = rows.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(plan.units).expand_as(order))
    return (rank < keep[:, None]).view(plan.mask_shape)


def finalize_masks(plans: Mapping[str, AxisPlan], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of zeros and ones that keep exactly the target's number of the highest-scored units, float32 by axis."""
    return {axis: keep_largest(plan, scores[axis]).float() for axis, plan in plans.items()}


def _keep_matching_kinds(scores: Tensor, kinds: tuple, keep: int) -> Tensor:
    """The best increasing choice of ``keep`` units whose j-th has the kind of position j, by dynamic programming."""
    values = scores.tolist()
    # best[j]: (sum of scores, chosen units) of the best choice of j units among those seen so far.
    best: list[tuple[float, tuple[int, ...]] | None] = [(0.0, ()), *[None] * keep]
    for unit, value in enumerate(values):
        for position in range(min(keep, unit + 1) - 1, -1, -1):
            before, after = best[position], best[position + 1]
            if kinds[position] == kinds[unit] and before is not None:
                total, chosen = before
                if after is None or total + value > after[0]:
                    best[position + 1] = (total + value, (*chosen, unit))
    choice, mask = best[keep], torch.zeros(len(values), dtype=torch.bool)
    assert choice is not None  # the first `keep` units always qualify
    mask[list(choice[1])] = True
    return mask
