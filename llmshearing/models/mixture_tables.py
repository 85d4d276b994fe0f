"""The tables of mixtures of experts, which :mod:`~llmshearing.models.family_tables` lists by model type."""

from __future__ import annotations

import dataclasses

from llmshearing.compat.transformers import EXPERTS_ARE_MODULES
from llmshearing.models.dense_tables import GRANITE_HYBRID, QWEN3_5
from llmshearing.models.roles import EXPERT, Experts, Family, Linear, PerUnit, Role, StoredExperts
from llmshearing.models.table_parts import HEAD_NORMS, JOINT_NORMS, attention, gated_delta_net, gated_mlp, pre_norms

__all__ = ['GPT_OSS', 'GRANITE_EXPERTS', 'MIXTRAL', 'OLMOE', 'QWEN2_MOE', 'QWEN3_5_MOE', 'QWEN3_MOE', 'QWEN3_NEXT']


def _experts() -> dict[str, Role]:
    """Router and routed experts, as in Qwen's mixtures."""
    experts = gated_mlp(f'mlp.experts.{EXPERT}') if EXPERTS_ARE_MODULES else {'mlp.experts': Experts()}
    return {'mlp.gate': Linear('expert', 'hidden'), **experts}


# How files hold experts that are one tensor in memory.
QWEN_FILES = None if EXPERTS_ARE_MODULES else StoredExperts('mlp', 'gate_proj', 'up_proj', 'down_proj')

QWEN3_MOE = Family(layer={**pre_norms(), **attention(), **HEAD_NORMS, **_experts()}, stored_experts=QWEN_FILES)

if EXPERTS_ARE_MODULES:
    MIXTRAL = Family(
        layer={
            **pre_norms(),
            **attention(),
            'block_sparse_moe.gate': Linear('expert', 'hidden'),
            **gated_mlp(f'block_sparse_moe.experts.{EXPERT}', gate='w1', up='w3', down='w2'),
        },
        mlp='block_sparse_moe',
        expert_names=('w1', 'w3', 'w2'),
    )
else:
    MIXTRAL = Family(
        layer={**pre_norms(), **attention(), **_experts()},
        stored_experts=StoredExperts('block_sparse_moe', 'w1', 'w3', 'w2'),
    )

# Computes every token; its width stays.
SHARED_EXPERT = {
    'mlp.shared_expert.gate_proj': Linear(None, 'hidden'),
    'mlp.shared_expert.up_proj': Linear(None, 'hidden'),
    'mlp.shared_expert.down_proj': Linear('hidden', None, writes=True),
    'mlp.shared_expert_gate': Linear(None, 'hidden'),
}

QWEN2_MOE = Family(layer={**pre_norms(), **attention(), **_experts(), **SHARED_EXPERT}, stored_experts=QWEN_FILES)

# Its norms over all heads have as many gains as hidden dimensions, so hidden_size is heads x head_dim.
OLMOE = Family(
    layer={**pre_norms(), **attention(), **JOINT_NORMS, **_experts()}, stored_experts=QWEN_FILES, has_head_dim=False
)

GPT_OSS = Family(
    layer={
        **pre_norms(),
        'self_attn': PerUnit(('sinks',)),
        **attention(),
        'mlp.router': Linear('expert', 'hidden'),
        'mlp.experts': Experts(transposed=True, interleaved=True),
    }
)

# Granite 4 with routed experts; files have them as one tensor, as memory has.
GRANITE_EXPERTS = dataclasses.replace(
    GRANITE_HYBRID,
    layer={
        **pre_norms(),
        'block_sparse_moe.router': Linear('expert', 'hidden'),
        'block_sparse_moe.experts': Experts(),
        'shared_mlp.input_linear': Linear(None, 'hidden'),
        'shared_mlp.output_linear': Linear('hidden', None, writes=True),
    },
    mlp='block_sparse_moe',
    stored_names={
        'block_sparse_moe.router': 'block_sparse_moe.router.layer',
        'block_sparse_moe.experts.gate_up_proj': 'block_sparse_moe.input_linear.weight',
        'block_sparse_moe.experts.down_proj': 'block_sparse_moe.output_linear.weight',
    },
)

QWEN3_5_MOE = dataclasses.replace(
    QWEN3_5, layer={**pre_norms(offset=1.0), **_experts(), **SHARED_EXPERT}, stored_experts=QWEN_FILES
)

QWEN3_NEXT = dataclasses.replace(
    QWEN3_5_MOE,
    layer_of_kind={
        'full_attention': QWEN3_5.layer_of_kind['full_attention'],
        'linear_attention': gated_delta_net('in_proj_qkvz', 'in_proj_ba'),
    },
)
