"""Names of the first Sheared LLaMA code's state dicts and their Hugging Face counterparts, in both directions.

The weights themselves are the same: rows of q and k are in the order that transformers' LLaMA uses, so
nothing is permuted.
"""

from __future__ import annotations

import re

__all__ = ['LEGACY_MASKS', 'hugging_face_name', 'is_ignored', 'legacy_name', 'mask_axis']

ROOT = 'model.transformer.'
OUTSIDE = {
    'wte.weight': 'model.embed_tokens.weight',
    'ln_f.weight': 'model.norm.weight',
    'output.weight': 'lm_head.weight',
}
INSIDE = {
    'ln_1.weight': 'input_layernorm.weight',
    'ln_2.weight': 'post_attention_layernorm.weight',
    'attn.wq.weight': 'self_attn.q_proj.weight',
    'attn.wk.weight': 'self_attn.k_proj.weight',
    'attn.wv.weight': 'self_attn.v_proj.weight',
    'attn.out_proj.weight': 'self_attn.o_proj.weight',
    'mlp.gate_proj.weight': 'mlp.gate_proj.weight',
    'mlp.up_proj.weight': 'mlp.up_proj.weight',
    'mlp.down_proj.weight': 'mlp.down_proj.weight',
}
LEGACY_MASKS = ('hidden', 'layer', 'head', 'intermediate')

_BLOCK = re.compile(r'model\.transformer\.blocks\.(0|[1-9]\d*)\.(.+)')
_LAYER = re.compile(r'model\.layers\.(0|[1-9]\d*)\.(.+)')
_MASK = re.compile(r'model\.l0_module\.masks\.([^.]+)\.z_loga')
_FROM_HUGGING_FACE = {**{new: old for old, new in OUTSIDE.items()}, **{new: old for old, new in INSIDE.items()}}


def hugging_face_name(name: str) -> str | None:
    """Hugging Face name of a legacy weight; None where it is none."""
    block = _BLOCK.fullmatch(name)
    if block is not None:
        return f'model.layers.{block[1]}.{INSIDE[block[2]]}' if block[2] in INSIDE else None
    return OUTSIDE.get(name.removeprefix(ROOT)) if name.startswith(ROOT) else None


def legacy_name(name: str) -> str | None:
    """Legacy name of a Hugging Face weight; None where it has none."""
    layer = _LAYER.fullmatch(name)
    if layer is not None:
        return f'{ROOT}blocks.{layer[1]}.{_FROM_HUGGING_FACE[layer[2]]}' if layer[2] in _FROM_HUGGING_FACE else None
    return f'{ROOT}{_FROM_HUGGING_FACE[name]}' if name in _FROM_HUGGING_FACE else None


def mask_axis(name: str) -> str | None:
    """Name of the mask whose ``z_loga`` this is, known or not; None for anything else."""
    match = _MASK.fullmatch(name)
    return None if match is None else match[1]


def is_ignored(name: str) -> bool:
    """Entries that carry no weight: rotary frequencies, which follow from the config, and multipliers of pruning."""
    return name.endswith('.rotary_emb.inv_freq') or name.startswith('model.l0_module.lambdas.')
