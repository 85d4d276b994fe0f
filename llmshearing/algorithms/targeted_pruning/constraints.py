"""The Lagrangian constraint on one axis: where its sparsity should be by now, and what it costs to be elsewhere.

The penalty of an axis with expected sparsity s[row] and target t is

    mean over rows of  lambda * (s - t) + phi * (s - t)^2

(Sheared LLaMA, section 3.1; Wang et al. 2020 for the form). Masks minimise it, the multipliers lambda and phi maximise it.
"""
from __future__ import annotations

from typing import Mapping

from torch import Tensor

from llmshearing.models.shapes import ModelShape

__all__ = ['overall_sparsity', 'penalty', 'target_sparsity']


def target_sparsity(progress: float, start: float, final: float) -> float:
    """Target fraction removed after ``progress`` (0 to 1, and beyond) of the warm-up: linear from start to final."""
    return start + (final - start) * min(max(progress, 0.0), 1.0)


def penalty(sparsity: Tensor, target: float, lagrange_lambda: Tensor, lagrange_phi: Tensor) -> Tensor:
    """Penalty of one axis.

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


def overall_sparsity(kept: Mapping[str, Tensor], shape: ModelShape) -> float:
    """Expected fraction of the prunable parameters that is removed, from the product of the axes' scores.

    Counts the weights of the decoder layers' projections (with a gate in the MLP); embeddings, norms and biases are left
    out, so families compare.

    Args:
        kept (Mapping[str, Tensor]): P(z > 0) of every unit by axis, shapes as the masks; axes left out are kept whole.
        shape (ModelShape): Shape of the source.
    """
    hidden = float(kept['hidden'].mean()) if 'hidden' in kept else 1.0
    total = remaining = 0.0
    for layer in range(shape.num_hidden_layers):
        scores = {axis: value[layer] for axis, value in kept.items() if axis != 'hidden'}
        layer_score = float(scores.get('layer', 1.0))
        groups = scores.get('kv_group')
        head_share, group_share = _head_shares(scores.get('head'), groups, shape)
        intermediate = float(scores['intermediate'].mean()) if 'intermediate' in scores else 1.0
        query, key_value = 2 * shape.num_attention_heads * shape.head_dim, 2 * shape.num_key_value_heads * shape.head_dim
        total += query + key_value + 3 * shape.intermediate_size
        remaining += layer_score * hidden * (
            query * head_share + key_value * group_share + 3 * shape.intermediate_size * intermediate
        )
    return 1.0 - remaining / total


def _head_shares(head: Tensor | None, group: Tensor | None, shape: ModelShape) -> tuple[float, float]:
    """Expected share of query heads and of KV heads that stay in one layer."""
    group_share = 1.0 if group is None else float(group.mean())
    if head is None:
        return group_share, group_share
    per_group = head.view(shape.num_key_value_heads, shape.group_size)
    if group is not None:
        return float((per_group * group[:, None]).mean()), group_share
    # A KV head goes only with the last of its query heads.
    return float(head.mean()), float((1 - (1 - per_group).prod(1)).mean())
