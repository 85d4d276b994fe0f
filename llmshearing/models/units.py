"""From mask values to kept units: which layers, heads, groups and dimensions a set of masks leaves.

Everything here is bookkeeping on CPU integers; no weight is touched. A unit is kept where its mask is not zero. Two
cases keep more than that, with scale zero, which changes no result: grouped-query layers in which the groups kept
unequal numbers of query heads are padded to the largest (attention needs equal groups), and intermediate counts may be
rounded up to a multiple so that matrix products on GPUs stay aligned. Hidden dimensions are never rounded: a norm would
average over the extra ones.

In a mixture of experts the intermediate dimensions are those of each routed expert, E x width in a layer, and experts
are of one width: those that keep fewer dimensions are padded like heads. A layer keeps at least one expert, and an
expert one dimension, with scale zero where the masks keep none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from llmshearing.models.shapes import ModelShape

__all__ = ['AXES', 'LayerCounts', 'LayerUnits', 'Units', 'check_masks', 'kept_units', 'mask_shapes']

AXES = ('hidden', 'layer', 'head', 'kv_group', 'intermediate', 'expert')


class LayerCounts(NamedTuple):
    """How many units of each kind a layer has; heads include padding, and experts are 0 where there are none."""

    kv_heads: int
    heads: int
    intermediate: int
    experts: int


@dataclasses.dataclass(frozen=True)
class LayerUnits:
    """What is kept in one layer; None stands for everything, in place.

    Attributes:
        heads (Tensor | None): Query heads, ascending, int64 [kept heads].
        kv_heads (Tensor | None): KV heads, ascending, int64 [kept KV heads].
        group_size (int): Query heads per kept KV head; 0 where the attention adds nothing.
        padded (Tensor | None): Which of ``heads`` are there only as padding, bool [kept heads]; None where none is.
        intermediate (Tensor | None): MLP dimensions, ascending, int64 [kept dimensions]; empty where
            the MLP adds nothing. In a mixture: of each kept expert, int64 [kept experts, kept dimensions].
        experts (Tensor | None): Routed experts, ascending, int64 [kept experts].
    """

    heads: Tensor | None
    kv_heads: Tensor | None
    group_size: int
    padded: Tensor | None
    intermediate: Tensor | None
    experts: Tensor | None = None

    @property
    def has_attention(self) -> bool:
        """Whether the attention has a head left."""
        return self.group_size > 0

    @property
    def has_mlp(self) -> bool:
        """Whether the MLP has an intermediate dimension left."""
        return self.intermediate is None or len(self.intermediate) > 0

    def counts(self, source: ModelShape) -> LayerCounts:
        """How many units are kept of a layer of such a source."""
        return LayerCounts(
            kv_heads=_count(self.kv_heads, source.num_key_value_heads),
            heads=_count(self.heads, source.num_attention_heads),
            intermediate=_count(self.intermediate, source.intermediate_size),
            experts=_count(self.experts, source.num_experts),
        )


@dataclasses.dataclass(frozen=True)
class Units:
    """What a set of masks keeps: hidden dimensions (None: all) and, in order, the kept layers with their units."""

    hidden: Tensor | None
    layers: dict[int, LayerUnits]

    def hidden_count(self, source: ModelShape) -> int:
        """How many hidden dimensions are kept of such a source."""
        return _count(self.hidden, source.hidden_size)


def mask_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shape of the mask of each axis that such a model has."""
    layers, experts = shape.num_hidden_layers, shape.num_experts
    return {
        'hidden': (shape.hidden_size,),
        'layer': (layers,),
        'head': (layers, shape.num_attention_heads),
        'kv_group': (layers, shape.num_key_value_heads),
        'intermediate': (layers, shape.intermediate_size * max(experts, 1)),
        **({'expert': (layers, experts)} if experts else {}),
    }


def check_masks(masks: Mapping[str, Tensor], shape: ModelShape) -> None:
    """Raises a ValueError for an unknown axis or a mask of the wrong shape. Axes that are left out keep everything."""
    expected = mask_shapes(shape)
    for axis, mask in masks.items():
        if axis not in expected:
            raise ValueError(f'unknown mask axis {axis!r}; possible: {", ".join(expected)}.')
        if tuple(mask.shape) != expected[axis]:
            raise ValueError(f'mask {axis!r} has shape {tuple(mask.shape)}, expected {expected[axis]}.')


def kept_units(masks: Mapping[str, Tensor], shape: ModelShape, multiple_of: int = 1) -> Units:
    """Finds the kept units.

    Args:
        masks (Mapping[str, Tensor]): Mask values by axis, on CPU, shapes as in :func:`mask_shapes`.
        shape (ModelShape): Shape of the source.
        multiple_of (int): Intermediate counts are rounded up to a multiple of it with zero-mask units.

    Raises:
        ValueError: If no hidden dimension is kept.
    """
    check_masks(masks, shape)
    hidden = _kept(masks.get('hidden'))
    if hidden is not None and len(hidden) == 0:
        raise ValueError('the hidden mask keeps no dimension at all; at least one is needed.')
    layer_mask = masks.get('layer')
    layers = range(shape.num_hidden_layers) if layer_mask is None else torch.nonzero(layer_mask).flatten().tolist()
    return Units(hidden, {layer: _layer_units(masks, layer, shape, multiple_of) for layer in layers})


def _count(kept: Tensor | None, everything: int) -> int:
    return everything if kept is None else kept.shape[-1]


def _kept(mask: Tensor | None, multiple_of: int = 1) -> Tensor | None:
    if mask is None:
        return None
    index = torch.nonzero(mask).flatten()
    missing = min(-len(index) % multiple_of, len(mask) - len(index)) if len(index) else 0
    if missing:
        index = torch.cat([index, torch.nonzero(mask == 0).flatten()[:missing]]).sort().values
    return None if len(index) == len(mask) else index


def _layer_units(masks: Mapping[str, Tensor], layer: int, shape: ModelShape, multiple_of: int) -> LayerUnits:
    experts = None
    if shape.num_experts:
        experts, intermediate = _kept_in_experts(masks, layer, shape, multiple_of)
    else:
        intermediate = _kept(masks['intermediate'][layer], multiple_of) if 'intermediate' in masks else None
    if 'head' not in masks and 'kv_group' not in masks:
        return LayerUnits(None, None, shape.group_size, None, intermediate, experts)
    groups = _kept_heads_by_group(masks, layer, shape)
    group_size = max(map(len, groups.values()), default=0)
    heads, padded = [], []
    for group, kept in groups.items():
        others = [head for head in _heads_of(group, shape) if head not in kept][: group_size - len(kept)]
        for head in sorted(kept + others):
            heads.append(head)
            padded.append(head in others)
    complete = len(heads) == shape.num_attention_heads
    return LayerUnits(
        heads=None if complete else torch.tensor(heads, dtype=torch.long),
        kv_heads=None if len(groups) == shape.num_key_value_heads else torch.tensor(list(groups), dtype=torch.long),
        group_size=group_size,
        padded=torch.tensor(padded) if any(padded) else None,
        intermediate=intermediate,
        experts=experts,
    )


def _kept_in_experts(
    masks: Mapping[str, Tensor], layer: int, shape: ModelShape, multiple_of: int
) -> tuple[Tensor | None, Tensor | None]:
    """Kept experts of a layer, and the dimensions that each of them keeps, as many in all."""
    experts = torch.arange(shape.num_experts)
    if 'expert' in masks:
        kept = torch.nonzero(masks['expert'][layer]).flatten()
        experts = kept if len(kept) else experts[:1]
    dimensions = None
    if 'intermediate' in masks:
        present = masks['intermediate'][layer].view(shape.num_experts, -1)[experts] != 0
        most = max(int(present.sum(1).max()), 1)
        width = min(most + -most % multiple_of, shape.intermediate_size)
        if width < shape.intermediate_size:
            dimensions = present.float().argsort(dim=1, descending=True, stable=True)[:, :width].sort(dim=1).values
    return None if len(experts) == shape.num_experts else experts, dimensions


def _heads_of(group: int, shape: ModelShape) -> range:
    return range(group * shape.group_size, (group + 1) * shape.group_size)


def _kept_heads_by_group(masks: Mapping[str, Tensor], layer: int, shape: ModelShape) -> dict[int, list[int]]:
    """Query heads with a mask that is not zero, by KV head; KV heads without any are left out."""
    head_mask = masks['head'][layer].tolist() if 'head' in masks else [1.0] * shape.num_attention_heads
    group_mask = masks['kv_group'][layer].tolist() if 'kv_group' in masks else [1.0] * shape.num_key_value_heads
    groups = {}
    for group, group_value in enumerate(group_mask):
        kept = [head for head in _heads_of(group, shape) if head_mask[head] != 0]
        if group_value != 0 and kept:
            groups[group] = kept
    return groups
