"""What masks leave of each layer: the numbers to look at where layers may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from llmshearing.models.shapes import ModelShape
from llmshearing.models.units import LayerCounts, LayerUnits, kept_units

__all__ = ['describe_widths', 'layer_widths', 'width_metrics']


def layer_widths(masks: Mapping[str, Tensor], shape: ModelShape) -> list[LayerCounts]:
    """What masks leave of all layers of a source of this shape, heads without padding; all 0 of a layer that goes."""
    kept = kept_units(masks, shape).layers
    return [_widths(kept.get(layer), shape) for layer in range(shape.num_hidden_layers)]


def describe_widths(widths: Sequence[LayerCounts]) -> str:
    """A table, one line per layer."""
    lines = ['layer  heads  KV heads  intermediate']
    lines += [f'{n:5d}  {w.heads:5d}  {w.kv_heads:8d}  {w.intermediate:12d}' for n, w in enumerate(widths)]
    return '\n'.join(lines)


def width_metrics(widths: Sequence[LayerCounts]) -> dict[str, int]:
    """The same numbers, each under a name of its own, such as ``widths/layer_03/heads``."""
    return {
        f'widths/layer_{layer:02d}/{name}': getattr(width, name)
        for layer, width in enumerate(widths)
        for name in ('heads', 'kv_heads', 'intermediate')
    }


def _widths(units: LayerUnits | None, shape: ModelShape) -> LayerCounts:
    if units is None:
        return LayerCounts(0, 0, 0, 0)
    counts = units.counts(shape)
    return counts if units.padded is None else counts._replace(heads=counts.heads - int(units.padded.sum()))
