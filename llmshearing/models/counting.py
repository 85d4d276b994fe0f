"""Counts a decoder of any shape: parameters, training FLOPs, KV-cache bytes; exact, and without building it.

The family's table says which dimensions each weight has. What the table leaves open (which modules have a bias, the
vocabulary, whether the LM head is tied) depends on the config and on defaults of the modelling code, so it is read from
the model itself: one layer of it, built on the meta device, which takes no memory. That one layer is also counted both
ways, so a table that misses a parameter is refused here and not found out later. The counts are plain arithmetic and
work on arrays of shapes as well, which is what the search for a budget uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from llmshearing.models.families import Family, Norm, family_of
from llmshearing.models.shapes import DTYPE_BYTES, ModelShape, check_heads, shape_of, with_shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    'DIMENSION_SIZES',
    'Layout',
    'ParameterCounts',
    'Weight',
    'count_parameters',
    'kv_cache_bytes_per_token',
    'layout_of',
    'matrix_parameters',
    'training_flops_per_token',
]

OFTEN_WRONG = ('hidden_act', 'rope_scaling', 'rope_theta', 'vocab_size', 'pad_token_id', 'initializer_range')

# Sizes of the dimensions that the family tables name (llmshearing.models.cutting.DIMENSIONS, and the hidden one).
DIMENSION_SIZES: dict[str, Callable[[ModelShape], int]] = {
    'hidden': lambda shape: shape.hidden_size,
    'query': lambda shape: shape.num_attention_heads * shape.head_dim,
    'key_value': lambda shape: shape.num_key_value_heads * shape.head_dim,
    'intermediate': lambda shape: shape.intermediate_size,
    'query_key_value': lambda shape: (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim,
    'gate_up': lambda shape: 2 * shape.intermediate_size,
    'query_key_value_per_head': lambda shape: 3 * shape.num_attention_heads * shape.head_dim,
}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One module's weight, [rows, columns], and perhaps a bias along its rows.

    Attributes:
        rows (str | int): Name of a dimension, or its fixed size.
        columns (str | int): The same; 1 for the gain of a norm.
        bias (bool): Whether the module has a bias.
        is_matrix (bool): Whether it is multiplied as a matrix, and not looked up or applied to each element.
        writes (bool): Whether its output is added to the residual stream.
    """

    rows: str | int
    columns: str | int
    bias: bool = False
    is_matrix: bool = False
    writes: bool = False

    def size(self, shape: ModelShape) -> int:
        """Elements of the weight, without the bias."""
        return _size(self.rows, shape) * _size(self.columns, shape)

    def parameters(self, shape: ModelShape) -> int:
        """Elements of weight and bias."""
        return self.size(shape) + (_size(self.rows, shape) if self.bias else 0)


def _size(dimension: str | int, shape: ModelShape) -> int:
    return dimension if isinstance(dimension, int) else DIMENSION_SIZES[dimension](shape)


@dataclasses.dataclass(frozen=True)
class Layout:
    """All weights of a model type under one config, of whatever shape.

    Attributes:
        embedding (Weight): The token embedding.
        layer (tuple[Weight, ...]): The weights of one decoder layer.
        final_norm (Weight): The norm before the LM head.
        head (Weight): The LM head, also where it is tied.
        tied (bool): The LM head is the embedding.
    """

    embedding: Weight
    layer: tuple[Weight, ...]
    final_norm: Weight
    head: Weight
    tied: bool


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
    """Reads the layout from the family's table and one layer of the model on the meta device.

    Raises:
        ValueError: If the model type has no family table, or no model can be built from the config.
        RuntimeError: If the table does not account for every parameter of the model.
    """
    family, source = family_of(config), shape_of(config)
    check_heads(source)
    shape = dataclasses.replace(source, num_hidden_layers=1)
    config = with_shape(config, shape, family.has_head_dim)
    config.sliding_window = None  # has no parameters, and transformers would warn of attention that is not run here
    model = _on_meta(config)
    parts: dict[str, list[Weight]] = {'embedding': [], 'layer': [], 'final_norm': [], 'head': []}
    for part, weight in _weights(family, model):
        parts[part].append(weight)
    tied = model.get_parameter(f'{family.head}.weight') is model.get_input_embeddings().weight
    (embedding,), (final_norm,), (head,) = parts['embedding'], parts['final_norm'], parts['head']
    layout = Layout(embedding, tuple(parts['layer']), final_norm, head, tied)
    counted, actual = count_parameters(layout, shape).total, sum(parameter.numel() for parameter in model.parameters())
    if counted != actual:
        raise RuntimeError(
            f'the table of model_type {config.model_type!r} accounts for {counted} of the {actual} parameters of a '
            'model with one layer; this is a bug in llmshearing.'
        )
    return layout


def _on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """A model without memory; modelling code answers a value it does not know in any of five ways."""
    MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # imports the modelling code, which must not happen under the meta device
    try:
        with torch.device('meta'):
            return AutoModelForCausalLM.from_config(config, attn_implementation='eager')
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        got = ', '.join(f'{key}={getattr(config, key)!r}' for key in OFTEN_WRONG if hasattr(config, key))
        raise ValueError(
            f'transformers builds no {config.model_type} model from the config of {config.name_or_path or "the source"}'
            f' ({type(error).__name__}: {error}); correct what its config.json gives, most often one of {got}.'
        ) from error


def _weights(family: Family, model: torch.nn.Module) -> Iterator[tuple[str, Weight]]:
    names = {
        f'{family.decoder}.{family.embedding}': 'embedding',
        f'{family.decoder}.{family.final_norm}': 'final_norm',
        family.head: 'head',
    }
    for path, role, _ in family.modules(1):
        module, part = model.get_submodule(path), names.get(path, 'layer')
        bias = getattr(module, 'bias', None) is not None
        if isinstance(role, Norm):
            (rows,) = module.get_parameter('weight').shape
            yield part, Weight(role.dim or rows, 1, bias, writes=role.writes)
        else:
            rows, columns = module.get_parameter('weight').shape
            yield part, Weight(role.rows or rows, role.columns or columns, bias, part != 'embedding', role.writes)


def count_parameters(layout: Layout, shape: ModelShape) -> ParameterCounts:
    """Counts the parameters of a shape. The fields of ``shape`` may be integer arrays: shapes counted together."""
    return ParameterCounts(
        embedding=layout.embedding.parameters(shape),
        layers=shape.num_hidden_layers * sum(weight.parameters(shape) for weight in layout.layer),
        final_norm=layout.final_norm.parameters(shape),
        head=layout.head.parameters(shape) - (layout.head.size(shape) if layout.tied else 0),
    )


def matrix_parameters(layout: Layout, shape: ModelShape) -> int:
    """Elements of all weights that are multiplied as matrices, the LM head included, tied or not."""
    in_layer = sum(weight.size(shape) for weight in layout.layer if weight.is_matrix)
    return shape.num_hidden_layers * in_layer + layout.head.size(shape)


def training_flops_per_token(layout: Layout, shape: ModelShape, seq_len: int) -> int:
    """Floating-point operations of forward and backward per token, without recomputation.

    ``6 * matrix parameters + 12 * layers * heads * head_dim * seq_len``: two operations per element forward and four
    backward, and the same for the two products of attention over the full square of ``seq_len`` positions (PaLM, arXiv
    2204.02311, appendix B). A causal kernel does half of the second term, a sliding window less.
    """
    attention = 12 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * seq_len
    return 6 * matrix_parameters(layout, shape) + attention


def kv_cache_bytes_per_token(shape: ModelShape, dtype: str = 'bfloat16') -> int:
    """Bytes of keys and values that generation keeps for each token of the context."""
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * DTYPE_BYTES[dtype]
