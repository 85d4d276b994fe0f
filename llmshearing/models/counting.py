"""Counts a decoder of any shape: parameters, training FLOPs, KV-cache bytes; exact, and without building it.

The family's table says which dimensions each weight has. What the table leaves open (which modules have a bias, the
vocabulary, whether the LM head is tied) depends on the config and on defaults of the modelling code, so it is read from
the model itself: one layer of it, built on the meta device, which takes no memory. That one layer is also counted both
ways, so a table that misses a parameter is refused here and not found out later. The counts are plain arithmetic and
work on arrays of shapes as well, which is what the search for a budget uses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmshearing.compat.transformers import ignores_windows
from llmshearing.models.dimensions import DIMENSIONS
from llmshearing.models.families import family_of, has_own_table
from llmshearing.models.on_meta import build_on_meta
from llmshearing.models.roles import Experts, Norm, PerUnit, Role, Whole, expert_of
from llmshearing.models.shapes import DTYPE_BYTES, ModelShape, check_heads, shape_of, with_shape
from llmshearing.models.source_config import layer_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    'Layout',
    'ParameterCounts',
    'Weight',
    'active_parameters',
    'check_table',
    'count_parameters',
    'count_source',
    'kv_cache_bytes_per_token',
    'kv_cache_window_bytes',
    'layout_of',
    'training_flops_per_token',
]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One module's weight, [rows, columns], and perhaps a bias along its rows.

    Attributes:
        rows (str | int): Name of a dimension, or its fixed size.
        columns (str | int): The same; 1 for the gain of a norm and for parameters that are no weight.
        bias (bool): Whether the module has a bias.
        is_matrix (bool): Whether it is multiplied as a matrix, and not looked up or applied to each element.
        writes (bool): Whether its output is added to the residual stream.
        routed (bool): Whether every routed expert has one such weight.
    """

    rows: str | int
    columns: str | int
    bias: bool = False
    is_matrix: bool = False
    writes: bool = False
    routed: bool = False

    def size(self, shape: ModelShape) -> int:
        """Elements of the weight, without the bias; of all experts together."""
        return self._count(shape) * _size(self.rows, shape) * _size(self.columns, shape)

    def parameters(self, shape: ModelShape) -> int:
        """Elements of weight and bias."""
        return self.size(shape) + (self._count(shape) * _size(self.rows, shape) if self.bias else 0)

    def active(self, shape: ModelShape) -> ModelShape:
        """The shape of what computes one token: of routed experts those that it goes to."""
        return dataclasses.replace(shape, num_experts=shape.num_experts_per_tok) if self.routed else shape

    def _count(self, shape: ModelShape) -> int:
        return shape.num_experts if self.routed else 1


def _size(dimension: str | int, shape: ModelShape) -> int:
    return dimension if isinstance(dimension, int) else DIMENSIONS[dimension].size(shape)


@dataclasses.dataclass(frozen=True)
class Layout:
    """All weights of a model type under one config, of whatever shape.

    Attributes:
        embedding (Weight): The token embedding.
        layer (Mapping[str | None, tuple[Weight, ...]]): The weights of one decoder layer of each kind; of the kind None
            where all layers are alike.
        kinds (tuple[str, ...]): Kind of each layer by its place; empty where all layers are alike.
        final_norm (Weight): The norm before the LM head.
        head (Weight): The LM head, also where it is tied.
        tied (bool): The LM head is the embedding.
        window (int): Tokens that layers with a sliding window look back at; 0 where none has one that is shorter than
            the longest context.
        windowed (tuple[bool, ...]): Whether each layer has one by its place; empty where none has.
    """

    embedding: Weight
    layer: Mapping[str | None, tuple[Weight, ...]]
    kinds: tuple[str, ...]
    final_norm: Weight
    head: Weight
    tied: bool
    window: int = 0
    windowed: tuple[bool, ...] = ()

    def in_layers(self, count: Callable[[Weight], int], num_hidden_layers: int) -> int:
        """The sum of ``count`` over all weights of the first so many layers; their number may be an integer array."""
        return sum(
            self._layers_of(kind, num_hidden_layers) * sum(map(count, weights)) for kind, weights in self.layer.items()
        )

    def _layers_of(self, kind: str | None, num_hidden_layers: Any) -> Any:
        """How many of the first so many layers are of a kind."""
        if not self.kinds:
            return num_hidden_layers
        if isinstance(num_hidden_layers, int):
            return self.kinds[:num_hidden_layers].count(str(kind))
        return np.cumsum([0, *(other == kind for other in self.kinds)])[num_hidden_layers]

    def windowed_layers(self, num_hidden_layers: Any) -> Any:
        """How many of the first so many layers have a sliding window."""
        if isinstance(num_hidden_layers, int):
            return sum(self.windowed[:num_hidden_layers])
        return np.cumsum([0, *self.windowed])[num_hidden_layers] if self.windowed else 0 * num_hidden_layers

    def attention_layers(self, num_hidden_layers: int) -> int:
        """How many of the first so many layers have attention."""
        return self.in_layers(lambda weight: weight.columns == 'query', num_hidden_layers)


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model by place; a tied LM head is counted once, as the embedding.

    Attributes:
        embedding (int): Token embedding.
        layers (int): All decoder layers.
        final_norm (int): The norm before the LM head.
        head (int): LM head; 0 where it is tied.
    """

    embedding: int
    layers: int
    final_norm: int
    head: int

    @property
    def total(self) -> int:
        """As ``model.num_parameters()`` of transformers."""
        return self.embedding + self.layers + self.final_norm + self.head

    @property
    def without_embeddings(self) -> int:
        """Without the embedding and without the LM head: what computes between them."""
        return self.layers + self.final_norm


def layout_of(config: PretrainedConfig) -> Layout:
    """Reads the layout from the family's table and a layer of each kind of the model on the meta device.

    Raises:
        ValueError: If the model type has no family table, no model can be built from the config, or a table of another
            package does not account for every parameter of the model.
        RuntimeError: If a table of this package does not.
    """
    family, source = family_of(config), shape_of(config)
    check_heads(source)
    window, windowed = layer_windows(config) or (0, [])
    if window >= getattr(config, 'max_position_embeddings', math.inf):
        window, windowed = 0, []
    kinds = family.kinds[: source.num_hidden_layers]
    first_of_kind = {kind: kinds.index(kind) for kind in kinds} or {None: 0}
    shape = dataclasses.replace(source, num_hidden_layers=1 + max(first_of_kind.values()))  # one of each at least
    config = with_shape(config, shape, family.has_head_dim)
    if ignores_windows(config):
        config.sliding_window = None  # has no parameters, and transformers would warn of attention that is not run here
    model = build_on_meta(config)
    try:
        modules = [
            (path, layer, _weights(role, model.get_submodule(path)))
            for path, role, layer in family.modules(shape.num_hidden_layers)
        ]
    except AttributeError as error:
        raise _wrong_table(config, f'names a module that is not there ({error})') from error
    outside = {path: weights for path, layer, weights in modules if layer is None}
    tied = model.get_parameter(f'{family.head}.weight') is model.get_input_embeddings().weight
    (embedding,), (final_norm,), (head,) = outside.values()
    layers = {
        kind: tuple(weight for _, layer, weights in modules if layer == place for weight in weights)
        for kind, place in first_of_kind.items()
    }
    embedding = dataclasses.replace(embedding, is_matrix=False)
    layout = Layout(embedding, layers, kinds, final_norm, head, tied, window, tuple(windowed))
    counted, actual = count_parameters(layout, shape).total, sum(parameter.numel() for parameter in model.parameters())
    if counted != actual:
        what = f'accounts for {counted} of the {actual} parameters of a model of {shape}'
        if has_own_table(config):
            raise RuntimeError(f'the table of model_type {config.model_type!r} {what}; this is a bug in llmshearing.')
        raise _wrong_table(config, what)
    return layout


def check_table(config: PretrainedConfig, target: ModelShape) -> None:
    """Raises a ValueError where a model of the target has other weights than the table cuts a source to.

    Tables of this package are held against exported folders by the tests, for every axis; those of others are not.
    """
    before, after = layout_of(config), layout_of(with_shape(config, target, family_of(config).has_head_dim))
    pairs = [(before.embedding, after.embedding), (before.final_norm, after.final_norm), (before.head, after.head)]
    for kind, weights in after.layer.items():
        pairs += zip(before.layer[kind], weights)
    for old, new in pairs:
        if old != new:
            what = f'leaves a weight of {old.rows} x {old.columns} as it is, which is {new.rows} x {new.columns} in one'
            raise _wrong_table(config, f'{what} of {target}')


def _wrong_table(config: PretrainedConfig, what: str) -> ValueError:
    return ValueError(
        f'the table that is registered for model_type {config.model_type!r} (llmshearing_families) does not fit the '
        f'models of transformers: it {what}. Correct the table: every weight with its dimensions, '
        'has_head_dim=False where a head is hidden_size / num_attention_heads wide whatever the config says, and, of a '
        'mixture, what its config calls its numbers (MIXTURES of llmshearing.models.mixtures).'
    )


def _weights(role: Role, module: torch.nn.Module) -> list[Weight]:
    """What a module holds, as the table sees it."""
    if isinstance(role, (Whole, PerUnit)):
        named = [getattr(module, name, None) for name in (*role.parameters, *role.optional)]
        held = [tensor for tensor in named if tensor is not None]
        if isinstance(role, Whole):
            return [Weight(tensor.numel(), 1) for tensor in held]
        return [Weight(role.dim, tensor[0].numel()) for tensor in held]
    if isinstance(role, Experts):
        bias = getattr(module, 'gate_up_proj_bias', None) is not None
        return [
            Weight('gate_up', 'hidden', bias, is_matrix=True, routed=True),
            Weight('hidden', 'intermediate', bias, is_matrix=True, writes=True, routed=True),
        ]
    bias = getattr(module, 'bias', None) is not None
    rows, *columns = module.get_parameter('weight').shape
    if isinstance(role, Norm):
        return [Weight(role.dim or rows, 1, bias, writes=role.writes)]
    if expert_of(role):
        return []  # counted with the first one
    weight = Weight(role.rows or rows, role.columns or columns[0], bias, is_matrix=True, writes=role.writes)
    return [dataclasses.replace(weight, routed=expert_of(role) is not None)]


def count_parameters(layout: Layout, shape: ModelShape) -> ParameterCounts:
    """Counts the parameters of a shape. The fields of ``shape`` may be integer arrays: shapes counted together."""
    return ParameterCounts(
        embedding=layout.embedding.parameters(shape),
        layers=layout.in_layers(lambda weight: weight.parameters(shape), shape.num_hidden_layers),
        final_norm=layout.final_norm.parameters(shape),
        head=layout.head.parameters(shape) - (layout.head.size(shape) if layout.tied else 0),
    )


def count_source(layout: Layout, source: ModelShape) -> int:
    """Parameters of a source by the layout of what it was cut to.

    Raises:
        ValueError: If layers are of several kinds, and the cut model's do not say which the source has.
    """
    if layout.kinds and len(layout.kinds) < source.num_hidden_layers:
        raise ValueError('the kinds of the layers that went are not known')
    return int(count_parameters(layout, source).total)


def active_parameters(layout: Layout, shape: ModelShape) -> int:
    """Parameters that compute one token: all, but of routed experts only those that it goes to."""
    counts, layers = count_parameters(layout, shape), shape.num_hidden_layers
    return counts.total - counts.layers + layout.in_layers(lambda w: w.parameters(w.active(shape)), layers)


def training_flops_per_token(layout: Layout, shape: ModelShape, seq_len: int) -> int:
    """Floating-point operations of forward and backward per token, without recomputation.

    ``6 * matrix parameters + 12 * attention layers * heads * head_dim * seq_len``: two operations per element forward
    and four backward, and the same for the two products of attention over the full square of ``seq_len`` positions
    (PaLM, arXiv 2204.02311, appendix B). A causal kernel does half of the second term, a sliding window less. The
    recurrence of layers with another mixer is left out; their projections are counted. Of routed experts those count
    that a token goes to.
    """
    layers = shape.num_hidden_layers
    matrices = layout.in_layers(lambda w: w.is_matrix * w.size(w.active(shape)), layers) + layout.head.size(shape)
    attention = layout.attention_layers(layers) * shape.num_attention_heads * shape.head_dim * seq_len
    return 6 * matrices + 12 * attention


def kv_cache_bytes_per_token(layout: Layout, shape: ModelShape) -> int:
    """Bytes of keys and values that generation keeps for each token of the context, however long it is.

    Layers with a sliding window keep no more than :func:`kv_cache_window_bytes` together and are left out.
    """
    layers = layout.attention_layers(shape.num_hidden_layers) - layout.windowed_layers(shape.num_hidden_layers)
    return _kv_bytes(shape) * layers


def kv_cache_window_bytes(layout: Layout, shape: ModelShape) -> int:
    """Bytes of keys and values that the layers with a sliding window keep once it is full; 0 where none has one."""
    return _kv_bytes(shape) * layout.windowed_layers(shape.num_hidden_layers) * layout.window


def _kv_bytes(shape: ModelShape) -> int:
    """Of one token in one layer, in bfloat16."""
    return 2 * shape.num_key_value_heads * shape.head_dim * DTYPE_BYTES['bfloat16']
