"""Config files of transformers 4 and 5: what either calls the same settings, for reading and for writing.

transformers 5 writes other keys than 4 (``rope_parameters``, ``dtype``, ``layer_types``). Version 4 keeps keys that it
does not know and computes without them: with a rotary base of 10000, say. Programs that read a config.json often know
the older names only, so what we write carries both.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.utils.files import dump_json, load_json

__all__ = [
    'FULL',
    'OF_A_FORWARD_PASS',
    'SHARE_KEYS',
    'SLIDING',
    'WINDOW_BUT_EVERY',
    'WINDOW_FROM_LAYER',
    'add_older_names',
    'dump_config',
    'main_rotary',
    'normalise_config',
    'rotary_spelling',
    'with_stock_type',
]

log = logging.getLogger(__name__)

# What a caller may ask of a single forward pass, and what a config says where it asks for nothing. Ours get tensors by
# name, and SDPA has no attention scores to return.
OF_A_FORWARD_PASS = {
    'output_attentions': False,
    'output_hidden_states': False,
    'return_dict': True,
    'torchscript': False,
}
NEEDS_NEWER = 'which transformers 4 does not compute; use transformers 5 (constraints/current.txt)'
# Settings of a kind of rotary embedding that transformers 4.51 computes with.
ROTARY_KEYS = {
    'default': (),
    'linear': ('factor',),
    'dynamic': ('factor',),
    'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'),
    'longrope': ('short_factor', 'long_factor', 'factor', 'attention_factor'),
    'yarn': (
        'factor',
        'attention_factor',
        'beta_fast',
        'beta_slow',
        'original_max_position_embeddings',
        'mscale',
        'mscale_all_dim',
    ),
}
# Names of the base and of the rotated share of a head in transformers 4, by model type; the others rotate whole heads.
BASE_KEYS = {'gpt_neox': ('rotary_emb_base', 'rope_theta')}
SHARE_KEYS = {
    'gpt_neox': ('rotary_pct', 'partial_rotary_factor'),
    **dict.fromkeys(('phi3', 'glm', 'glm4', 'nemotron'), ('partial_rotary_factor',)),
}
# Keys of the first configs of a type that vLLM and llama.cpp read, and which of transformers' numbers each of them is.
SAME_NUMBERS = {
    'lfm2': {
        'block_dim': 'hidden_size',
        'conv_dim': 'hidden_size',
        'block_ff_dim': 'intermediate_size',
        'num_heads': 'num_attention_heads',
    }
}
# Kinds of layers in the first configs of a type, which transformers 5 reads as well.
OLDER_KINDS = {'granitemoehybrid': {'linear_attention': 'mamba', 'full_attention': 'attention'}}
# Whose configs in transformers 4 take exactly a `type`, one of these two, and a `factor`.
LINEAR_OR_DYNAMIC = ('olmo', 'olmo2')
WITHOUT_ROTARY = ('olmo_hybrid',)  # where rope_theta is None
BASES = ('rope_theta', 'rotary_emb_base', 'rope_local_base_freq')
SLIDING, FULL = 'sliding_attention', 'full_attention'
WINDOW_BUT_EVERY = ('gemma3_text', 'cohere2')  # every sliding_window_pattern-th layer attends to everything
WINDOW_FROM_LAYER = ('qwen2', 'qwen3')  # the first max_window_layers layers attend to everything
ONE_WINDOW = ('mistral', 'phi3', 'starcoder2')  # for all layers, or none; kinds of layers are not looked at


def normalise_config(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json in the words of the installed transformers, without :data:`OF_A_FORWARD_PASS`.

    Args:
        stored (Mapping[str, Any]): What the file holds; not changed.

    Raises:
        ValueError: If it contradicts itself, or asks for what the installed transformers does not compute; names the
            key.
    """
    content: dict[str, Any] = json.loads(json.dumps(dict(stored), default=str))
    content = {key: value for key, value in content.items() if key not in OF_A_FORWARD_PASS}
    if isinstance(content.get('text_config'), dict):
        content['text_config'] = normalise_config(content['text_config'])
    _check_dtype(content)
    _rename_rotary(content)
    _refuse_contradictions(content)
    _check_rotary(content)
    if TRANSFORMERS_5:
        if content.get('rope_parameters'):
            content.pop('rope_scaling', None)  # which would replace it, base and all
        return content
    _convert_dtype(content)
    _convert_rotary(content)
    _convert_layer_types(content)
    _convert_experts(content)
    _refuse_looking_ahead(content)
    return content


def with_stock_type(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config in the words of the installed transformers, with the model type that ``AutoConfig`` takes it for.

    transformers 5 opens a Mistral that lists kinds of layers as a Ministral, which computes them. It has no Ministral
    without windows; a Mistral without them is what that one means.
    """
    content = dict(content)
    if TRANSFORMERS_5 and content['model_type'] == 'mistral' and 'layer_types' in content:
        if set(content['layer_types'] or ()) <= {FULL} and content.get('sliding_window', 0) is None:
            del content['layer_types']
        else:
            content['model_type'] = 'ministral'
    return content


def add_older_names(path: Path) -> None:
    """Adds to a config.json of transformers 5 what it says in the words of transformers 4; see :func:`dump_config`."""
    dump_config(load_json(path), path)


def dump_config(content: Mapping[str, Any], path: Path) -> None:
    """Writes a config.json, and adds to the words of transformers 5 what they say in those of transformers 4.

    transformers 4, llama.cpp and vLLM then read the same numbers; without them they take a rotary base of 10000. What
    version 4 does not compute is told, and rotary settings are written as they are, for programs that do. Kinds of
    layers are written in older words where transformers 5 reads those as well. Everything that writes a model folder
    writes its config here.
    """
    dump_json(path, _with_older_names(content), sort_keys=True)


def _with_older_names(content: Mapping[str, Any]) -> dict[str, Any]:
    content = dict(content)
    if isinstance(content.get('text_config'), dict):
        content['text_config'] = _with_older_names(content['text_config'])
    model_type = content.get('model_type', '')
    if model_type in ONE_WINDOW:
        content.pop('layer_types', None)  # its code has no use for them, and AutoConfig would take another code
    older = dict(content)
    for convert in (_convert_dtype, _convert_rotary, _convert_layer_types, _convert_experts, _refuse_looking_ahead):
        attempt = copy.deepcopy(older)
        try:
            convert(attempt)
            older = attempt
        except ValueError as error:
            log.warning('The written folder can be opened by transformers 5 only: %s', error)
    if older.get('rope_parameters'):
        main = {**main_rotary(older['rope_parameters'])}
        older.update(rope_theta=main.pop('rope_theta', None), rope_scaling=main)
    content.update({key: value for key, value in older.items() if value is not None or key in content})
    content.update({key: content[name] for key, name in SAME_NUMBERS.get(model_type, {}).items()})
    if model_type in OLDER_KINDS:
        older_kinds = OLDER_KINDS[model_type]
        content['layer_types'] = [older_kinds.get(kind, kind) for kind in content['layer_types']]
    return content


def main_rotary(rotary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of ``rope_parameters``, the settings of layers with full attention, or the only ones."""
    return rotary[FULL] if isinstance(rotary.get(FULL), Mapping) else rotary


def rotary_spelling(config: Any, key: str, value: Any) -> dict[str, Any] | None:
    """What a change of a rotary setting, in the words of either generation, is in those of the installed one.

    Args:
        config (Any): The config that is to be changed.
        key (str): Such as ``'rope_theta'`` or ``'rope_parameters'``.
        value (Any): What it is to be.

    Returns:
        dict[str, Any] | None: Keys of the config with their whole values; None for a key that is no rotary setting.

    Raises:
        ValueError: If the installed transformers does not compute that.
    """
    if not TRANSFORMERS_5:
        if key != 'rope_parameters' or not isinstance(value, Mapping):
            return None
        content = {'model_type': config.model_type, key: dict(value)}
        _convert_rotary(content)
        return {name: value for name, value in content.items() if name != 'model_type' and value is not None} or None
    rotary = getattr(config, 'rope_parameters', None) or {}
    main = main_rotary(rotary)
    base, share = BASE_KEYS.get(config.model_type, ()), SHARE_KEYS.get(config.model_type, ())
    newer = {**dict.fromkeys(('rope_theta', *base), 'rope_theta'), **dict.fromkeys(share, 'partial_rotary_factor')}
    if key in newer:
        settings = {newer[key]: value}
    elif key in ('rope_scaling', 'rope_parameters') and isinstance(value, Mapping) and not set(value) & {FULL, SLIDING}:
        settings = {('rope_type' if name == 'type' else name): setting for name, setting in value.items()}
    else:
        return None
    is_same_kind = settings.get('rope_type', _kind(main)) == _kind(main)
    kept = {name: main[name] for name in main if is_same_kind or name in ('rope_theta', 'partial_rotary_factor')}
    changed = {**kept, **settings}
    return {'rope_parameters': changed if main is rotary else {**rotary, FULL: changed}}


def _refusal(key: str, value: Any) -> str:
    return f'the config has {key}: {value!r}, {NEEDS_NEWER}.'


def _refuse_looking_ahead(content: dict[str, Any]) -> None:
    if content.pop('use_bidirectional_attention', None):
        raise ValueError(_refusal('use_bidirectional_attention', True))


def _refuse_contradictions(content: Mapping[str, Any]) -> None:
    """Raises a ValueError where an older and a newer key say different things."""
    rotary = content.get('rope_parameters')
    if isinstance(rotary, dict):
        main = main_rotary(rotary)
        model_type = content.get('model_type', '')
        bases, shares = BASE_KEYS.get(model_type, ('rope_theta',)), SHARE_KEYS.get(model_type, ())
        pairs = [(name, 'rope_theta') for name in bases] + [(name, 'partial_rotary_factor') for name in shares]
        for older, newer in pairs:
            if content.get(older) is not None and newer in main and content[older] != main[newer]:
                raise ValueError(
                    f'the config says {older}: {content[older]} and rope_parameters.{newer}: {main[newer]}; which of '
                    'the two the model was trained with is not known: correct its config.json.'
                )
        scaling = content.get('rope_scaling')
        if isinstance(scaling, dict):
            differing = [key for key in scaling if key not in ('type', 'rope_type') and scaling[key] != main.get(key)]
            if differing or _kind(scaling) != _kind(main):
                raise ValueError(
                    f'the config says rope_scaling: {scaling} and rope_parameters: {main}; which of the two the model '
                    'was trained with is not known: correct its config.json.'
                )


def _check_dtype(content: Mapping[str, Any]) -> None:
    for key in ('dtype', 'torch_dtype'):
        name = content.get(key)
        found = getattr(torch, name.removeprefix('torch.'), None) if isinstance(name, str) else None
        if not (name is None or isinstance(found, torch.dtype) or isinstance(name, dict)):  # a mapping: for each part
            raise ValueError(
                f'the config has {key}: {name!r}; expected a type such as bfloat16: correct its config.json.'
            )


def _rename_rotary(content: dict[str, Any]) -> None:
    """A kind of rotary embedding by its name of today."""
    for place in ('rope_scaling', 'rope_parameters'):
        settings = content.get(place)
        for key in ('type', 'rope_type'):
            if isinstance(settings, dict) and settings.get(key) == 'su':  # as the first Phi 3 called it
                settings[key] = 'longrope'


def _check_rotary(content: Mapping[str, Any]) -> None:
    """Raises a ValueError for rotary settings that no model computes with, naming the key."""
    places: list[tuple[str, Any]] = [('rope_scaling', content.get('rope_scaling'))]
    rotary = content.get('rope_parameters')
    if isinstance(rotary, dict):
        nested = {kind: value for kind, value in rotary.items() if isinstance(value, dict)}
        places += [(f'rope_parameters.{kind}', value) for kind, value in nested.items()] or [
            ('rope_parameters', rotary)
        ]
    places += [('', {key: content[key] for key in BASES if content.get(key) is not None})]
    for place, settings in places:
        if settings is None:
            continue
        if not isinstance(settings, dict):
            raise ValueError(
                f'the config has {place}: {settings!r}; expected a mapping, or null: correct its config.json.'
            )
        kind = settings.get('rope_type', settings.get('type'))
        if settings.get('type', kind) != kind:
            raise ValueError(f'the config says {place}: {settings}, two kinds at once; correct its config.json.')
        if kind not in (None, 'default', 'mrope', *ROPE_INIT_FUNCTIONS):  # the former two are no function everywhere
            known = f'the installed transformers knows {", ".join(ROPE_INIT_FUNCTIONS)}; correct its config.json.'
            raise ValueError(
                f'the config has {place}.rope_type: {kind!r}; {known}'
                if TRANSFORMERS_5
                else _refusal(f'{place}.rope_type', kind)
            )
        if kind is None and 'factor' in settings:
            raise ValueError(
                f'the config says {place}: {settings} without a rope_type, so its factor would be left out; add the '
                'kind that the model was trained with, such as rope_type: linear.'
            )
        for key in (*BASES, 'factor'):
            value = settings.get(key, 1.0)
            if value is None and (key == 'factor' or content.get('model_type') in WITHOUT_ROTARY):
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
                name = f'{place}.{key}' if place else key
                raise ValueError(
                    f'the config has {name}: {value!r}; expected a number above 0: correct its config.json.'
                )


def _kind(rotary: Mapping[str, Any]) -> str:
    return rotary.get('rope_type') or rotary.get('type') or 'default'


def _convert_experts(content: dict[str, Any]) -> None:
    """``num_local_experts`` to ``num_experts``, in a Qwen 3 mixture, for which transformers 5 writes the former."""
    if content.get('model_type') == 'qwen3_moe' and content.get('num_local_experts') is not None:
        content['num_experts'] = content.pop('num_local_experts')  # beside it, a cut would leave this one as it was


def _convert_dtype(content: dict[str, Any]) -> None:
    """``dtype`` to ``torch_dtype``."""
    if content.get('dtype') is not None:
        content['torch_dtype'] = content.pop('dtype')


def _convert_rotary(content: dict[str, Any]) -> None:
    """``rope_parameters`` to ``rope_theta``, ``rope_scaling`` and what else transformers 4 calls its parts."""
    rotary = content.pop('rope_parameters', None)
    if rotary is None:
        _check_older_rotary(content)
        return
    model_type = content.get('model_type', '')
    by_kind = {kind: value for kind, value in rotary.items() if isinstance(value, dict)}
    if by_kind and model_type == 'gemma3_text':
        local = by_kind.pop(SLIDING, {})
        if _kind(local) != 'default':
            raise ValueError(_refusal(f'rope_parameters.{SLIDING}.rope_type', _kind(local)))
        if 'rope_theta' in local:
            content['rope_local_base_freq'] = local['rope_theta']
    if len({json.dumps(value, sort_keys=True) for value in by_kind.values()}) > 1:
        raise ValueError(_refusal('rope_parameters', rotary))
    main = dict(next(iter(by_kind.values()))) if by_kind else dict(rotary)
    kind = _kind(main)
    main = {key: value for key, value in main.items() if key not in ('type', 'rope_type')}
    if kind not in ROTARY_KEYS:
        raise ValueError(_refusal('rope_parameters.rope_type', kind))
    if 'rope_theta' in main:
        content.update(dict.fromkeys(BASE_KEYS.get(model_type, ('rope_theta',)), main.pop('rope_theta')))
    share = main.pop('partial_rotary_factor', None)
    if share is not None:
        if model_type not in SHARE_KEYS and share != 1.0:
            raise ValueError(_refusal('rope_parameters.partial_rotary_factor', share))
        content.update(dict.fromkeys(SHARE_KEYS.get(model_type, ()), share))
    content['rope_scaling'] = _rope_scaling(content, kind, main)


def _check_older_rotary(content: dict[str, Any]) -> None:
    """Holds ``rope_scaling`` against the same rules; keys in it that neither generation reads may stay."""
    scaling = content.get('rope_scaling')
    if scaling is None or _kind(scaling) not in ROTARY_KEYS:  # such as mrope, which configs have names of their own for
        return
    kind = _kind(scaling)
    base = next((content[key] for key in BASES if content.get(key) is not None), None)
    for key, value in (('rope_theta', base), ('partial_rotary_factor', content.get('partial_rotary_factor', 1.0))):
        if scaling.get(key, value) != value:
            raise ValueError(_refusal(f'rope_scaling.{key}', scaling[key]))
    main = {key: value for key, value in scaling.items() if key in (*ROTARY_KEYS[kind], 'truncate')}
    original = 'original_max_position_embeddings'
    if kind == 'longrope':
        main[original] = scaling.get(original, content.get(original))
        content['rope_scaling'] = {key: value for key, value in scaling.items() if key != original}
    converted = _rope_scaling(content, kind, main, 'rope_scaling')
    if content.get('model_type') in LINEAR_OR_DYNAMIC:
        content['rope_scaling'] = converted


def _rope_scaling(
    content: dict[str, Any], kind: str, main: dict[str, Any], place: str = 'rope_parameters'
) -> dict[str, Any] | None:
    """The ``rope_scaling`` that transformers 4 computes the same with."""
    longest, original = content.get('max_position_embeddings'), main.get('original_max_position_embeddings')
    if kind == 'longrope':  # version 4 reads it beside rope_scaling
        main.pop('original_max_position_embeddings', None)
        if original is not None:
            if content.get('original_max_position_embeddings', original) != original:
                raise ValueError(_refusal(f'{place}.original_max_position_embeddings', original))
            content['original_max_position_embeddings'] = original
    if kind == 'dynamic' and original == longest:
        main.pop('original_max_position_embeddings', None)
    if main.get('truncate') is True:
        del main['truncate']
    if kind in ('yarn', 'longrope') and original and longest and main.get('factor') is not None:
        if longest / original != main['factor']:  # version 4 takes the quotient whatever factor says
            raise ValueError(f'{_refusal(f"{place}.factor", main["factor"])[:-1]} (it takes {longest} / {original}).')
    main = {key: value for key, value in main.items() if value is not None}
    unknown = [key for key in main if key not in ROTARY_KEYS[kind]]
    if unknown:
        raise ValueError(_refusal(f'{place}.{unknown[0]}', main[unknown[0]]))
    if kind == 'default':
        return None
    if content.get('model_type') == 'phi3':  # which takes exactly these
        if main.get('attention_factor') is not None:
            raise ValueError(_refusal(f'{place}.attention_factor', main['attention_factor']))
        return {'type': kind, 'short_factor': main['short_factor'], 'long_factor': main['long_factor']}
    if content.get('model_type') in LINEAR_OR_DYNAMIC:
        if kind not in ('linear', 'dynamic'):
            raise ValueError(_refusal(f'{place}.rope_type', kind))
        return {'type': kind, 'factor': float(main['factor'])}
    return {'rope_type': kind, **main}


def _convert_layer_types(content: dict[str, Any]) -> None:
    """``layer_types`` to the pattern that transformers 4 computes it from."""
    model_type = content.get('model_type')
    if model_type in WINDOW_FROM_LAYER and not content.get('use_sliding_window', False):
        content['sliding_window'] = None  # its masks look at this key alone
    content.pop('_sliding_window_pattern', None)
    kinds = content.pop('layer_types', None)
    no_window = 'sliding_window' in content and content['sliding_window'] is None
    if not kinds or (no_window and set(kinds) <= {SLIDING, FULL}):
        return
    if len(kinds) != content.get('num_hidden_layers', len(kinds)):
        raise ValueError(
            f'the config has {len(kinds)} layer_types for {content["num_hidden_layers"]} layers; correct its '
            'config.json.'
        )
    sliding, refusal = [kind == SLIDING for kind in kinds], _refusal('layer_types', kinds)
    if not set(kinds) <= {SLIDING, FULL}:
        raise ValueError(refusal)
    if model_type in WINDOW_FROM_LAYER:
        content['max_window_layers'] = sliding.index(True) if True in sliding else len(kinds)
        possible = [layer >= content['max_window_layers'] for layer in range(len(kinds))]
    elif model_type == 'gemma2':
        possible = [layer % 2 == 0 for layer in range(len(kinds))]
    elif model_type in WINDOW_BUT_EVERY:
        content['sliding_window_pattern'] = every = sliding.index(False) + 1 if False in sliding else len(kinds) + 1
        possible = [(layer + 1) % every != 0 for layer in range(len(kinds))]
    elif model_type in ONE_WINDOW:
        if not all(sliding):
            content['sliding_window'] = None
        possible = [all(sliding)] * len(kinds)
    else:
        possible = [False] * len(kinds)
    if sliding != possible:
        raise ValueError(refusal)
