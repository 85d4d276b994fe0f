"""The one definition of what masks do to a model: which rows and columns of each weight stay, and what scales them.

The masked forward pass and the export both call :meth:`~llmshearing.models.module_cut.ModuleCut.parameters`; they
cannot disagree. What is scaled, and by which masks:

| module | scaled | by the masks of |
|---|---|---|
| writes to the residual stream | rows and bias | hidden dimensions and the layer |
| reads heads, intermediate dimensions | columns | those |
| norm that reads the stream | gain and bias | hidden dimensions |
| embedding, LM head | nothing | |

Embedding and LM head lose rows and columns alone: where they are tied, a scale on one would scale the other. Every norm
over hidden dimensions besides has its gain make up for those that went (:mod:`~llmshearing.models.gains`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from llmshearing.models.dimensions import DIMENSIONS, blocks, sides_of
from llmshearing.models.experts import ExpertsCut
from llmshearing.models.gains import gain_factors, stream_norms
from llmshearing.models.module_cut import ModuleCut, product_of
from llmshearing.models.roles import Experts, Family, Linear, Norm, PerUnit, Role, Whole, expert_of
from llmshearing.models.shapes import ModelShape
from llmshearing.models.units import AXES, Units, kept_units, mask_shapes

__all__ = ['CutPlan', 'flatten_masks', 'to_device']


def flatten_masks(masks: Mapping[str, Tensor]) -> Tensor:
    """All mask values in one float32 vector, axes in the order of :data:`AXES`; differentiable."""
    parts = [masks[axis].flatten().float() for axis in AXES if axis in masks]
    return torch.cat(parts) if parts else torch.empty(0)


class CutPlan:
    """All cuts of a model for one set of masks.

    The integers are found once per set of masks and moved to the device in one transfer; :meth:`cuts` then binds them
    to mask values with one gather, once per forward pass, so that each forward has an autograd graph of its own.

    Args:
        family (Family): Table of the model's family.
        shape (ModelShape): Shape of the source.
        masks (Mapping[str, Tensor]): Mask values by axis, on CPU.
        device (torch.device | str): Where the weights are.
        multiple_of (int): See :func:`~llmshearing.models.units.kept_units`.
        energies (Tensor | None): float32 [norms, hidden], for the gains of norms (:mod:`~llmshearing.models.gains`).
            Default: ``None``; gains then do not make up for hidden dimensions that went.
        constant (bool): The masks are not learned from: where they keep units at exactly one, nothing is scaled.
    """

    def __init__(
        self,
        family: Family,
        shape: ModelShape,
        masks: Mapping[str, Tensor],
        device: torch.device | str = 'cpu',
        multiple_of: int = 1,
        energies: Tensor | None = None,
        constant: bool = False,
    ):
        self.family, self.shape, self.masks, self.device = family, shape, masks, device
        self.units: Units = kept_units(masks, shape, multiple_of)
        self._starts = _axis_starts(masks, shape)
        gather = self._gather_pieces()
        if constant:
            values = flatten_masks(masks)
            gather = {key: place for key, place in gather.items() if (values[place] != 1).any()}
        index = {key: value for key, value in self._index_pieces() if value is not None}
        self._gather_sizes = {key: len(value) for key, value in gather.items()}
        places = torch.cat([torch.empty(0, dtype=torch.long), *gather.values()])
        whole, *positions = _moved_together([places, *index.values()], device)
        self._gather = whole if gather else None
        self._index: dict[tuple[str, int | None], Tensor] = dict(zip(index, positions))
        self._norms: dict[str, Norm] = {}
        if 'hidden' in masks and energies is not None:
            self._norms = stream_norms(family, shape.num_hidden_layers)
            self._energies = to_device(energies, device)
            self._reads = to_device(torch.tensor([norm.reads for norm in self._norms.values()]), device)

    def cuts(self, values: Tensor | None = None) -> Iterator[tuple[str, ModuleCut | ExpertsCut]]:
        """Yields (module path, cut) for every module that is left.

        Args:
            values (Tensor | None): :func:`flatten_masks` of masks that keep the same units, on the device; gradients
                flow to it. Default: ``None``, the plan's own.
        """
        values = to_device(flatten_masks(self.masks), self.device) if values is None else values
        scales = self._scales(values)
        gains = self._gains(scales)
        kept = set(self.units.layers)
        for path, role, layer in self.family.modules(self.shape.num_hidden_layers):
            if layer is None or layer in kept:
                cut = self._cut(role, layer, scales, gains.get(path))
                if cut is not None:
                    yield path, cut

    def _cut(self, role: Role, layer: int | None, scales: dict, gain: Tensor | None) -> ModuleCut | ExpertsCut | None:
        """The cut of a module; none of an expert that goes."""
        if isinstance(role, Experts):
            return None if layer is None else self._experts_cut(role, layer, scales)
        expert = expert_of(role)
        if isinstance(role, Linear) and expert is not None and layer is not None:
            place = self.place_of_expert(layer, expert)
            return None if place is None else self._expert_cut(role, layer, place, scales)
        return self._module_cut(role, layer, scales, gain)

    def hidden_index(self) -> Tensor | None:
        """Kept hidden dimensions on the device, or None for all."""
        return self._index.get(('hidden', None))

    def hidden_count(self) -> int:
        """How many hidden dimensions are kept."""
        return self.units.hidden_count(self.shape)

    def place_of_expert(self, layer: int, expert: int) -> int | None:
        """Where among the kept experts of a kept layer one stands; None where it goes."""
        experts = self.units.layers[layer].experts
        if experts is None:
            return expert
        place = (experts == expert).nonzero()
        return int(place) if len(place) else None

    def _experts_cut(self, role: Experts, layer: int, scales: dict) -> ExpertsCut:
        """The cut of all experts of a layer."""
        count = self.units.layers[layer].counts(self.shape).experts
        write, expert = scales.get(('write', layer)), scales.get(('expert', layer))
        row_scale = product_of(
            None if expert is None else expert[:, None].expand(count, self.hidden_count()),
            None if write is None else write[None],
        )
        dimensions, inner = self._index.get(('intermediate', layer)), scales.get(('intermediate', layer))
        return ExpertsCut(
            role,
            self.shape.intermediate_size,
            self._index.get(('expert', layer)),
            self.hidden_index(),
            None if dimensions is None else dimensions.view(count, -1),
            row_scale,
            None if inner is None else inner.view(count, -1),
        )

    def _expert_cut(self, role: Linear, layer: int, place: int, scales: dict) -> ModuleCut:
        """The cut of one projection of one expert."""
        whole = self._experts_cut(Experts(), layer, scales)
        dimensions = None if whole.dimensions is None else whole.dimensions[place]
        if not role.writes:
            return ModuleCut(role, dimensions, self.hidden_index())
        rows = whole.row_scale
        row_scale = None if rows is None else rows[place if len(rows) > 1 else 0]
        inner = whole.inner_scale
        return ModuleCut(role, self.hidden_index(), dimensions, row_scale, None if inner is None else inner[place])

    def _module_cut(
        self, role: Linear | Norm | Whole | PerUnit, layer: int | None, scales: dict, gain: Tensor | None
    ) -> ModuleCut:
        if isinstance(role, Whole):
            return ModuleCut(role)
        if isinstance(role, PerUnit):
            return ModuleCut(role, self._position(role.dim, layer))
        row_scale = None
        if role.writes:
            row_scale = scales.get(('write', layer))
        elif isinstance(role, Norm) and role.reads:
            row_scale = scales.get(('hidden', None))
        if isinstance(role, Norm):
            real = self._index.get(('real', layer)) if role.dim == 'query' else None
            return ModuleCut(role, self._position(role.dim, layer), row_scale=row_scale, real=real, gain=gain)
        column_scale = scales.get((role.columns, layer)) if role.columns != 'hidden' else None
        return ModuleCut(
            role, self._position(role.rows, layer), self._position(role.columns, layer), row_scale, column_scale
        )

    def _position(self, dimension: str | None, layer: int | None) -> Tensor | None:
        if dimension is None:
            return None
        return self._index.get((dimension, None if DIMENSIONS[dimension].is_of_stream else layer))

    def _index_pieces(self) -> Iterator[tuple[tuple[str, int | None], Tensor | None]]:
        sides = {side for _, role in self.family.roles() for side in sides_of(role) if side is not None}
        of_stream = {side for side in sides if DIMENSIONS[side].is_of_stream}
        for dimension in of_stream:
            yield (dimension, None), DIMENSIONS[dimension].positions(self.units, self.shape)
        for layer, units in self.units.layers.items():
            for dimension in sides - of_stream:
                yield (dimension, layer), DIMENSIONS[dimension].positions(units, self.shape)
            if units.padded is not None:
                yield ('real', layer), blocks(torch.nonzero(~units.padded).flatten(), self.shape.head_dim)

    def _gather_pieces(self) -> dict[tuple[str, int | None], Tensor]:
        """Where in the flat mask vector each scale is read; heads are repeated for every column of theirs."""
        shape, start = self.shape, self._starts
        pieces = {}
        if 'hidden' in start:
            hidden = torch.arange(shape.hidden_size) if self.units.hidden is None else self.units.hidden
            pieces['hidden', None] = start['hidden'] + hidden
        for layer, units in self.units.layers.items():
            if 'layer' in start:
                pieces['layer', layer] = torch.tensor([start['layer'] + layer])
            heads = torch.arange(shape.num_attention_heads) if units.heads is None else units.heads
            for axis, size, unit in (
                ('head', shape.num_attention_heads, heads),
                ('kv_group', shape.num_key_value_heads, heads // shape.group_size),
            ):
                if axis in start:
                    pieces[axis, layer] = (start[axis] + layer * size + unit).repeat_interleave(shape.head_dim)
            experts = torch.arange(shape.num_experts) if units.experts is None else units.experts
            if 'expert' in start:
                pieces['expert', layer] = start['expert'] + layer * shape.num_experts + experts
            if 'intermediate' in start:
                kept = torch.arange(shape.intermediate_size) if units.intermediate is None else units.intermediate
                if shape.num_experts:
                    kept = (experts[:, None] * shape.intermediate_size + kept).flatten()
                row = shape.intermediate_size * max(shape.num_experts, 1)
                pieces['intermediate', layer] = start['intermediate'] + layer * row + kept
        return pieces

    def _gains(self, scales: dict) -> dict[str, Tensor]:
        """Factor of each norm's gain by module path; constants to autograd."""
        if not self._norms:
            return {}
        values = scales.get(('hidden', None))
        values = self._energies.new_ones(self.hidden_count()) if values is None else values.detach()
        return dict(zip(self._norms, gain_factors(self._energies, self.hidden_index(), values, self._reads)))

    def _scales(self, values: Tensor) -> dict[tuple[str, int | None], Tensor | None]:
        if self._gather is None:
            return {}
        pieces = values.index_select(0, self._gather).split(list(self._gather_sizes.values()))
        scales: dict[tuple[str, int | None], Tensor | None] = dict(zip(self._gather_sizes, pieces))
        for layer in self.units.layers:
            layer_scale = scales.get(('layer', layer))
            layer_scale = None if layer_scale is None else layer_scale.expand(self.hidden_count())
            scales['write', layer] = product_of(scales.get(('hidden', None)), layer_scale)
            scales['channels', layer] = scales.get(('hidden', None))
            scales['query', layer] = product_of(scales.get(('head', layer)), scales.get(('kv_group', layer)))
        return scales


def _axis_starts(masks: Mapping[str, Tensor], shape: ModelShape) -> dict[str, int]:
    """Where each axis begins in :func:`flatten_masks`."""
    starts, start, sizes = {}, 0, mask_shapes(shape)
    for axis in AXES:
        if axis in masks:
            starts[axis] = start
            start += torch.Size(sizes[axis]).numel()
    return starts


def _moved_together(tensors: list[Tensor], device: torch.device | str) -> list[Tensor]:
    """Many small index tensors on a device, in one transfer."""
    if torch.device(device).type == 'cpu':
        return tensors
    return list(to_device(torch.cat(tensors), device).split([len(tensor) for tensor in tensors]))


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Moves a tensor from CPU without waiting: from ordinary memory, the copy would wait for all kernels queued."""
    if torch.device(device).type != 'cuda' or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
