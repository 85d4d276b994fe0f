"""The Lagrangian constraints: where the sparsity of something should be by now, and what it costs to be elsewhere.

The penalty of a constraint with expected sparsity s[row] and target t is

    mean over rows of  lambda * (s - t) + phi * (s - t)^2

(Sheared LLaMA, section 3.1; Wang et al. 2020 for the form). Masks minimise it, the multipliers lambda
and phi maximise it. What is constrained is a value of its own: every row of an axis, which leads to a
uniform shape (:class:`AxisConstraint`), or the model's parameters as a whole, which leaves the shape
to training (:class:`SparsityConstraint`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from llmshearing.masks.axes import AxisPlan
from llmshearing.models.shapes import ModelShape

__all__ = ['AxisConstraint', 'Constraint', 'SparsityConstraint', 'overall_sparsity', 'penalty', 'target_sparsity']


def target_sparsity(progress: float, start: float, final: float) -> float:
    """Target fraction removed after ``progress`` (0 to 1, and beyond) of the warm-up: linear from start to final.

    What loses less than ``start`` in the end begins at its final fraction: units that go do not come back.
    """
    start = min(start, final)
    return start + (final - start) * min(max(progress, 0.0), 1.0)


def penalty(sparsity: Tensor, target: float, lagrange_lambda: Tensor, lagrange_phi: Tensor) -> Tensor:
    """Penalty of one constraint.

    Args:
        sparsity (Tensor): Expected fraction removed of each row, float32 [rows].
        target (float): Target fraction.
        lagrange_lambda (Tensor): Scalar multiplier of the linear term.
        lagrange_phi (Tensor): Scalar multiplier of the quadratic term.

    Returns:
        Tensor: Scalar.
    """
    gap = sparsity - target
    return (lagrange_lambda * gap + lagrange_phi * gap.square()).mean()


@dataclasses.dataclass(frozen=True)
class AxisConstraint:
    """Every row of one axis keeps the same number of units, as in Sheared LLaMA.

    Attributes:
        plan (AxisPlan): The axis and its target.
    """

    plan: AxisPlan

    @property
    def name(self) -> str:
        """The axis."""
        return self.plan.axis

    @property
    def final_sparsity(self) -> float:
        """Fraction of each row to remove."""
        return self.plan.final_sparsity

    def sparsity(self, kept: Mapping[str, Tensor]) -> Tensor:
        """Expected fraction removed of each row, [rows], from P(z > 0) of every unit by axis."""
        return 1 - self.plan.rows(kept[self.plan.axis]).mean(1)

    def logged_target(self, sparsity: float) -> float:
        """The target as it is logged: units per row."""
        return self.plan.units * (1 - sparsity)


@dataclasses.dataclass(frozen=True)
class SparsityConstraint:
    """The model keeps a share of its layers' parameters, wherever they are, as in CoFi (Xia et al. 2022).

    Attributes:
        source (ModelShape): Shape of the source.
        final_sparsity (float): Fraction of the prunable parameters to remove.
    """

    source: ModelShape
    final_sparsity: float
    name: str = 'sparsity'

    def sparsity(self, kept: Mapping[str, Tensor]) -> Tensor:
        """Expected fraction removed of the whole, [1], from P(z > 0) of every unit by axis."""
        return (1 - _remaining_share(kept, self.source)).view(1)

    def logged_target(self, sparsity: float) -> float:
        """The target as it is logged: the fraction removed."""
        return sparsity


Constraint = AxisConstraint | SparsityConstraint


def _remaining_share(kept: Mapping[str, Tensor], shape: ModelShape) -> Tensor:
    """Expected fraction of the prunable parameters that stays, from the product of the axes' scores; differentiable.

    Counts the weights of the decoder layers' projections (with a gate in the MLP); embeddings, norms and biases are
    left out, so families compare.

    Args:
        kept (Mapping[str, Tensor]): P(z > 0) of every unit by axis, shapes as the masks; axes left out are kept whole.
        shape (ModelShape): Shape of the source.

    Returns:
        Tensor: float32 scalar.
    """
    everything = torch.ones(shape.num_hidden_layers)
    hidden = kept['hidden'].mean() if 'hidden' in kept else torch.ones(())
    experts = max(shape.num_experts, 1)
    intermediate = kept['intermediate'].mean(1) if 'intermediate' in kept else everything
    if 'expert' in kept:
        each = kept['intermediate'].view(*kept['expert'].shape, -1).mean(2) if 'intermediate' in kept else 1.0
        intermediate = (kept['expert'] * each).mean(1)
    query_share, key_value_share = _head_shares(kept.get('head'), kept.get('kv_group'), shape)
    query, key_value = 2 * shape.num_attention_heads * shape.head_dim, 2 * shape.num_key_value_heads * shape.head_dim
    width = query * query_share + key_value * key_value_share + 3 * experts * shape.intermediate_size * intermediate
    total = shape.num_hidden_layers * (query + key_value + 3 * experts * shape.intermediate_size)
    return hidden * (kept.get('layer', everything) * width).sum() / total


def overall_sparsity(kept: Mapping[str, Tensor], shape: ModelShape) -> float:
    """Expected fraction of the prunable parameters that is removed; see :func:`_remaining_share`."""
    return 1.0 - float(_remaining_share(kept, shape))


def _head_shares(head: Tensor | None, group: Tensor | None, shape: ModelShape) -> tuple[Tensor, Tensor]:
    """Expected share of query heads and of KV heads that stay in each layer, [layers] each."""
    groups = torch.ones(shape.num_hidden_layers, shape.num_key_value_heads) if group is None else group
    if head is None:
        return groups.mean(1), groups.mean(1)
    per_group = head.view(shape.num_hidden_layers, shape.num_key_value_heads, shape.group_size)
    # A KV head goes with its group or with the last of its query heads.
    return (per_group * groups[..., None]).mean((1, 2)), (groups * (1 - (1 - per_group).prod(2))).mean(1)
