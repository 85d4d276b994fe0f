"""What masks leave of each layer: the numbers to look at where layers may differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from llmshearing.models.shapes import ModelShape
from llmshearing.models.units import LayerUnits, kept_units

__all__ = ['LayerWidths', 'describe_widths', 'layer_widths', 'width_metrics']


@dataclasses.dataclass(frozen=True)
class LayerWidths:
    """Kept units of one layer of the source; all zero where the layer is removed.

    Attributes:
        layer (int): Its number in the source.
        heads (int): Query heads.
        kv_heads (int): KV heads.
        intermediate (int): MLP dimensions; in a mixture, of each expert.
    """

    layer: int
    heads: int
    kv_heads: int
    intermediate: int


def layer_widths(masks: Mapping[str, Tensor], shape: ModelShape) -> list[LayerWidths]:
    """Widths that masks leave of all layers of a source of this shape."""
    kept = kept_units(masks, shape).layers
    return [_widths(layer, kept.get(layer), shape) for layer in range(shape.num_hidden_layers)]


def describe_widths(widths: Sequence[LayerWidths]) -> str:
    """A table, one line per layer."""
    lines = ['layer  heads  KV heads  intermediate']
    lines += [f'{w.layer:5d}  {w.heads:5d}  {w.kv_heads:8d}  {w.intermediate:12d}' for w in widths]
    return '\n'.join(lines)


def width_metrics(widths: Sequence[LayerWidths]) -> dict[str, int]:
    """The same numbers, each under a name of its own, such as ``widths/layer_03/heads``."""
    return {
        f'widths/layer_{width.layer:02d}/{name}': getattr(width, name)
        for width in widths
        for name in ('heads', 'kv_heads', 'intermediate')
    }


def _widths(layer: int, units: LayerUnits | None, shape: ModelShape) -> LayerWidths:
    if units is None:
        return LayerWidths(layer, 0, 0, 0)
    counts = units.counts(shape)
    padding = 0 if units.padded is None else int(units.padded.sum())
    return LayerWidths(layer, counts.heads - padding, counts.kv_heads, counts.intermediate)
