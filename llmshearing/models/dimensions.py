"""The dimensions that the family tables name: which positions along them kept units take.

A dimension is the side of a weight, such as the rows of a query projection; its positions follow from the kept units of
a layer. ``hidden`` is the same in all layers, and the plan of a cut has it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmshearing.models.roles import Experts, Norm, PerHead, Role, Whole
from llmshearing.models.shapes import ModelShape
from llmshearing.models.units import LayerUnits

__all__ = ['DIMENSIONS', 'DIMENSION_AXES', 'blocks', 'sides_of']


def blocks(index: Tensor, size: int) -> Tensor:
    """Positions of whole blocks of ``size``: block b covers b*size ... b*size + size - 1."""
    return (index[:, None] * size + torch.arange(size)).flatten()


def _query(units: LayerUnits, shape: ModelShape) -> Tensor | None:
    return None if units.heads is None else blocks(units.heads, shape.head_dim)


def _key_value(units: LayerUnits, shape: ModelShape) -> Tensor | None:
    return None if units.kv_heads is None else blocks(units.kv_heads, shape.head_dim)


def _intermediate(units: LayerUnits, shape: ModelShape) -> Tensor | None:
    return units.intermediate if units.intermediate is None else units.intermediate.flatten()


def _per_head(units: LayerUnits, shape: ModelShape) -> Tensor | None:
    return units.heads


def _expert(units: LayerUnits, shape: ModelShape) -> Tensor | None:
    return units.experts


def _joined(*parts: tuple[Tensor | None, int]) -> Tensor | None:
    """Positions along an axis that several parts of given sizes share, one after the other."""
    if all(index is None for index, _ in parts):
        return None
    joined, start = [], 0
    for index, size in parts:
        joined.append((torch.arange(size) if index is None else index) + start)
        start += size
    return torch.cat(joined)


def _query_key_value(units: LayerUnits, shape: ModelShape) -> Tensor | None:
    query, key_value = _query(units, shape), _key_value(units, shape)
    width = shape.num_key_value_heads * shape.head_dim
    return _joined((query, shape.num_attention_heads * shape.head_dim), (key_value, width), (key_value, width))


def _query_and_gate(units: LayerUnits, shape: ModelShape) -> Tensor | None:
    return None if units.heads is None else blocks(units.heads, 2 * shape.head_dim)


def _gate_up(units: LayerUnits, shape: ModelShape) -> Tensor | None:
    return _joined((units.intermediate, shape.intermediate_size), (units.intermediate, shape.intermediate_size))


def _query_key_value_per_head(units: LayerUnits, shape: ModelShape) -> Tensor | None:
    return None if units.heads is None else blocks(units.heads, 3 * shape.head_dim)


# Kept positions along a parameter's axis, by the name the family tables use for it; `hidden` is the same in all layers.
DIMENSIONS: dict[str, Callable[[LayerUnits, ModelShape], Tensor | None]] = {
    'query': _query,
    'key_value': _key_value,
    'intermediate': _intermediate,
    'query_key_value': _query_key_value,
    'gate_up': _gate_up,
    'query_and_gate': _query_and_gate,
    'query_key_value_per_head': _query_key_value_per_head,
    'per_head': _per_head,
    'expert': _expert,
}

# Axes whose units take positions of each dimension with them; where every head has its own keys and values, `head`
# takes those as well.
DIMENSION_AXES: dict[str, tuple[str, ...]] = {
    'hidden': ('hidden',),
    'query': ('head', 'kv_group'),
    'key_value': ('kv_group',),
    'intermediate': ('intermediate',),
    'query_key_value': ('head', 'kv_group'),
    'gate_up': ('intermediate',),
    'query_and_gate': ('head', 'kv_group'),
    'query_key_value_per_head': ('head',),
    'per_head': ('head', 'kv_group'),
    'expert': ('expert',),
}


def sides_of(role: Role) -> tuple[str | None, ...]:
    """Dimensions of a module's parameters."""
    if isinstance(role, Whole):
        return ()
    if isinstance(role, PerHead):
        return ('per_head',)
    if isinstance(role, Experts):
        return ('hidden', 'expert', 'intermediate')
    return (role.dim,) if isinstance(role, Norm) else (role.rows, role.columns)
