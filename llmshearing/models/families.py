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
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from llmshearing.compat.transformers import HEAD_OF_GPT_NEOX, layer_kinds
from llmshearing.utils.suggestions import nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['FAMILIES', 'Family', 'Linear', 'Norm', 'family_of', 'stored_name']


@dataclasses.dataclass(frozen=True)
class Linear:
    """A projection. Its weight is [rows, columns]; a bias runs along the rows.

    Attributes:
        rows (str | None): Dimension of the output, or None where it is never cut.
        columns (str | None): Dimension of the input.
        writes (bool): Its output is added to the residual stream: rows and bias are scaled by hidden and layer masks.
    """

    rows: str | None
    columns: str | None
    writes: bool = False


@dataclasses.dataclass(frozen=True)
class Norm:
    """A normalisation with a gain and perhaps a bias.

    Attributes:
        dim (str | None): Dimension it normalises, or None where it is never cut (norms over one head).
        reads (bool): Its input is the residual stream: gain and bias are scaled by the hidden mask.
        writes (bool): Its output is added to the residual stream: scaled by hidden and layer masks.
        offset (float): The gain in use is ``offset + weight`` (1 in Gemma).
        feeds (str | None): Of a norm that reads the stream: the module whose projections read its output, by the name
            of the family's attribute (``'attention'``, ``'mlp'`` or ``'head'``).
    """

    dim: str | None = 'hidden'
    reads: bool = False
    writes: bool = False
    offset: float = 0.0
    feeds: str | None = None


Role = Linear | Norm


@dataclasses.dataclass(frozen=True)
class Family:
    """Where the parameters of a decoder are and along which axes they are cut.

    Attributes:
        layer (Mapping[str, Role]): Role of each module of one decoder layer, by its path inside the layer.
        decoder (str): Path of the module that embeds the tokens and runs the layers.
        embedding (str): Path of the embedding inside the decoder.
        final_norm (str): Path of the last norm inside the decoder.
        head (str): Path of the LM head.
        stored_head (str | None): Its path in a model folder, where that is another one.
        attention (str): Path of the attention module inside a layer.
        mlp (str): Path of the MLP inside a layer.
        norm_offset (float): Gain offset of the final norm.
        has_head_dim (bool): The config has a ``head_dim`` of its own, so hidden_size is free of heads x head_dim.
        scales_embedding (bool): The model multiplies embeddings by sqrt(hidden_size). The cut model does the same with
            its own hidden size, in the masked forward as in the exported config.
        layer_types (Callable | None): Kind of each layer by its position, from the config. A finished model's layer
            must stand where its kind is expected. None where all layers are alike.
        subtracts_mean (bool): Its norms over the stream are LayerNorms, which subtract the mean; RMSNorms do not.
    """

    layer: Mapping[str, Role]
    decoder: str = 'model'
    embedding: str = 'embed_tokens'
    final_norm: str = 'norm'
    head: str = 'lm_head'
    stored_head: str | None = None
    attention: str = 'self_attn'
    mlp: str = 'mlp'
    norm_offset: float = 0.0
    has_head_dim: bool = True
    scales_embedding: bool = False
    layer_types: Callable[[PretrainedConfig], tuple] | None = None
    subtracts_mean: bool = False

    @property
    def rotates(self) -> bool:
        """Whether its residual stream can be put into another basis: no norm writes to it or subtracts a mean."""
        writing = any(isinstance(role, Norm) and role.writes for role in self.layer.values())
        return not (writing or self.subtracts_mean)

    def stored_name(self, name: str) -> str:
        """Name in a model folder of a parameter of the model."""
        if self.stored_head is not None and name.startswith(f'{self.head}.'):
            return f'{self.stored_head}{name.removeprefix(self.head)}'
        return name

    def modules(self, num_hidden_layers: int) -> Iterator[tuple[str, Role, int | None]]:
        """Yields (module path, role, layer) of every module that owns parameters; layer is None outside the layers."""
        yield f'{self.decoder}.{self.embedding}', Linear(None, 'hidden'), None
        for layer in range(num_hidden_layers):
            for name, role in self.layer.items():
                yield f'{self.decoder}.layers.{layer}.{name}', role, layer
        yield f'{self.decoder}.{self.final_norm}', Norm(reads=True, offset=self.norm_offset, feeds='head'), None
        yield self.head, Linear(None, 'hidden'), None


def _pre_norms(offset: float = 0.0) -> dict[str, Role]:
    """Norms before attention and MLP, as in LLaMA."""
    return {
        'input_layernorm': Norm(reads=True, offset=offset, feeds='attention'),
        'post_attention_layernorm': Norm(reads=True, offset=offset, feeds='mlp'),
    }


def _sandwich_norms(offset: float) -> dict[str, Role]:
    """Norms before and after attention and MLP, as in Gemma 2; those after write to the stream."""
    return {
        'input_layernorm': Norm(reads=True, offset=offset, feeds='attention'),
        'post_attention_layernorm': Norm(writes=True, offset=offset),
        'pre_feedforward_layernorm': Norm(reads=True, offset=offset, feeds='mlp'),
        'post_feedforward_layernorm': Norm(writes=True, offset=offset),
    }


def _attention(writes: bool = True) -> dict[str, Role]:
    """Separate projections; ``writes`` unless a norm stands between them and the stream."""
    return {
        'self_attn.q_proj': Linear('query', 'hidden'),
        'self_attn.k_proj': Linear('key_value', 'hidden'),
        'self_attn.v_proj': Linear('key_value', 'hidden'),
        'self_attn.o_proj': Linear('hidden', 'query', writes=writes),
    }


def _gated_mlp(writes: bool = True) -> dict[str, Role]:
    return {
        'mlp.gate_proj': Linear('intermediate', 'hidden'),
        'mlp.up_proj': Linear('intermediate', 'hidden'),
        'mlp.down_proj': Linear('hidden', 'intermediate', writes=writes),
    }


LLAMA = Family(layer={**_pre_norms(), **_attention(), **_gated_mlp()})

# Norms over the single head: nothing of them is ever cut.
HEAD_NORMS = {'self_attn.q_norm': Norm(dim=None), 'self_attn.k_norm': Norm(dim=None)}

QWEN3 = Family(layer={**LLAMA.layer, **HEAD_NORMS})

GEMMA = Family(layer={**_pre_norms(offset=1.0), **_attention(), **_gated_mlp()}, norm_offset=1.0, scales_embedding=True)

GEMMA2 = dataclasses.replace(
    GEMMA,
    layer={**_sandwich_norms(offset=1.0), **_attention(writes=False), **_gated_mlp(writes=False)},
    layer_types=lambda config: tuple(
        layer_kinds(config) or (layer % 2 == 0 for layer in range(config.num_hidden_layers))
    ),
)

GEMMA3 = dataclasses.replace(
    GEMMA2,
    layer={**GEMMA2.layer, **HEAD_NORMS},
    layer_types=lambda config: tuple(
        layer_kinds(config)
        or ((layer + 1) % config.sliding_window_pattern != 0 for layer in range(config.num_hidden_layers))
    ),
)

PHI3 = Family(
    layer={
        **_pre_norms(),
        'self_attn.qkv_proj': Linear('query_key_value', 'hidden'),
        'self_attn.o_proj': Linear('hidden', 'query', writes=True),
        'mlp.gate_up_proj': Linear('gate_up', 'hidden'),
        'mlp.down_proj': Linear('hidden', 'intermediate', writes=True),
    }
)

GLM = Family(
    layer={
        **_pre_norms(),
        **_attention(),
        'mlp.gate_up_proj': Linear('gate_up', 'hidden'),
        'mlp.down_proj': Linear('hidden', 'intermediate', writes=True),
    }
)

OLMO2 = Family(
    layer={
        **_attention(writes=False),
        'self_attn.q_norm': Norm('query'),
        'self_attn.k_norm': Norm('key_value'),
        **_gated_mlp(writes=False),
        'post_attention_layernorm': Norm(writes=True),
        'post_feedforward_layernorm': Norm(writes=True),
    }
)

STARCODER2 = Family(
    layer={
        **_pre_norms(),
        **_attention(),
        'mlp.c_fc': Linear('intermediate', 'hidden'),
        'mlp.c_proj': Linear('hidden', 'intermediate', writes=True),
    },
    subtracts_mean=True,
)

GPT_NEOX = Family(
    layer={
        **_pre_norms(),
        'attention.query_key_value': Linear('query_key_value_per_head', 'hidden'),
        'attention.dense': Linear('hidden', 'query', writes=True),
        'mlp.dense_h_to_4h': Linear('intermediate', 'hidden'),
        'mlp.dense_4h_to_h': Linear('hidden', 'intermediate', writes=True),
    },
    decoder='gpt_neox',
    embedding='embed_in',
    final_norm='final_layer_norm',
    head=HEAD_OF_GPT_NEOX,
    stored_head='embed_out',
    attention='attention',
    has_head_dim=False,
    subtracts_mean=True,
)

# By transformers' model_type. Granite's multipliers are constants of its config and stay as they are.
FAMILIES: dict[str, Family] = {
    'llama': LLAMA,
    'mistral': LLAMA,
    'qwen2': LLAMA,
    'granite': LLAMA,
    'qwen3': QWEN3,
    'gemma': GEMMA,
    'gemma2': GEMMA2,
    'gemma3_text': GEMMA3,
    'phi3': PHI3,
    'olmo2': OLMO2,
    'starcoder2': STARCODER2,
    'gpt_neox': GPT_NEOX,
    'glm': GLM,
}


def stored_name(config: PretrainedConfig, name: str) -> str:
    """Name in a model folder of a parameter of the model in memory; the same for types without a table."""
    family = FAMILIES.get(config.model_type)
    return name if family is None else family.stored_name(name)


def family_of(config: PretrainedConfig) -> Family:
    """The table of a config's model type.

    Raises:
        ValueError: For a model type without a table, naming the supported ones.
    """
    family = FAMILIES.get(config.model_type)
    if family is not None:
        return family
    near = nearest(config.model_type, FAMILIES)
    reason = ''
    if getattr(config, 'is_encoder_decoder', False):
        reason = ' (an encoder-decoder model)'
    elif any(getattr(config, name, None) for name in ('num_experts', 'num_local_experts', 'n_routed_experts')):
        reason = ' (a mixture of experts)'
    raise ValueError(
        f'model_type {config.model_type!r}{reason} is not supported; '
        f'{f"the nearest that is: {near!r}; " if near else ""}supported: {", ".join(sorted(FAMILIES))}.'
    )
