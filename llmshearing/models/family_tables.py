"""The tables of model families. No modelling code.

To add a family: (1) copy the table of the nearest one below, (2) put in the module names as transformers prints
them, (3) mark the norms that read the stream and the modules that add to it, (4) list it under its ``model_type`` in
:data:`TABLES` and add a tiny config of it to ``tests/models/tiny.py``; the tests then run on it by themselves. Families
of other packages: :mod:`llmshearing.models.families`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from llmshearing.compat.transformers import EXPERTS_ARE_MODULES, HEAD_OF_GPT_NEOX, LEFT_OUT, layer_kinds
from llmshearing.models.roles import EXPERT, Experts, Family, Linear, Norm, PerHead, Role, StoredExperts, Whole

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['LLAMA', 'TABLES']


def _kinds(config: PretrainedConfig, pattern: int | None = None) -> tuple:
    """Kind of each layer: as the config lists it, else every ``pattern``-th layer is of the other kind."""
    listed = layer_kinds(config)
    if listed or not pattern:
        return tuple(listed or ())
    return tuple((layer + 1) % pattern != 0 for layer in range(config.num_hidden_layers))


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


def _plain_mlp() -> dict[str, Role]:
    return {
        'mlp.up_proj': Linear('intermediate', 'hidden'),
        'mlp.down_proj': Linear('hidden', 'intermediate', writes=True),
    }


def _fused_mlp(writes: bool = True) -> dict[str, Role]:
    """Gate and up projection in one."""
    return {
        'mlp.gate_up_proj': Linear('gate_up', 'hidden'),
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
    layer_types=lambda config: _kinds(config, pattern=2),
)

GEMMA3 = dataclasses.replace(
    GEMMA2,
    layer={**GEMMA2.layer, **HEAD_NORMS},
    layer_types=lambda config: _kinds(config, getattr(config, 'sliding_window_pattern', None)),
)

VAULTGEMMA = dataclasses.replace(
    GEMMA,
    layer={
        'input_layernorm': Norm(reads=True, offset=1.0, feeds='attention'),
        'pre_feedforward_layernorm': Norm(reads=True, offset=1.0, feeds='mlp'),
        **_attention(),
        **_gated_mlp(),
    },
)

PHI3 = Family(
    layer={
        **_pre_norms(),
        'self_attn.qkv_proj': Linear('query_key_value', 'hidden'),
        'self_attn.o_proj': Linear('hidden', 'query', writes=True),
        **_fused_mlp(),
    }
)

GLM = Family(layer={**_pre_norms(), **_attention(), **_fused_mlp()})

GLM4 = Family(
    layer={
        'input_layernorm': Norm(reads=True, feeds='attention'),
        'post_self_attn_layernorm': Norm(writes=True),
        'post_attention_layernorm': Norm(reads=True, feeds='mlp'),
        'post_mlp_layernorm': Norm(writes=True),
        **_attention(writes=False),
        **_fused_mlp(writes=False),
    }
)

# Norms after attention and MLP and none before.
POST_NORMS = {'post_attention_layernorm': Norm(writes=True), 'post_feedforward_layernorm': Norm(writes=True)}

EXAONE4 = Family(layer={**_attention(writes=False), **HEAD_NORMS, **_gated_mlp(writes=False), **POST_NORMS})

OLMO2 = Family(
    layer={
        **_attention(writes=False),
        'self_attn.q_norm': Norm('query'),
        'self_attn.k_norm': Norm('key_value'),
        **_gated_mlp(writes=False),
        **POST_NORMS,
    }
)

ARCEE = Family(layer={**_pre_norms(), **_attention(), **_plain_mlp()})

JAIS2 = dataclasses.replace(ARCEE, subtracts_mean=True)

NEMOTRON = Family(
    layer={**_pre_norms(offset=1.0), **_attention(), **_plain_mlp()}, norm_offset=1.0, subtracts_mean=True
)

APERTUS = Family(
    layer={
        'attention_layernorm': Norm(reads=True, feeds='attention'),
        'feedforward_layernorm': Norm(reads=True, feeds='mlp'),
        **_attention(),
        **HEAD_NORMS,
        **_plain_mlp(),
        'mlp.act_fn': Whole(('alpha_p', 'alpha_n'), buffers=('beta', 'eps')),
    }
)

HUNYUAN = Family(
    layer={**LLAMA.layer, 'self_attn.query_layernorm': Norm(dim=None), 'self_attn.key_layernorm': Norm(dim=None)}
)

# Attention and MLP side by side behind one norm.
COHERE2 = Family(
    layer={'input_layernorm': Norm(reads=True), **_attention(), **_gated_mlp()},
    layer_types=lambda config: _kinds(config, getattr(config, 'sliding_window_pattern', None)),
    subtracts_mean=True,
)


def _experts() -> dict[str, Role]:
    """Router and routed experts, as in Qwen's mixtures."""
    if EXPERTS_ARE_MODULES:
        return {'mlp.gate': Linear('expert', 'hidden'), **_expert_modules('mlp', 'gate_proj', 'up_proj', 'down_proj')}
    return {'mlp.gate': Linear('expert', 'hidden'), 'mlp.experts': Experts()}


def _expert_modules(mlp: str, gate: str, up: str, down: str) -> dict[str, Role]:
    """Routed experts of which each is a module."""
    place = f'{mlp}.experts.{EXPERT}'
    return {
        f'{place}.{gate}': Linear('intermediate', 'hidden'),
        f'{place}.{up}': Linear('intermediate', 'hidden'),
        f'{place}.{down}': Linear('hidden', 'intermediate', writes=True),
    }


# How files hold experts that are one tensor in memory.
QWEN_FILES = None if EXPERTS_ARE_MODULES else StoredExperts('mlp', 'gate_proj', 'up_proj', 'down_proj')
MIXTRAL_FILES = None if EXPERTS_ARE_MODULES else StoredExperts('block_sparse_moe', 'w1', 'w3', 'w2')

QWEN3_MOE = Family(layer={**_pre_norms(), **_attention(), **HEAD_NORMS, **_experts()}, stored_experts=QWEN_FILES)

MIXTRAL = Family(layer={**_pre_norms(), **_attention(), **_experts()}, stored_experts=MIXTRAL_FILES)
if EXPERTS_ARE_MODULES:
    MIXTRAL = Family(
        layer={
            **_pre_norms(),
            **_attention(),
            'block_sparse_moe.gate': Linear('expert', 'hidden'),
            **_expert_modules('block_sparse_moe', 'w1', 'w3', 'w2'),
        },
        mlp='block_sparse_moe',
        expert_names=('w1', 'w3', 'w2'),
    )

# Computes every token; its width stays.
SHARED_EXPERT = {
    'mlp.shared_expert.gate_proj': Linear(None, 'hidden'),
    'mlp.shared_expert.up_proj': Linear(None, 'hidden'),
    'mlp.shared_expert.down_proj': Linear('hidden', None, writes=True),
    'mlp.shared_expert_gate': Linear(None, 'hidden'),
}

QWEN2_MOE = Family(layer={**_pre_norms(), **_attention(), **_experts(), **SHARED_EXPERT}, stored_experts=QWEN_FILES)

# Its norms over all heads have as many gains as hidden dimensions, so hidden_size is heads x head_dim.
OLMOE = Family(
    layer={
        **_pre_norms(),
        **_attention(),
        'self_attn.q_norm': Norm('query'),
        'self_attn.k_norm': Norm('key_value'),
        **_experts(),
    },
    stored_experts=QWEN_FILES,
    has_head_dim=False,
)

GPT_OSS = Family(
    layer={
        **_pre_norms(),
        'self_attn': PerHead(('sinks',)),
        **_attention(),
        'mlp.router': Linear('expert', 'hidden'),
        'mlp.experts': Experts(transposed=True, interleaved=True),
    }
)


def _gated_delta_net(*inputs: str) -> dict[str, Role]:
    """Linear attention by the gated delta rule, opaque; ``inputs`` name its projections from the stream."""
    return {
        **{f'linear_attn.{name}': Linear(None, 'hidden') for name in inputs},
        'linear_attn': Whole(('dt_bias', 'A_log')),
        'linear_attn.conv1d': Whole(('weight',)),
        'linear_attn.norm': Whole(('weight',)),
        'linear_attn.out_proj': Linear('hidden', None, writes=True),
    }


# Gated delta nets, and every so many layers attention with an output gate in its query projection.
QWEN3_5 = Family(
    layer={**_pre_norms(offset=1.0), **_gated_mlp()},
    layer_of_kind={
        'full_attention': {**_attention(), 'self_attn.q_proj': Linear('query_and_gate', 'hidden'), **HEAD_NORMS},
        'linear_attention': _gated_delta_net('in_proj_qkv', 'in_proj_z', 'in_proj_b', 'in_proj_a'),
    },
    norm_offset=1.0,
    layer_types=_kinds,
)

QWEN3_5_MOE = dataclasses.replace(
    QWEN3_5, layer={**_pre_norms(offset=1.0), **_experts(), **SHARED_EXPERT}, stored_experts=QWEN_FILES
)

QWEN3_NEXT = dataclasses.replace(
    QWEN3_5_MOE,
    layer_of_kind={
        'full_attention': QWEN3_5.layer_of_kind['full_attention'],
        'linear_attention': _gated_delta_net('in_proj_qkvz', 'in_proj_ba'),
    },
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

# By transformers' model_type. Granite's multipliers are constants of its config and stay as they are. Where a config
# lists kinds of layers and the table names none, any layers may stay, and the exported list says which.
TABLES: dict[str, Family] = {
    'apertus': APERTUS,
    'arcee': ARCEE,
    'cohere2': COHERE2,
    'cwm': LLAMA,
    'ernie4_5': LLAMA,
    'exaone4': EXAONE4,
    'gemma': GEMMA,
    'gemma2': GEMMA2,
    'gemma3_text': GEMMA3,
    'glm': GLM,
    'glm4': GLM4,
    'gpt_neox': GPT_NEOX,
    'gpt_oss': GPT_OSS,
    'granite': LLAMA,
    'hunyuan_v1_dense': HUNYUAN,
    'jais2': JAIS2,
    'llama': LLAMA,
    'ministral': LLAMA,
    'ministral3': LLAMA,
    'mistral': LLAMA,
    'mixtral': MIXTRAL,
    'nemotron': NEMOTRON,
    'olmo2': OLMO2,
    'olmo3': OLMO2,
    'olmoe': OLMOE,
    'phi3': PHI3,
    'qwen2': LLAMA,
    'qwen2_moe': QWEN2_MOE,
    'qwen3': QWEN3,
    'qwen3_5_moe_text': QWEN3_5_MOE,
    'qwen3_5_text': QWEN3_5,
    'qwen3_moe': QWEN3_MOE,
    'qwen3_next': QWEN3_NEXT,
    'seed_oss': LLAMA,
    'smollm3': LLAMA,
    'starcoder2': STARCODER2,
    'vaultgemma': VAULTGEMMA,
}
for _model_type in LEFT_OUT:
    del TABLES[_model_type]
