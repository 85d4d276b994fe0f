"""The tables of families without experts, which :mod:`~llmshearing.models.family_tables` lists by model type."""

from __future__ import annotations

import dataclasses

from llmshearing.compat.transformers import HEAD_OF_GPT_NEOX
from llmshearing.models.roles import Family, Linear, Norm, PerUnit, StoredPieces, Whole
from llmshearing.models.table_parts import (
    HEAD_NORMS,
    JOINT_NORMS,
    POST_NORMS,
    attention,
    fused_mlp,
    gated_delta_net,
    gated_mlp,
    kinds,
    mamba,
    plain_mlp,
    pre_norms,
    sandwich_norms,
)

__all__ = [
    'APERTUS',
    'ARCEE',
    'COHERE2',
    'EXAONE4',
    'GEMMA',
    'GEMMA2',
    'GEMMA3',
    'GLM',
    'GLM4',
    'GPT_NEOX',
    'GRANITE_HYBRID',
    'GRANITE_SWA',
    'HUNYUAN',
    'HYPERCLOVAX',
    'JAIS2',
    'LFM2',
    'LLAMA',
    'NEMOTRON',
    'OLMO2',
    'OLMO_HYBRID',
    'PHI3',
    'QWEN3',
    'QWEN3_5',
    'STARCODER2',
    'VAULTGEMMA',
]

LLAMA = Family(layer={**pre_norms(), **attention(), **gated_mlp()})

QWEN3 = Family(layer={**LLAMA.layer, **HEAD_NORMS})

GRANITE_SWA = Family(layer={**LLAMA.layer, 'self_attn': PerUnit(('sinks',))})

# Granite, with norms on what is added to the stream where its config says so.
HYPERCLOVAX = Family(
    layer={},
    layer_of_kind={
        'pre_norm': LLAMA.layer,
        'post_norm': {
            **sandwich_norms('post_norm1', 'post_attention_layernorm', 'post_norm2'),
            **attention(writes=False),
            **gated_mlp(writes=False),
        },
    },
    layer_types=lambda config: ('post_norm' if config.use_post_norm else 'pre_norm',) * config.num_hidden_layers,
)

GEMMA = Family(layer={**pre_norms(offset=1.0), **attention(), **gated_mlp()}, norm_offset=1.0, scales_embedding=True)

GEMMA2 = dataclasses.replace(
    GEMMA,
    layer={**sandwich_norms(offset=1.0), **attention(writes=False), **gated_mlp(writes=False)},
    layer_types=lambda config: kinds(config, pattern=2),
)

GEMMA3 = dataclasses.replace(
    GEMMA2,
    layer={**GEMMA2.layer, **HEAD_NORMS},
    layer_types=lambda config: kinds(config, getattr(config, 'sliding_window_pattern', None)),
)

VAULTGEMMA = dataclasses.replace(
    GEMMA, layer={**pre_norms(mlp='pre_feedforward_layernorm', offset=1.0), **attention(), **gated_mlp()}
)

PHI3 = Family(
    layer={
        **pre_norms(),
        'self_attn.qkv_proj': Linear('query_key_value', 'hidden'),
        'self_attn.o_proj': Linear('hidden', 'query', writes=True),
        **fused_mlp(),
    }
)

GLM = Family(layer={**pre_norms(), **attention(), **fused_mlp()})

GLM4 = Family(
    layer={
        **sandwich_norms('post_self_attn_layernorm', 'post_attention_layernorm', 'post_mlp_layernorm'),
        **attention(writes=False),
        **fused_mlp(writes=False),
    }
)

EXAONE4 = Family(layer={**attention(writes=False), **HEAD_NORMS, **gated_mlp(writes=False), **POST_NORMS})

OLMO2 = Family(layer={**attention(writes=False), **JOINT_NORMS, **gated_mlp(writes=False), **POST_NORMS})

# Gated delta nets before norms of their own, and every so many layers attention as in OLMo 2.
OLMO_HYBRID = Family(
    layer={},
    layer_of_kind={
        'full_attention': OLMO2.layer,
        'linear_attention': {
            **pre_norms(),
            **gated_delta_net(
                *('q_proj', 'k_proj', 'v_proj', 'a_proj', 'b_proj', 'g_proj'), norm='o_norm', output='o_proj'
            ),
            **gated_mlp(),
        },
    },
    layer_types=kinds,
    stored_pieces=StoredPieces(
        kind='linear_attention',
        names={
            'input_layernorm.weight': ('attention_layer_norm.weight',),
            'post_attention_layernorm.weight': ('feedforward_layer_norm.weight',),
            'linear_attn.conv1d.weight': tuple(f'linear_attn.{part}_conv1d.weight' for part in 'qkv'),
        },
        rows=lambda config: (
            config.linear_num_key_heads * config.linear_key_head_dim,
            config.linear_num_key_heads * config.linear_key_head_dim,
            config.linear_num_value_heads * config.linear_value_head_dim,
        ),
    ),
)

ARCEE = Family(layer={**pre_norms(), **attention(), **plain_mlp()})

JAIS2 = dataclasses.replace(ARCEE, subtracts_mean=True)

NEMOTRON = Family(layer={**pre_norms(offset=1.0), **attention(), **plain_mlp()}, norm_offset=1.0, subtracts_mean=True)

APERTUS = Family(
    layer={
        **pre_norms('attention_layernorm', 'feedforward_layernorm'),
        **attention(),
        **HEAD_NORMS,
        **plain_mlp(),
        'mlp.act_fn': Whole(('alpha_p', 'alpha_n'), buffers=('beta', 'eps')),
    }
)

HUNYUAN = Family(
    layer={**LLAMA.layer, 'self_attn.query_layernorm': Norm(dim=None), 'self_attn.key_layernorm': Norm(dim=None)}
)

# Attention and MLP side by side behind one norm.
COHERE2 = Family(
    layer={'input_layernorm': Norm(reads=True), **attention(), **gated_mlp()},
    layer_types=lambda config: kinds(config, getattr(config, 'sliding_window_pattern', None)),
    subtracts_mean=True,
)


# Gated delta nets, and every so many layers attention with an output gate in its query projection.
QWEN3_5 = Family(
    layer={**pre_norms(offset=1.0), **gated_mlp()},
    layer_of_kind={
        'full_attention': {**attention(), 'self_attn.q_proj': Linear('query_and_gate', 'hidden'), **HEAD_NORMS},
        'linear_attention': gated_delta_net('in_proj_qkv', 'in_proj_z', 'in_proj_b', 'in_proj_a'),
    },
    norm_offset=1.0,
    layer_types=kinds,
)

# Short convolutions, and every so many layers attention. A convolution has a channel per hidden dimension.
LFM2 = Family(
    layer={**pre_norms('operator_norm', 'ffn_norm'), **gated_mlp('feed_forward', gate='w1', up='w3', down='w2')},
    layer_of_kind={
        'full_attention': {
            **attention(output='out_proj'),
            'self_attn.q_layernorm': Norm(dim=None),
            'self_attn.k_layernorm': Norm(dim=None),
        },
        'conv': {
            'conv.in_proj': Linear('three_channels', 'hidden'),
            'conv.conv': PerUnit(('weight',), dim='channels', optional=('bias',)),
            'conv.out_proj': Linear('hidden', 'channels', writes=True),
        },
    },
    final_norm='embedding_norm',
    mlp='feed_forward',
    layer_types=kinds,
)

# Granite 4 without routed experts: attention alone, or Mamba mixers and every so many layers attention.
GRANITE_HYBRID = Family(
    layer={
        **pre_norms(),
        'shared_mlp.input_linear': Linear('gate_up', 'hidden'),
        'shared_mlp.output_linear': Linear('hidden', 'intermediate', writes=True),
    },
    layer_of_kind={'full_attention': attention(), 'linear_attention': mamba()},
    mlp='shared_mlp',
    layer_types=kinds,
)

STARCODER2 = Family(layer={**pre_norms(), **attention(), **plain_mlp(up='c_fc', down='c_proj')}, subtracts_mean=True)

GPT_NEOX = Family(
    layer={
        **pre_norms(),
        'attention.query_key_value': Linear('query_key_value_per_head', 'hidden'),
        'attention.dense': Linear('hidden', 'query', writes=True),
        **plain_mlp(up='dense_h_to_4h', down='dense_4h_to_h'),
    },
    decoder='gpt_neox',
    embedding='embed_in',
    final_norm='final_layer_norm',
    head=HEAD_OF_GPT_NEOX,
    stored_names={HEAD_OF_GPT_NEOX: 'embed_out'},
    attention='attention',
    has_head_dim=False,
    subtracts_mean=True,
)
