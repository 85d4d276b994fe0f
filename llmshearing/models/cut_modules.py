"""What a module of a decoder becomes so that its stock ``forward`` runs on cut weights.

Each gets a subclass of its own class (same object, same parameters) whose ``forward`` runs the stock ``forward`` on a
stand-in for the module that shows the cut weights instead of the full ones. The cut is made inside that call and
nowhere else: FSDP2 reads the attributes outside it and must see the full parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from llmshearing.compat.torch import own_parameters
from llmshearing.compat.transformers import per_layer_lists
from llmshearing.models.roles import Experts, Linear, Norm, Role

__all__ = [
    'CutAttention',
    'CutDecoder',
    'CutEmbedding',
    'CutMLP',
    'CutMixer',
    'CutMixture',
    'Cuttable',
    'mix_in',
    'mixin_for',
]


class _StandIn:
    """Reads like a module, except for the attributes it replaces. Stock forwards run with it as ``self``."""

    def __init__(self, module: Any, replaced: Mapping[str, Any]):
        self.__dict__.update(replaced)
        self.__dict__['_module'] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['_module'], name)


class Cuttable(nn.Module):
    """Base of all mixins: ``cut`` holds what the next forward does, None for the stock forward."""

    cut: Any = None

    def forward(self, *args, **kwargs):
        return self._uncut(*args, **kwargs) if self.cut is None else self._cut(*args, **kwargs)

    def _cut(self, *args, **kwargs) -> Any:
        raise NotImplementedError

    def _uncut(self, *args, **kwargs):
        return super().forward(*args, **kwargs)

    def _stock(self, replaced: Mapping[str, Any], *args, **kwargs):
        return super(Cuttable, type(self)).forward(_StandIn(self, replaced), *args, **kwargs)


class CutProjection(Cuttable):
    """A linear layer with kept rows and columns."""

    def _cut(self, x: Tensor) -> Tensor:
        return self._stock(self.cut.parameters(own_parameters(self)), x)


class CutNorm(Cuttable):
    """A norm over the kept dimensions; padding among them is passed over and comes out as zeros."""

    def _cut(self, x: Tensor) -> Tensor:
        parameters, real = self.cut.parameters(own_parameters(self)), self.cut.real
        if real is not None:
            parameters = {name: value.index_select(0, real) for name, value in parameters.items()}
        replaced = {**parameters, 'normalized_shape': tuple(parameters['weight'].shape)}
        if real is None:
            return self._stock(replaced, x)
        out = self._stock(replaced, x.index_select(-1, real))
        return out.new_zeros(x.shape).index_copy(-1, real, out)


class CutEmbedding(Cuttable):
    """An embedding whose looked-up rows are cut to the kept hidden dimensions: cheaper than cutting the table.

    Where the embedding multiplies by the root of the hidden size itself, it does so with the kept one, as the exported
    model does; elsewhere the decoder multiplies by the source's, and the ratio of both is put in here.
    """

    def _cut(self, input_ids: Tensor) -> Tensor:
        index, kept_root, ratio = self.cut
        scale = dict(self.named_buffers(recurse=False)).get('embed_scale')
        if scale is not None:
            self.embed_scale = torch.full_like(scale, kept_root)
        try:
            out = self._uncut(input_ids)
        finally:
            if scale is not None:
                self.embed_scale = scale
        out = out if index is None else out.index_select(-1, index)
        return out if ratio == 1.0 or scale is not None else out * ratio


class CutAttention(Cuttable):
    """Attention over the kept heads: the stock forward reads their numbers from itself or its config.

    ``own`` is the cut of the parameters that the module has besides its projections, where it has any.
    """

    own: Any = None

    def _cut(self, *args, **kwargs):
        units, shape = self.cut
        if not units.has_attention:
            hidden_states = kwargs['hidden_states'] if 'hidden_states' in kwargs else args[0]
            return torch.zeros_like(hidden_states), None
        counts = units.counts(shape)
        numbers = {'num_attention_heads': counts.heads, 'num_key_value_heads': counts.kv_heads}
        replaced = {'num_key_value_groups': units.group_size, 'config': _StandIn(self.config, numbers), **numbers}
        if self.own is not None:
            replaced |= self.own.parameters(own_parameters(self))
        return self._stock(replaced, *args, **kwargs)


class CutMixer(Cuttable):
    """A mixer whose stock forward reads the parameters of a module inside it by itself, such as a convolution's."""

    def _cut(self, *args, **kwargs):
        name, cut = self.cut
        inside = self.get_submodule(name)
        return self._stock({name: _StandIn(inside, cut.parameters(own_parameters(inside)))}, *args, **kwargs)


class CutMLP(Cuttable):
    """An MLP; without any kept intermediate dimension it adds nothing and is not run."""

    def _cut(self, x: Tensor) -> Tensor:
        return self._uncut(x) if self.cut.has_mlp else torch.zeros_like(x)


class CutRouter(Cuttable):
    """A router over the kept experts; a token goes to as many of them as before, or to all where fewer are left."""

    def _cut(self, x: Tensor):
        replaced: dict[str, Any] = self.cut.parameters(own_parameters(self))
        replaced['num_experts'], replaced['hidden_dim'] = replaced['weight'].shape
        if hasattr(self, 'top_k'):
            replaced['top_k'] = min(cast(int, self.top_k), replaced['num_experts'])
        return self._stock(replaced, x)


class CutExperts(Cuttable):
    """The kept experts of a layer, where all are parameters of one module; hidden dimensions are padded for kernels."""

    def _cut(self, x: Tensor, *routing: Tensor) -> Tensor:
        cut, added = self.cut.aligned(x.shape[-1])
        replaced: dict[str, Any] = cut.parameters(own_parameters(self))
        replaced['num_experts'] = len(replaced['down_proj'])
        if not added:
            return self._stock(replaced, x, *routing)
        return self._stock(replaced, nn.functional.pad(x, (0, added)), *routing)[..., :-added]


class CutMixture(Cuttable):
    """The MLP of a mixture of experts; where each expert is a module, it goes through those that are kept."""

    def _cut(self, *args, **kwargs):
        experts = dict(self.named_children()).get('experts')
        if hasattr(self, 'input_size'):  # what Granite's takes its output to be wide
            return self._stock({'input_size': args[0].shape[-1]}, *args, **kwargs)
        if not isinstance(experts, nn.ModuleList) or self.cut.experts is None:
            return self._uncut(*args, **kwargs)
        kept = [experts[index] for index in self.cut.experts.tolist()]
        replaced = {'experts': kept, 'num_experts': len(kept), 'top_k': min(cast(int, self.top_k), len(kept))}
        return self._stock(replaced, *args, **kwargs)


class CutDecoder(Cuttable):
    """The module that runs the layers: binds the masks for this forward and leaves out the layers they remove."""

    def _cut(self, *args, **kwargs):
        layers, kept = self.get_submodule('layers'), self.cut.bind()
        stack, lists = list(layers.children()), per_layer_lists(self.config)
        self.layers = nn.ModuleList(stack[index] for index in kept)
        for name, entries in lists.items():  # transformers 5 reads them by a layer's place
            setattr(self.config, name, [entries[index] for index in kept])
        try:
            return self._uncut(*args, **kwargs)
        finally:
            self.layers = layers
            for name, entries in lists.items():
                setattr(self.config, name, entries)


def mixin_for(role: Role) -> type[Cuttable]:
    """What a module of a role becomes."""
    if isinstance(role, Norm):
        return CutNorm
    if isinstance(role, Experts):
        return CutExperts
    return CutRouter if isinstance(role, Linear) and role.rows == 'expert' else CutProjection


_CLASSES: dict[tuple[type, type], type] = {}
_Mixin = TypeVar('_Mixin', bound=Cuttable)


def mix_in(module: nn.Module, mixin: type[_Mixin]) -> _Mixin:
    """Changes the class of ``module`` in place to a subclass of its own class with ``mixin`` in front."""
    stock = type(module)
    key = (mixin, stock)
    if key not in _CLASSES:
        _CLASSES[key] = type(f'{mixin.__name__}{stock.__name__}', (mixin, stock), {})
    module.__class__ = _CLASSES[key]
    assert isinstance(module, mixin)  # its class says so now, which type checkers cannot see
    return module
