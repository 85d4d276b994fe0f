"""Makes a Hugging Face decoder run with its weights cut, without touching its code, names, parameters or checkpoints.

Each module of the family's table becomes one that runs its stock ``forward`` on cut weights
(:mod:`~llmshearing.models.cut_modules`). Layers whose mask is zero are taken out of the decoder's list for the length
of its forward, so they cost nothing, not even communication; an attention or MLP without any kept unit returns zeros
without running.

A set of masks is installed by :meth:`Cutter.set_masks` and stays until the next; every forward pass binds it anew, so
several micro-batches may run, recompute and backpropagate under the same masks. Constant masks are bound once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmshearing.compat.experts import record_router_logits
from llmshearing.models.cut_modules import (
    CutAttention,
    CutDecoder,
    CutEmbedding,
    CutMixer,
    CutMixture,
    CutMLP,
    Cuttable,
    mix_in,
    mixin_for,
)
from llmshearing.models.cutting import CutPlan, flatten_masks, to_device
from llmshearing.models.families import family_of
from llmshearing.models.mixtures import ALIGNED_EXPERTS
from llmshearing.models.roles import Family, PerUnit, Whole
from llmshearing.models.shapes import ModelShape, shape_of
from llmshearing.models.units import AXES, check_masks

__all__ = ['Cutter', 'one_rank']


def one_rank(tensor: Tensor) -> None:
    """The average over one rank, in place."""


class Cutter:
    """Prepares a decoder for masks, in place, and installs them. Until masks are set it computes exactly what it did.

    Args:
        model (PreTrainedModel): A causal language model of a supported family.

    Raises:
        ValueError: If the model's type has no family table.

    Attributes:
        model (PreTrainedModel): The model. This object is no module: it owns nothing of it.
        family (Family): Table of the model's family.
        shape (ModelShape): Shape of the source.
        norm_energies (Tensor | None): float32 [norms, hidden], by which gains make up for hidden dimensions that go
            (:mod:`~llmshearing.models.gains`); it takes part in the masks that are set from then on.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.family: Family = family_of(model.config)
        self.shape: ModelShape = shape_of(model.config)
        self.norm_energies: Tensor | None = None
        self.masks: dict[str, Tensor] | None = None
        self.plan: CutPlan | None = None
        self._values: Tensor | None = None
        self._constants: tuple[tuple, Tensor | None, Tensor] | None = None  # how, with which energies, which values
        decoder = model.get_submodule(self.family.decoder)
        self._embedding = mix_in(decoder.get_submodule(self.family.embedding), CutEmbedding)
        self._modules: dict[str, Cuttable] = {}
        self._mixers: dict[str, CutMixer] = {}  # by the path of the module inside
        for path, role, _ in self.family.modules(self.shape.num_hidden_layers):
            if isinstance(role, PerUnit) and not path.endswith(f'.{self.family.attention}'):
                self._mixers[path] = mix_in(model.get_submodule(path.rpartition('.')[0]), CutMixer)
            elif path != self.family.embedding_path and not isinstance(role, (Whole, PerUnit)):
                self._modules[path] = mix_in(model.get_submodule(path), mixin_for(role))
        layers = list(decoder.get_submodule('layers').children())
        self._attention = {
            number: mix_in(layer.get_submodule(self.family.attention), CutAttention)
            for number, layer in enumerate(layers)
            if self.family.has_attention(number)
        }
        mlp = CutMixture if self.shape.num_experts else CutMLP
        self._mlp = [mix_in(layer.get_submodule(self.family.mlp), mlp) for layer in layers]
        stock = type(decoder)
        self._decoder = mix_in(decoder, CutDecoder)
        if self.shape.num_experts:
            record_router_logits(decoder, stock)

    def set_masks(self, masks: Mapping[str, Tensor] | None, multiple_of: int = 1, constant: bool = False) -> None:
        """Installs masks for the coming forward passes; None restores the stock model.

        Gradients with respect to the masks are accumulated over backward passes until the next call; read them with
        :meth:`mask_gradients`.

        Args:
            masks (Mapping[str, Tensor] | None): Values in [0, 1] by axis, shapes as in
                :func:`~llmshearing.models.units.mask_shapes`; axes that are left out are not cut.
            multiple_of (int): Round kept intermediate counts up to this with zero-mask units; in a mixture also to a
                multiple of :data:`~llmshearing.models.mixtures.ALIGNED_EXPERTS`.
            constant (bool): Nothing is learned from these masks: they get no gradient, units at one are not scaled,
                and the same ones installed again cost nothing.
        """
        if not masks:
            self.masks = self.plan = self._values = self._constants = None
            self._decoder.cut = self._embedding.cut = None
            self._balance_over(self.shape.num_experts)
            for module in (*self._modules.values(), *self._attention.values(), *self._mixers.values(), *self._mlp):
                module.cut = None
            return
        check_masks(masks, self.shape)
        masks = {axis: masks[axis].detach().float().cpu() for axis in AXES if axis in masks}
        device = self._embedding.get_parameter('weight').device
        if self.shape.num_experts:
            multiple_of = math.lcm(multiple_of, ALIGNED_EXPERTS)
        values, how = flatten_masks(masks), (tuple(masks), multiple_of, device)
        if constant and self._constants is not None:
            before, energies, old = self._constants
            if how == before and energies is self.norm_energies and torch.equal(values, old):
                return
        self.plan = CutPlan(self.family, self.shape, masks, device, multiple_of, self.norm_energies, constant)
        self.masks = masks
        self._values = to_device(values, device).requires_grad_(not constant)
        self._constants = (how, self.norm_energies, values) if constant else None
        self._decoder.cut = self
        kept = [units.counts(self.shape).experts for units in self.plan.units.layers.values()]
        self._balance_over(kept[0] if kept else self.shape.num_experts)
        if constant:
            self._bind()

    def _balance_over(self, num_experts: int) -> None:
        """How many experts the stock forward takes for there, where it adds the loss that balances their use."""
        if self.shape.num_experts:
            cast(Any, self.model).num_experts = num_experts

    def mask_gradients(self, reduce: Callable[[Tensor], None] = one_rank) -> dict[str, Tensor]:
        """Gradient of all backward passes since :meth:`set_masks` by axis, float32 on CPU; zeros where none flowed.

        Args:
            reduce (Callable): Applied in place to the flat gradient on its device, e.g. an average over ranks.
        """
        if self._values is None or self.masks is None:
            raise ValueError('mask_gradients needs masks: call set_masks first.')
        grad = torch.zeros_like(self._values) if self._values.grad is None else self._values.grad.clone()
        reduce(grad)
        grad = grad.detach().cpu()
        sizes = [self.masks[axis].numel() for axis in self.masks]
        return {axis: part.view_as(self.masks[axis]) for axis, part in zip(self.masks, grad.split(sizes))}

    def bind(self) -> list[int]:
        """Gives every module its cut for the forward pass that begins. Returns the kept layers in order."""
        if self.plan is None:
            raise ValueError('a forward pass with masks needs masks: call set_masks first.')
        if self._constants is None:
            self._bind()
        return list(self.plan.units.layers)

    def _bind(self) -> None:
        plan, values, shape = self.plan, self._values, self.shape
        assert plan is not None and values is not None
        kept = plan.hidden_count()
        ratio = math.sqrt(kept / shape.hidden_size) if self.family.scales_embedding else 1.0
        self._embedding.cut = (plan.hidden_index(), math.sqrt(kept), ratio)
        for path, cut in plan.cuts(values):
            if path in self._modules:
                self._modules[path].cut = cut
            elif path in self._mixers:
                self._mixers[path].cut = (path.rpartition('.')[2], cut)
            elif isinstance(cut.role, PerUnit):
                cast(CutAttention, self.model.get_submodule(path)).own = cut
        for layer, units in plan.units.layers.items():
            if layer in self._attention:
                self._attention[layer].cut = (units, shape)
            self._mlp[layer].cut = units
