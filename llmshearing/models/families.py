"""Model families as tables: which axis of which parameter is which prunable axis. No modelling code.

A table names, for one decoder layer, each module that owns parameters and says for each side of its weight which
dimension it runs along (:data:`llmshearing.models.cutting.DIMENSIONS`). Together with what *reads* the residual stream
(norms) and what *writes* to it, this is all that cutting, folding, exporting and counting need.

To add a family: (1) copy the table of the nearest one below, (2) put in the module names as transformers prints
them, (3) mark the norms that read the stream and the modules that add to it, (4) register it under its ``model_type``
in :data:`FAMILIES` and add a tiny config of it to ``tests/models/tiny.py``; the tests then run on it by themselves.
"""
from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Callable, Iterator, Mapping, Optional, Union

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['FAMILIES', 'Family', 'Linear', 'Norm', 'family_of']


@dataclasses.dataclass(frozen=True)
class Linear:
    """A projection. Its weight is [rows, columns]; a bias runs along the rows.

    Attributes:
        rows (str | None): Dimension of the output, or None where it is never cut.
        columns (str | None): Dimension of the input.
        writes (bool): Its output is added to the residual stream: rows and bias are scaled by hidden and layer masks.
    """

    rows: Optional[str]
    columns: Optional[str]
    writes: bool = False


@dataclasses.dataclass(frozen=True)
class Norm:
    """A normalisation with a gain and perhaps a bias.

    Attributes:
        axis (str | None): Dimension it normalises, or None where it is never cut (norms over one head).
        reads (bool): Its input is the residual stream: gain and bias are scaled by the hidden mask.
        writes (bool): Its output is added to the residual stream: scaled by hidden and layer masks.
        offset (float): The gain in use is ``offset + weight`` (1 in Gemma).
    """

    axis: Optional[str] = 'hidden'
    reads: bool = False
    writes: bool = False
    offset: float = 0.0


Role = Union[Linear, Norm]


@dataclasses.dataclass(frozen=True)
class Family:
    """Where the parameters of a decoder are and along which axes they are cut.

    Attributes:
        layer (Mapping[str, Role]): Role of each module of one decoder layer, by its path inside the layer.
        decoder (str): Path of the module that embeds the tokens and runs the layers.
        embedding (str): Path of the embedding inside the decoder.
        final_norm (str): Path of the last norm inside the decoder.
        head (str): Path of the LM head.
        attention (str): Path of the attention module inside a layer.
        mlp (str): Path of the MLP inside a layer.
        norm_offset (float): Gain offset of the final norm.
        has_head_dim (bool): The config has a ``head_dim`` of its own, so hidden_size is free of heads x head_dim.
        scales_embedding (bool): The model multiplies embeddings by sqrt(hidden_size). The cut model does the same with
            its own hidden size, in the masked forward as in the exported config.
        layer_types (Callable | None): Kind of each layer by its position, from the config. A finished model's layer must
            stand where its kind is expected. None where all layers are alike.
    """

    layer: Mapping[str, Role]
    decoder: str = 'model'
    embedding: str = 'embed_tokens'
    final_norm: str = 'norm'
    head: str = 'lm_head'
    attention: str = 'self_attn'
    mlp: str = 'mlp'
    norm_offset: float = 0.0
    has_head_dim: bool = True
    scales_embedding: bool = False
    layer_types: Optional[Callable[[PretrainedConfig], tuple]] = None

    def modules(self, num_hidden_layers: int) -> Iterator[tuple[str, Role, Optional[int]]]:
        """Yields (module path, role, layer) of every module that owns parameters; layer is None outside the layers."""
        yield f'{self.decoder}.{self.embedding}', Linear(None, 'hidden'), None
        for layer in range(num_hidden_layers):
            for name, role in self.layer.items():
                yield f'{self.decoder}.layers.{layer}.{name}', role, layer
        yield f'{self.decoder}.{self.final_norm}', Norm(reads=True, offset=self.norm_offset), None
        yield self.head, Linear(None, 'hidden'), None


ATTENTION = {
    'self_attn.q_proj': Linear('query', 'hidden'),
    'self_attn.k_proj': Linear('key_value', 'hidden'),
    'self_attn.v_proj': Linear('key_value', 'hidden'),
    'self_attn.o_proj': Linear('hidden', 'query', writes=True),
}
MLP = {
    'mlp.gate_proj': Linear('intermediate', 'hidden'),
    'mlp.up_proj': Linear('intermediate', 'hidden'),
    'mlp.down_proj': Linear('hidden', 'intermediate', writes=True),
}
PRE_NORMS = {'input_layernorm': Norm(reads=True), 'post_attention_layernorm': Norm(reads=True)}

LLAMA = Family(layer={**PRE_NORMS, **ATTENTION, **MLP})

FAMILIES: dict[str, Family] = {
    'llama': LLAMA,
}


def family_of(config: PretrainedConfig) -> Family:
    """The table of a config's model type.

    Raises:
        ValueError: For a model type without a table, naming the supported ones.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(f'model_type {config.model_type!r} is not supported; supported: {", ".join(sorted(FAMILIES))}.')
    return family
