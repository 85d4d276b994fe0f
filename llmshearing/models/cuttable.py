"""Makes a Hugging Face decoder run with its weights cut, without touching its code, names, parameters or checkpoints.

Each module of the family's table gets a subclass of its own class (same object, same parameters) whose ``forward`` runs
the stock ``forward`` on a stand-in for the module that shows the cut weights instead of the full ones. The cut is made
inside that call and nowhere else: FSDP2 reads the attributes outside it and must see the full parameters. Layers whose
mask is zero are taken out of the decoder's list for the length of its forward, so they cost nothing, not even
communication; an attention or MLP without any kept unit returns zeros without running.

A set of masks is installed by :meth:`Cutter.set_masks` and stays until the next; every forward pass binds it anew, so
several micro-batches may run, recompute and backpropagate under the same masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmshearing.compat.experts import record_router_logits
from llmshearing.compat.transformers import PER_LAYER_LISTS
from llmshearing.models.cutting import CutPlan, flatten_masks, to_device
from llmshearing.models.families import family_of
from llmshearing.models.mixtures import ALIGNED_EXPERTS
from llmshearing.models.roles import Experts, Family, Linear, Norm, PerUnit, Role, Whole
from llmshearing.models.shapes import ModelShape, shape_of
from llmshearing.models.units import AXES, mask_shapes

__all__ = ['Cutter']


class _StandIn:
    """Reads like a module, except for the attributes it replaces. Stock forwards run with it as ``self``."""

    def __init__(self, module: Any, replaced: Mapping[str, Any]):
        self.__dict__.update(replaced)
        self.__dict__['_module'] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['_module'], name)


class _Cuttable(nn.Module):
    """Base of all mixins: ``cut`` holds what the next forward does, None for the stock forward."""

    cut: Any = None

    def _stock(self, replaced: Mapping[str, Any], *args, **kwargs):
        return super(_Cuttable, type(self)).forward(_StandIn(self, replaced), *args, **kwargs)


class _CutProjection(_Cuttable):
    """A linear layer with kept rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        if self.cut is None:
            return super().forward(x)
        return self._stock(self.cut.parameters(self._parameters), x)


class _CutNorm(_Cuttable):
    """A norm over the kept dimensions; padding among them is passed over and comes out as zeros."""

    def forward(self, x: Tensor) -> Tensor:
        if self.cut is None:
            return super().forward(x)
        replaced: dict[str, Any] = self.cut.parameters(self._parameters)
        replaced['normalized_shape'] = tuple(replaced['weight'].shape)
        if self.cut.real is None:
            return self._stock(replaced, x)
        real = self.cut.real
        replaced = {name: value.index_select(0, real) for name, value in replaced.items() if isinstance(value, Tensor)}
        replaced['normalized_shape'] = (len(real),)
        out = self._stock(replaced, x.index_select(-1, real))
        return out.new_zeros(x.shape).index_copy(-1, real, out)


class _CutEmbedding(_Cuttable):
    """An embedding whose looked-up rows are cut to the kept hidden dimensions: cheaper than cutting the table.

    Where the embedding multiplies by the root of the hidden size itself, it does so with the kept one, as the exported
    model does; elsewhere the decoder multiplies by the source's, and the ratio of both is put in here.
    """

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.cut is None:
            return super().forward(input_ids)
        index, kept_root, ratio = self.cut
        scale = self._buffers.get('embed_scale')
        if scale is not None:
            self._buffers['embed_scale'] = torch.full_like(scale, kept_root)
        try:
            out = super().forward(input_ids)
        finally:
            if scale is not None:
                self._buffers['embed_scale'] = scale
        out = out if index is None else out.index_select(-1, index)
        return out if ratio == 1.0 or scale is not None else out * ratio


class _CutAttention(_Cuttable):
    """Attention over the kept heads: the stock forward reads their numbers from itself or its config.

    ``own`` is the cut of the parameters that the module has besides its projections, where it has any.
    """

    own: Any = None

    def forward(self, *args, **kwargs):
        if self.cut is None:
            return super().forward(*args, **kwargs)
        units, shape = self.cut
        if not units.has_attention:
            hidden_states = kwargs['hidden_states'] if 'hidden_states' in kwargs else args[0]
            return torch.zeros_like(hidden_states), None
        counts = units.counts(shape)
        numbers = {'num_attention_heads': counts.heads, 'num_key_value_heads': counts.kv_heads}
        replaced = {'num_key_value_groups': units.group_size, 'config': _StandIn(self.config, numbers), **numbers}
        if self.own is not None:
            replaced |= self.own.parameters(self._parameters)
        return self._stock(replaced, *args, **kwargs)


class _CutMixer(_Cuttable):
    """A mixer whose stock forward reads the parameters of a module inside it by itself, such as a convolution's."""

    def forward(self, *args, **kwargs):
        if self.cut is None:
            return super().forward(*args, **kwargs)
        name, cut = self.cut
        inside = self.get_submodule(name)
        return self._stock({name: _StandIn(inside, cut.parameters(inside._parameters))}, *args, **kwargs)


class _CutMLP(_Cuttable):
    """An MLP; without any kept intermediate dimension it adds nothing and is not run."""

    def forward(self, x: Tensor) -> Tensor:
        if self.cut is not None and not self.cut.has_mlp:
            return torch.zeros_like(x)
        return super().forward(x)


class _CutRouter(_Cuttable):
    """A router over the kept experts; a token goes to as many of them as before, or to all where fewer are left."""

    def forward(self, x: Tensor):
        if self.cut is None:
            return super().forward(x)
        replaced: dict[str, Any] = self.cut.parameters(self._parameters)
        replaced['num_experts'], replaced['hidden_dim'] = replaced['weight'].shape
        if hasattr(self, 'top_k'):
            replaced['top_k'] = min(cast(int, self.top_k), replaced['num_experts'])
        return self._stock(replaced, x)


class _CutExperts(_Cuttable):
    """The kept experts of a layer, where all are parameters of one module; hidden dimensions are padded for kernels."""

    def forward(self, x: Tensor, *routing: Tensor) -> Tensor:
        if self.cut is None:
            return super().forward(x, *routing)
        cut, added = self.cut.aligned(x.shape[-1])
        replaced: dict[str, Any] = cut.parameters(self._parameters)
        replaced['num_experts'] = len(replaced['down_proj'])
        if not added:
            return self._stock(replaced, x, *routing)
        return self._stock(replaced, nn.functional.pad(x, (0, added)), *routing)[..., :-added]


class _CutMixture(_Cuttable):
    """The MLP of a mixture of experts; where each expert is a module, it goes through those that are kept."""

    def forward(self, *args, **kwargs):
        experts = self._modules.get('experts')
        if self.cut is None or not isinstance(experts, nn.ModuleList) or self.cut.experts is None:
            return super().forward(*args, **kwargs)
        kept = [experts[index] for index in self.cut.experts.tolist()]
        replaced = {'experts': kept, 'num_experts': len(kept), 'top_k': min(cast(int, self.top_k), len(kept))}
        return self._stock(replaced, *args, **kwargs)


class _CutDecoder(_Cuttable):
    """The module that runs the layers: binds the masks for this forward and leaves out the layers they remove."""

    def forward(self, *args, **kwargs):
        if self.cut is None:
            return super().forward(*args, **kwargs)
        layers, kept = self.get_submodule('layers'), self.cut.bind()
        stack = list(layers.children())
        lists = {name: getattr(self.config, name, None) for name in PER_LAYER_LISTS}
        lists = {name: entries for name, entries in lists.items() if isinstance(entries, (list, tuple))}
        self._modules['layers'] = nn.ModuleList(stack[index] for index in kept)
        for name, entries in lists.items():  # transformers 5 reads them by a layer's place
            setattr(self.config, name, [entries[index] for index in kept])
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._modules['layers'] = layers
            for name, entries in lists.items():
                setattr(self.config, name, entries)


def _mixin_for(role: Role) -> type[_Cuttable]:
    """What a module of a role becomes."""
    if isinstance(role, Norm):
        return _CutNorm
    if isinstance(role, Experts):
        return _CutExperts
    return _CutRouter if isinstance(role, Linear) and role.rows == 'expert' else _CutProjection


_CLASSES: dict[tuple[type, type], type] = {}
_Mixin = TypeVar('_Mixin', bound=_Cuttable)


def _mix_in(module: nn.Module, mixin: type[_Mixin]) -> _Mixin:
    """Changes the class of ``module`` in place to a subclass of its own class with ``mixin`` in front."""
    stock = type(module)
    key = (mixin, stock)
    if key not in _CLASSES:
        _CLASSES[key] = type(f'{mixin.__name__.lstrip("_")}{stock.__name__}', (mixin, stock), {})
    module.__class__ = _CLASSES[key]
    assert isinstance(module, mixin)  # its class says so now, which type checkers cannot see
    return module


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
        decoder = model.get_submodule(self.family.decoder)
        self._embedding = _mix_in(decoder.get_submodule(self.family.embedding), _CutEmbedding)
        self._embedding_path = f'{self.family.decoder}.{self.family.embedding}'
        self._modules: dict[str, _Cuttable] = {}
        self._mixers: dict[str, _CutMixer] = {}  # by the path of the module inside
        for path, role, _ in self.family.modules(self.shape.num_hidden_layers):
            if isinstance(role, PerUnit) and not path.endswith(f'.{self.family.attention}'):
                self._mixers[path] = _mix_in(model.get_submodule(path.rpartition('.')[0]), _CutMixer)
            elif path != self._embedding_path and not isinstance(role, (Whole, PerUnit)):
                self._modules[path] = _mix_in(model.get_submodule(path), _mixin_for(role))
        layers = list(decoder.get_submodule('layers').children())
        self._attention = {
            number: _mix_in(layer.get_submodule(self.family.attention), _CutAttention)
            for number, layer in enumerate(layers)
            if self.family.has_attention(number)
        }
        mlp = _CutMixture if self.shape.num_experts else _CutMLP
        self._mlp = [_mix_in(layer.get_submodule(self.family.mlp), mlp) for layer in layers]
        stock = type(decoder)
        self._decoder = _mix_in(decoder, _CutDecoder)
        if self.shape.num_experts:
            record_router_logits(decoder, stock)

    def set_masks(self, masks: Mapping[str, Tensor] | None, multiple_of: int = 1) -> None:
        """Installs masks for the coming forward passes; None restores the stock model.

        Gradients with respect to the masks are accumulated over backward passes until the next call; read them with
        :meth:`mask_gradients`.

        Args:
            masks (Mapping[str, Tensor] | None): Values in [0, 1] by axis, shapes as in
                :func:`~llmshearing.models.units.mask_shapes`; axes that are left out are not cut.
            multiple_of (int): Round kept intermediate counts up to this with zero-mask units; in a mixture also to a
                multiple of :data:`~llmshearing.models.mixtures.ALIGNED_EXPERTS`.
        """
        if not masks:
            self.masks = self.plan = self._values = None
            self._decoder.cut = self._embedding.cut = None
            self._balance_over(self.shape.num_experts)
            for module in (*self._modules.values(), *self._attention.values(), *self._mixers.values(), *self._mlp):
                module.cut = None
            return
        self.masks = {axis: masks[axis].detach().float().cpu() for axis in AXES if axis in masks}
        unknown, possible = set(masks) - set(mask_shapes(self.shape)), mask_shapes(self.shape)
        if unknown:
            raise ValueError(f'unknown mask axes {sorted(unknown)}; possible: {", ".join(possible)}.')
        device = self._embedding.get_parameter('weight').device
        if self.shape.num_experts:
            multiple_of = math.lcm(multiple_of, ALIGNED_EXPERTS)
        self.plan = CutPlan(self.family, self.shape, self.masks, device, multiple_of, self.norm_energies)
        self._values = to_device(flatten_masks(self.masks), device).requires_grad_()
        self._decoder.cut = self
        kept = [units.counts(self.shape).experts for units in self.plan.units.layers.values()]
        self._balance_over(kept[0] if kept else self.shape.num_experts)

    def _balance_over(self, num_experts: int) -> None:
        """How many experts the stock forward takes for there, where it adds the loss that balances their use."""
        if self.shape.num_experts:
            cast(Any, self.model).num_experts = num_experts

    def mask_gradients(self, reduce: Callable[[Tensor], None] | None = None) -> dict[str, Tensor]:
        """Gradient of all backward passes since :meth:`set_masks` by axis, float32 on CPU; zeros where none flowed.

        Args:
            reduce (Callable | None): Applied in place to the flat gradient on its device, e.g. an average over ranks.
        """
        if self._values is None or self.masks is None:
            raise ValueError('mask_gradients needs masks: call set_masks first.')
        grad = torch.zeros_like(self._values) if self._values.grad is None else self._values.grad.clone()
        if reduce is not None:
            reduce(grad)
        grad = grad.detach().cpu()
        sizes = [self.masks[axis].numel() for axis in self.masks]
        return {axis: part.view_as(self.masks[axis]) for axis, part in zip(self.masks, grad.split(sizes))}

    def bind(self) -> list[int]:
        """Gives every module its cut for the forward pass that begins. Returns the kept layers in order."""
        plan, values, shape = self.plan, self._values, self.shape
        if plan is None or values is None:
            raise ValueError('a forward pass with masks needs masks: call set_masks first.')
        kept = plan.hidden_count()
        ratio = math.sqrt(kept / shape.hidden_size) if self.family.scales_embedding else 1.0
        self._embedding.cut = (plan.hidden_index(), math.sqrt(kept), ratio)
        for path, cut in plan.cuts(values):
            if path in self._modules:
                self._modules[path].cut = cut
            elif path in self._mixers:
                self._mixers[path].cut = (path.rpartition('.')[2], cut)
            elif isinstance(cut.role, PerUnit):
                cast(_CutAttention, self.model.get_submodule(path)).own = cut
        for layer, units in plan.units.layers.items():
            if layer in self._attention:
                self._attention[layer].cut = (units, shape)
            self._mlp[layer].cut = units
        return list(plan.units.layers)
