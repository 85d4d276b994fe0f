"""The dimensions that the family tables name: their sizes, and which positions along them kept units take.

A dimension is the side of a weight, such as the rows of a query projection. It is made of parts, one after the other;
in each part every unit of a kind takes a block of positions. So its size follows from the shape, and its positions
follow from the kept units of a layer. ``hidden`` is the residual stream, the same in all layers. ``channels`` are inner
ones of a mixer that has as many of them as hidden dimensions: those at the same places go.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from llmshearing.models.roles import Experts, Norm, PerUnit, Role, Whole
from llmshearing.models.shapes import ModelShape
from llmshearing.models.units import LayerUnits, Units

__all__ = ['DIMENSIONS', 'Dimension', 'blocks', 'sides_of']

_COUNTS = {
    'hidden': 'hidden_size',
    'heads': 'num_attention_heads',
    'kv_heads': 'num_key_value_heads',
    'intermediate': 'intermediate_size',
    'experts': 'num_experts',
}


def blocks(index: Tensor, size: int) -> Tensor:
    """Positions of whole blocks of ``size``: block b covers b*size ... b*size + size - 1."""
    return index if size == 1 else (index[:, None] * size + torch.arange(size)).flatten()


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One side of a weight.

    Attributes:
        axes (tuple[str, ...]): Axes whose units take positions with them; where every head has its own keys and
            values, ``head`` takes those as well.
        parts (tuple[tuple[str, int], ...]): Kind of unit, as :class:`~llmshearing.models.units.LayerUnits` calls it,
            and the positions that one takes in multiples of head_dim; 0 where it takes a single one.
    """

    axes: tuple[str, ...]
    parts: tuple[tuple[str, int], ...]

    def size(self, shape: ModelShape) -> int:
        """Positions in all; an array where the shape has arrays."""
        return sum(count * width for _, count, width in self._sized(shape))

    @property
    def is_of_stream(self) -> bool:
        """Whether it goes with the residual stream, and is so the same in all layers."""
        return self.axes == ('hidden',)

    def positions(self, units: LayerUnits | Units, shape: ModelShape) -> Tensor | None:
        """Positions that the kept units of a layer take, or those of the stream; None where all stay."""
        joined, start, kept = [], 0, {name: getattr(units, name) for name, _ in self.parts}
        if all(index is None for index in kept.values()):
            return None
        for name, count, width in self._sized(shape):
            index = torch.arange(count) if kept[name] is None else kept[name].flatten()
            joined.append(blocks(index, width) + start)
            start += count * width
        return torch.cat(joined)

    def _sized(self, shape: ModelShape) -> list[tuple[str, int, int]]:
        """Kind, number and width of the units of each part."""
        return [(name, getattr(shape, _COUNTS[name]), heads * shape.head_dim or 1) for name, heads in self.parts]


DIMENSIONS = {
    'hidden': Dimension(('hidden',), (('hidden', 0),)),
    'channels': Dimension(('hidden',), (('hidden', 0),)),
    'three_channels': Dimension(('hidden',), (('hidden', 0),) * 3),
    'query': Dimension(('head', 'kv_group'), (('heads', 1),)),
    'key_value': Dimension(('kv_group',), (('kv_heads', 1),)),
    'intermediate': Dimension(('intermediate',), (('intermediate', 0),)),
    'query_key_value': Dimension(('head', 'kv_group'), (('heads', 1), ('kv_heads', 1), ('kv_heads', 1))),
    'gate_up': Dimension(('intermediate',), (('intermediate', 0), ('intermediate', 0))),
    'query_and_gate': Dimension(('head', 'kv_group'), (('heads', 2),)),
    'query_key_value_per_head': Dimension(('head',), (('heads', 3),)),
    'per_head': Dimension(('head', 'kv_group'), (('heads', 0),)),
    'expert': Dimension(('expert',), (('experts', 0),)),
}


def sides_of(role: Role) -> tuple[str | None, ...]:
    """Dimensions of a module's parameters."""
    if isinstance(role, Whole):
        return ()
    if isinstance(role, PerUnit):
        return (role.dim,)
    if isinstance(role, Experts):
        return ('hidden', 'expert', 'intermediate')
    return (role.dim,) if isinstance(role, Norm) else (role.rows, role.columns)
