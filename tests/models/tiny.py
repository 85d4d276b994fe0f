"""Tiny random models of every supported family, and random masks for them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmshearing.compat.transformers import attention_implementation, set_attention
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.models.mixtures import MIXTURES as MIXTURE_KEYS
from llmshearing.models.mixtures import own_key
from llmshearing.models.shapes import ModelShape
from llmshearing.models.units import mask_shapes

COMMON = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)

# What the config.json of a model of real size says, for tests that read no weights.
LLAMA2_7B = {
    'model_type': 'llama',
    'vocab_size': 32000,
    'hidden_size': 4096,
    'intermediate_size': 11008,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'max_position_embeddings': 4096,
}

# Settings of each family beside COMMON; several entries of one model type cover its variants.
VARIANTS: dict[str, dict] = {
    'llama': {},
    'llama-mha': {'num_key_value_heads': 6},
    'llama-tied': {'tie_word_embeddings': True},
    'llama-biases': {'attention_bias': True, 'mlp_bias': True},
    'llama-rope3': {
        'rope_scaling': {
            'rope_type': 'llama3',
            'factor': 8.0,
            'low_freq_factor': 1.0,
            'high_freq_factor': 4.0,
            'original_max_position_embeddings': 64,
        }
    },
    'mistral': {'sliding_window': 8, 'head_dim': 8},
    'qwen2': {'use_sliding_window': True, 'sliding_window': 8, 'max_window_layers': 2},
    'qwen3': {'head_dim': 16, 'attention_bias': True},
    'gemma': {'head_dim': 12, 'hidden_activation': 'gelu_pytorch_tanh'},
    'gemma2': {'head_dim': 12, 'sliding_window': 8, 'query_pre_attn_scalar': 24},
    'gemma3_text': {'head_dim': 12, 'sliding_window': 8, 'sliding_window_pattern': 2, 'query_pre_attn_scalar': 24},
    'phi3': {'sliding_window': None},
    'glm': {'head_dim': 8, 'partial_rotary_factor': 0.5},
    'olmo2': {},
    'granite': {
        'embedding_multiplier': 3.0,
        'attention_multiplier': 0.2,
        'residual_multiplier': 0.5,
        'logits_scaling': 2.0,
    },
    'starcoder2': {'use_bias': True, 'hidden_act': 'gelu_pytorch_tanh', 'sliding_window': None},
    'gpt_neox': {'num_key_value_heads': None, 'rotary_pct': 0.25, 'use_parallel_residual': True},
    'gpt_neox-serial': {'num_key_value_heads': None, 'rotary_pct': 0.5, 'use_parallel_residual': False},
}

# Mixtures of experts, whose widths are those of an expert.
EXPERTS = {'num_experts': 6, 'num_experts_per_tok': 2}
VARIANTS |= {
    'mixtral': {'head_dim': 8, 'sliding_window': 8, 'num_local_experts': 6},
    'qwen3_moe': {'head_dim': 16, 'moe_intermediate_size': 64, 'norm_topk_prob': True, **EXPERTS},
}

MIXERS = {
    'layer_types': ['linear_attention', 'full_attention'] * 2,
    'linear_key_head_dim': 8,
    'linear_value_head_dim': 12,
    'linear_num_key_heads': 2,
    'linear_num_value_heads': 4,
}
DELTA_NETS = {'head_dim': 8, **MIXERS, 'partial_rotary_factor': 0.5}
NO_EXPERTS = {'num_local_experts': 0, 'num_experts_per_tok': 0, 'shared_intermediate_size': 64, 'mamba_n_heads': 8}
MAMBA = {'mamba_n_heads': 12, 'mamba_d_head': 24, 'mamba_d_state': 16, 'mamba_chunk_size': 8}
SLIDING = {'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention'] * 2}
# Of transformers 5; of 4 those that it has.
MORE_VARIANTS: dict[str, dict] = {
    'apertus': {},
    'arcee': {},
    'cohere2': {'head_dim': 8, **(SLIDING if TRANSFORMERS_5 else {'sliding_window_pattern': 2, 'sliding_window': 8})},
    'cwm': {'head_dim': 12, **SLIDING},
    'ernie4_5': {'head_dim': 12},
    'exaone4': {'head_dim': 12, **SLIDING},
    'glm4': {'head_dim': 8, 'partial_rotary_factor': 0.5},
    'gpt_oss': {'head_dim': 8, **SLIDING, 'num_local_experts': 6, 'num_experts_per_tok': 2},
    'granite_swa': {**SLIDING, 'attention_multiplier': 0.2, 'layer_rope_theta': [1e4, 0, 5e5, 1e4]},
    'granitemoehybrid': {**NO_EXPERTS, 'layer_types': ['attention'] * 4, 'position_embedding_type': 'rope'},
    'granitemoehybrid-mamba': {
        **NO_EXPERTS,
        'layer_types': ['mamba', 'attention'] * 2,
        **MAMBA,
        'residual_multiplier': 0.5,
    },
    'granitemoehybrid-experts': {
        'layer_types': ['attention'] * 4,
        'num_local_experts': 6,
        'num_experts_per_tok': 2,
        'shared_intermediate_size': 32,
        'mamba_n_heads': 8,
    },
    'hunyuan_v1_dense': {'head_dim': 12},
    'hyperclovax': {'residual_multiplier': 0.5, 'logits_scaling': 2.0},
    'hyperclovax-pre': {'use_post_norm': False},
    'jais2': {},
    'lfm2': {'layer_types': ['conv', 'full_attention'] * 2, 'block_auto_adjust_ff_dim': False},
    'lfm2-adjusted': {'full_attn_idxs': [1, 3], 'intermediate_size': 96, 'block_multiple_of': 16, 'conv_bias': True},
    'ministral': {'head_dim': 12, 'sliding_window': 8},
    'ministral3': {'head_dim': 12},
    'nemotron': {'head_dim': 12, 'partial_rotary_factor': 0.5},
    'olmo3': SLIDING,
    'olmo_hybrid': MIXERS,
    'olmoe': {'num_key_value_heads': 6, **EXPERTS},
    'qwen2_moe': {'moe_intermediate_size': 64, 'shared_expert_intermediate_size': 32, **EXPERTS},
    'qwen3_5_moe_text': {**DELTA_NETS, 'moe_intermediate_size': 64, 'shared_expert_intermediate_size': 32, **EXPERTS},
    'qwen3_5_text': DELTA_NETS,
    'qwen3_next': {**DELTA_NETS, 'moe_intermediate_size': 64, 'shared_expert_intermediate_size': 32, **EXPERTS},
    'seed_oss': {'head_dim': 12},
    'smollm3': {'use_sliding_window': True, **SLIDING, 'no_rope_layers': [1, 1, 1, 0]},
    'vaultgemma': {'head_dim': 12, 'query_pre_attn_scalar': 24, **SLIDING},
}
NEWER = frozenset(MORE_VARIANTS) - {'cohere2', 'glm4'}  # which are for transformers 5 alone
VARIANTS |= {
    name: settings
    for name, settings in MORE_VARIANTS.items()
    if name.split('-')[0] in CONFIG_MAPPING and (TRANSFORMERS_5 or name not in NEWER)
}

# Rotary settings that config files of the two generations of transformers spell differently, by variant and kind.
ROTARY: dict[str, dict] = {
    'llama-linear': {'rope_scaling': {'rope_type': 'linear', 'factor': 4.0}},
    'llama-yarn': {'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0, 'original_max_position_embeddings': 64}},
    'gemma3_text-linear': {'rope_scaling': {'rope_type': 'linear', 'factor': 8.0}},
    'phi3-longrope': {
        'rope_scaling': {'type': 'longrope', 'short_factor': [1.0, 2.0, 3.0, 4.0], 'long_factor': [2.0] * 4},
        'original_max_position_embeddings': 64,
    },
}
# What a variant can be cut along at will: longrope's factors are as many as hidden_size / num_attention_heads / 2.
AXES_OF = {'phi3-longrope': ('layer', 'intermediate')}
# Whose configs bring rotary settings that no other key changes.
OWN_ROTARY = ('apertus', 'cwm', 'gpt_oss', 'ministral3')
ROTARY_BASE = 5e5  # not what a reader takes that finds none


def rotary_model(variant: str):
    """A model of one of ``VARIANTS`` or ``ROTARY``, with ``ROTARY_BASE``."""
    base = {'rotary_emb_base' if variant.startswith('gpt_neox') else 'rope_theta': ROTARY_BASE}
    family = variant if variant in VARIANTS else variant.split('-')[0]
    return tiny_model(family, **base, **ROTARY.get(variant, {}))


# Further configs of the same modules: what a config.json can say of positions and windows.
CONFIGS: dict[str, dict] = {
    'llama-linear': {'rope_theta': 5e5, 'rope_scaling': {'rope_type': 'linear', 'factor': 4.0}},
    'llama-dynamic': {'rope_scaling': {'rope_type': 'dynamic', 'factor': 4.0}},
    'mistral-no_window': {'sliding_window': None, 'head_dim': 8, 'rope_theta': 1e6},
    'qwen2-yarn': {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32}},
    'qwen3-windows': {'head_dim': 16, 'use_sliding_window': True, 'sliding_window': 8, 'max_window_layers': 0},
    'gemma3_text-linear': {
        'head_dim': 12,
        'sliding_window': 8,
        'sliding_window_pattern': 3,
        'query_pre_attn_scalar': 24,
        'rope_theta': 5e5,
        'rope_local_base_freq': 5e3,
        'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    },
    'phi3-longrope': {
        'sliding_window': None,
        'original_max_position_embeddings': 16,
        'rope_scaling': {'type': 'longrope', 'short_factor': [1.0, 2.0, 3.0, 4.0], 'long_factor': [2.0, 3.0, 4.0, 5.0]},
    },
    'phi3-share': {'sliding_window': None, 'partial_rotary_factor': 0.5},
    'glm-whole': {'head_dim': 8, 'partial_rotary_factor': 1.0},
    'starcoder2-windows': {'use_bias': True, 'hidden_act': 'gelu_pytorch_tanh', 'sliding_window': 8},
    'gpt_neox-base': {'num_key_value_heads': None, 'rotary_pct': 0.75, 'rotary_emb_base': 50000},
}

if 'granitemoehybrid' in VARIANTS:
    CONFIGS['granitemoehybrid-mamba_experts'] = {
        'layer_types': ['mamba', 'attention'] * 2,
        **MAMBA,
        'mamba_d_head': 20,  # 240 channels, a multiple of hidden sizes that experts can have
        'num_local_experts': 6,
        'num_experts_per_tok': 2,
        'shared_intermediate_size': 32,
    }
if 'olmo_hybrid' in VARIANTS:
    CONFIGS['olmo_hybrid-nope'] = {**MIXERS, 'rope_parameters': {'rope_type': 'default', 'rope_theta': None}}


MIXTURES = [name for name in VARIANTS if name in MIXTURE_KEYS]


def tiny_model(variant: str = 'llama', seed: int = 0, **overrides):
    """A random model in float32 evaluation mode. Biases and gains are random too, so that no term hides."""
    torch.manual_seed(seed)
    # Deep, because configs write into their rotary settings.
    settings = copy.deepcopy({**COMMON, **(VARIANTS | CONFIGS)[variant], **overrides})
    settings = {name: value for name, value in settings.items() if value is not None or name == 'sliding_window'}
    model_type = variant.split('-')[0]
    if 'mamba_d_head' in settings:
        settings['mamba_expand'] = settings['mamba_n_heads'] * settings['mamba_d_head'] // settings['hidden_size']
    config = CONFIG_MAPPING[model_type](**settings)
    if 'intermediate_size' in overrides:
        setattr(config, own_key(config, 'intermediate_size'), overrides['intermediate_size'])
    set_attention(config, attention_implementation(config))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model


def random_masks(
    shape: ModelShape, axes: tuple[str, ...], seed: int = 0, keep: float = 0.6, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Soft masks in [0, 1] with about ``1 - keep`` zeros and some exact ones on each of the axes."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for axis in axes:
        size = mask_shapes(shape)[axis]
        value = torch.rand(size, generator=generator).clamp(min=0.05)
        value[torch.rand(size, generator=generator) < 0.2] = 1.0
        value[torch.rand(size, generator=generator) > keep] = 0.0
        if axis in ('hidden', 'layer'):
            value[..., 0] = 0.7
        masks[axis] = value.to(dtype)
    return masks
