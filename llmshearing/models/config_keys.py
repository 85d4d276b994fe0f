"""Keys of a config.json that the installed transformers does not read in a model of that type.

It keeps them and computes without. So each is one of four: it says nothing (null, false, or what changes nothing), it
keeps the books (:data:`BOOKKEEPING`), it changes what is computed (:data:`CHANGES_NOTHING`, :data:`SPANS`,
:data:`SAME_SETTING`) and is refused by name, or nobody here knows it, which is told once. Whether a type reads a key is
asked of its config class: what it has, and what its code names.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from transformers import CONFIG_MAPPING, GenerationConfig, PretrainedConfig

from llmshearing.compat.configs import SAME_NUMBERS
from llmshearing.compat.rotary import BASE_KEYS, SHARE_KEYS, main_rotary
from llmshearing.models.family_tables import TABLES

__all__ = ['number_out_of_range', 'refuse_looking_ahead', 'refuse_uncomputed', 'uncomputed_error']

log = logging.getLogger(__name__)

# Settings that some families compute with, and what they are where they change nothing.
CHANGES_NOTHING: dict[str, tuple] = {
    'alibi': (),
    'attention_multiplier': (),
    'attn_logit_softcapping': (),
    'embedding_multiplier': (1,),
    'final_logit_softcapping': (),
    'logits_scaling': (1,),
    'no_rope_layers': (),
    'residual_multiplier': (1,),
    'use_bidirectional_attention': (),
}
QK_NORMS = ('*qk_norm*', '*qk_layernorm*')  # which say what is, in a type whose queries and keys have norms
# As CHANGES_NOTHING, held against types with a table alone: other code reads some of them though its config names none.
CHANGES_NOTHING_HERE: dict[str, tuple] = {
    **dict.fromkeys(('clip_qkv', 'query_pre_attn_scalar', 'rope_local_base_freq', 'rope_ratio', 'rotary_dim'), ()),
    **dict.fromkeys(('logit_scale', 'logits_scale', 'partial_rotary_factor', 'rotary_pct', 'rope_pct'), (1,)),
    **dict.fromkeys(('rope_percent', 'rotary_percent', 'rope_condense_ratio'), (1,)),
    **dict.fromkeys(('use_rope', 'use_rotary*', 'use_pos_enc', 'is_neox_style', 'do_layer_norm_before'), (True,)),
    **dict.fromkeys(('scale_emb', 'scale_depth', 'embedding_scale', 'residual_scale', 'attention_scale'), (1,)),
    **dict.fromkeys(('emb_scale', 'embed_scale', 'n_group', 'topk_group', 'routed_scaling_factor'), (1,)),
    **dict.fromkeys(('scoring_func*', '*score_func*'), ('softmax',)),
    **dict.fromkeys(('scale_embed*', 'normalize_embed*', 'post_norm', 'use_post_norm', 'norm_after*'), ()),
    **dict.fromkeys(('dim_model_base', 'attn_scale', 'floor_scale', 'attn_temperature_tuning'), ()),
    **dict.fromkeys(('mup_*', '*head_multiplier', 'mlp_multiplier*', 'key_multiplier', 'attention_*_multiplier'), (1,)),
    **dict.fromkeys(
        ('*softcap*', '*soft_cap*', '*alibi*', '*logn*', '*dynamic_ntk*', 'dual_chunk*', '*attention_sink*'), ()
    ),
    **dict.fromkeys(('no_rope_layer*', 'nope_layer*', 'rope_interleave*', 'rotary_interleave*', *QK_NORMS), ()),
    **dict.fromkeys(('use_parallel_residual', 'parallel_residual', 'parallel_attn', 'parallel_attention'), ()),
    **dict.fromkeys(('attn_output_gate', 'linear_use_gate', 'use_gated_activation', 'block_use_swiglu'), (True,)),
    **dict.fromkeys(('is_causal', 'use_parallel_block', 'use_pos_enc', 'use_rotary_pos_emb'), (True,)),
    'normalization_function': ('rmsnorm',),
    'order_of_interleaved_layers': ('local_attn_first',),
    'use_cla': (),
    # The last is what BERT's config says where nothing is set.
    'position_embedding_type': ('rope', 'rope_gptj', 'rotary', 'absolute'),
}
# How far a token may look back; longer than any text, they change nothing.
SPANS = ('sliding_window', 'attention_window', 'attention_window_size', 'attention_chunk_size')
# Names of one setting in different types: in the place of the type's own, another would be left out.
SAME_SETTING = (
    ('rms_norm_eps', 'layer_norm_eps', 'layer_norm_epsilon', 'layernorm_epsilon', 'norm_eps', 'norm_epsilon'),
    ('norm_eps', 'block_norm_eps'),
    ('hidden_act', 'hidden_activation', 'activation_function', 'hidden_function', 'mlp_hidden_act', 'activation'),
    ('rope_theta', 'rotary_emb_base', 'rotary_base', 'rope_base'),
    ('num_experts_per_tok', 'experts_per_token'),
    ('sliding_window_pattern', 'layer_switch'),
)
# Keys that change nothing a model computes, or that other checks look at; * stands for anything.
BOOKKEEPING = (
    *('_*', 'auto_map', 'model_type', 'architectures', 'quantization_config', 'transformers*', '*version*', 'unsloth*'),
    *('*dtype', 'is_*_config', '*_token_id*', '*tokenizer*', 'pretraining_tp', 'tp_*', 'use_cache', '*_labels'),
    *('*dropout*', '*_pdrop', 'init*', '*_loss*', '*_coef*', '*flash_att*', '*attn_implementation', '*fuse*'),
    *('*_id', '*init_scale', '*xavier_init', '*vocab_size', 'use_embedding_sharing', 'use_parallel_embedding'),
    *('pool_type', 'class_num', 'add_classification_head', 'cla_share_factor', 'dense_list', 'norm_type'),
    *('*softmax_in_fp32', 'gradient_checkpointing', 'name_or_path', 'language*', 'license', 'text_config'),
    *('head_dim', 'attention_head_dim', 'kv_channels'),  # model code asks for the first; the weights fit it or not
    *('rope_theta', 'rope_scaling', 'rope_parameters', 'original_max_position_embeddings'),
    *('layer_types', 'max_window_layers', 'use_sliding_window', 'use_mrope', 'mtp_*', '*_length', '*seq_len*'),
    *(key for settings in SAME_NUMBERS.values() for key in settings),
)
# Numbers that a model cannot be computed with outside of these: least, whether that is possible itself, and most.
RANGES = {
    '*dropout*': (0, True, 1),
    '*_pdrop': (0, True, 1),
    '*_eps': (0, False, math.inf),
    '*epsilon': (0, False, math.inf),
    'rope_theta': (0, False, math.inf),
    'max_position_embeddings': (1, True, math.inf),
    'sliding_window': (0, True, math.inf),
}


def refuse_uncomputed(content: Mapping[str, Any]) -> None:
    """Tells of keys that a type does not read, or raises a ValueError that names one.

    Args:
        content (Mapping[str, Any]): A config.json in the words of the installed transformers.

    Raises:
        ValueError: For a setting of other types, which this one would leave out without a word, and for an encoder.
    """
    model_type, has_table = content['model_type'], content['model_type'] in TABLES
    if has_table:
        refuse_looking_ahead(content)
    neutral = {**CHANGES_NOTHING, **(CHANGES_NOTHING_HERE if has_table else {})}
    for name, value in _flat_items(content):
        key = name.rpartition('.')[2]
        pattern = next((pattern for pattern in neutral if fnmatchcase(key, pattern)), None)
        if pattern is not None and not _is_nothing(value, neutral[pattern]) and not _reads(model_type, key):
            raise uncomputed_error(name, value, model_type)
    if has_table:
        unread = [key for key, value in content.items() if not _is_nothing(value) and not _reads(model_type, key)]
        _refuse_spans(content, unread)
        _refuse_other_names(content, unread)
        known = (*BOOKKEEPING, *neutral, *SPANS)
        unknown = [key for key in unread if not any(fnmatchcase(key, pattern) for pattern in known)]
        for key in (key for key in unknown if not _is_repeated(content, key)):
            _tell_unknown(key, repr(content[key])[:80], model_type)


def refuse_looking_ahead(content: Mapping[str, Any]) -> None:
    """Raises a ValueError for a model in which a token sees those after it: nothing is left for it to predict."""
    if content.get('use_bidirectional_attention'):
        raise ValueError(
            f'the config has use_bidirectional_attention: {content["use_bidirectional_attention"]!r}: tokens see those '
            'that they are to predict, as in an encoder. Name a decoder, or set it to false to train these weights as '
            'one.'
        )


def number_out_of_range(content: Mapping[str, Any]) -> str | None:
    """What is wrong with a number of a config, rotary settings included, such as ``'rms_norm_eps: -1.0; ...'``."""
    for name, value in _flat_items(content):
        key = name.rpartition('.')[2]
        for pattern, (least, itself, most) in RANGES.items():
            if not fnmatchcase(key, pattern) or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if not (value >= least if itself else value > least) or value > most or math.isinf(value):
                limits = f'of at least {least}' if itself else f'above {least}'
                return (
                    f'{name}: {value!r}; expected a number {limits}{"" if most == math.inf else f" and at most {most}"}'
                )
    return None


def uncomputed_error(name: str, value: Any, model_type: str) -> ValueError:
    """The error about a key that transformers leaves out in a type."""
    return ValueError(
        f'the config has {name}: {value!r}, which transformers does not compute in a {model_type}; correct its '
        'model_type, or remove the key if the model was trained without.'
    )


def _flat_items(content: Mapping[str, Any], place: str = '') -> Iterator[tuple[str, Any]]:
    """What a config says, itself and among its rotary settings, by dotted places."""
    for name, value in content.items():
        yield place + name, value
        if isinstance(value, Mapping) and (place or name in ('rope_scaling', 'rope_parameters')):
            yield from _flat_items(value, f'{place}{name}.')


def _is_nothing(value: Any, neutral: tuple = ()) -> bool:
    """Whether a value changes nothing; false does not where true is what changes nothing."""
    return value in (None, [], {}) or value in neutral or (value is False and True not in neutral)


@functools.cache
def _default_config(model_type: str) -> tuple[PretrainedConfig, str]:
    """A type's config as its class makes it, and the code of that class."""
    config = CONFIG_MAPPING[model_type]()
    return config, inspect.getsource(type(config)) if model_type in TABLES else ''


def _reads(model_type: str, key: str) -> bool:
    config, code = _default_config(model_type)
    rotary = main_rotary(getattr(config, 'rope_parameters', None) or {})
    return (
        key == 'torch_dtype'  # by this name transformers 5 warns whoever asks for it
        or hasattr(config, key)
        or (any(fnmatchcase(key, pattern) for pattern in QK_NORMS) and _norms_queries(model_type))
        or key in rotary
        or key in (*BASE_KEYS.get(model_type, ()), *SHARE_KEYS.get(model_type, ()))
        or f'"{key}"' in code
        or f"'{key}'" in code
        or hasattr(GenerationConfig(), key)
    )


def _norms_queries(model_type: str) -> bool:
    family = TABLES.get(model_type)
    layers = [family.layer, *family.layer_of_kind.values()] if family else []
    return any(path.endswith(('.q_norm', '.query_layernorm', '.q_layernorm')) for layer in layers for path in layer)


def _refuse_spans(content: Mapping[str, Any], unread: list[str]) -> None:
    longest = content.get('max_position_embeddings', math.inf)
    for key in SPANS:
        span = content.get(key)
        is_used = key != 'sliding_window' or content.get('use_sliding_window', True)
        if key in unread and is_used and (not isinstance(span, int) or 0 < span < longest):
            raise uncomputed_error(key, span, content['model_type'])


def _refuse_other_names(content: Mapping[str, Any], unread: list[str]) -> None:
    """Raises a ValueError where a setting has another type's name, and the type's own name says nothing."""
    config, _ = _default_config(content['model_type'])
    usual, given = _with_rotary(config.to_dict()), _with_rotary(content)
    for names in SAME_SETTING:
        own = [name for name in names if name in usual]
        if not own or any(given.get(name) is not None for name in own):
            continue
        for name in set(names) & set(unread):
            if content[name] != usual[own[0]]:
                raise ValueError(
                    f'the config has {name}: {content[name]!r}, which a {content["model_type"]} calls {own[0]}; '
                    f'without it, {usual[own[0]]!r} is computed with: rename the key in its config.json.'
                )


def _with_rotary(content: Mapping[str, Any]) -> dict[str, Any]:
    return {**main_rotary(content.get('rope_parameters') or {}), **content}


def _is_repeated(content: Mapping[str, Any], key: str) -> bool:
    """Whether another name of the same setting says the same, as Gemma's configs of transformers 4 do."""
    others = (name for names in SAME_SETTING if key in names for name in names if name != key)
    return any(content.get(name) == content[key] for name in others)


@functools.cache
def _tell_unknown(key: str, value: str, model_type: str) -> None:
    log.warning(
        'The config has %s: %s, which transformers does not read in a %s: it is left out. Was the model trained so?',
        key,
        value,
        model_type,
    )
