"""Reads a source's config.json as either generation of transformers wrote it.

transformers 5 writes other keys than 4 (``rope_parameters``, ``dtype``, ``layer_types``). Version 4 keeps keys that it
does not know and computes without them: with a rotary base of 10000, say. Here such keys are converted where the
installed version can compute the same, and refused by name where it cannot. Version 5 reads both itself; there, and
here, a config that says two different things is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from llmshearing.compat.transformers import STRICT_ERROR, attention_implementation
from llmshearing.compat.versions import TRANSFORMERS_5

__all__ = [
    'add_older_names',
    'check_attention',
    'check_stock_reading',
    'config_from',
    'layer_windows',
    'normalised',
    'read_config',
]

log = logging.getLogger(__name__)

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
    'phi3': ('partial_rotary_factor',),
    'glm': ('partial_rotary_factor',),
}
READ_OTHERWISE = (
    'rope_theta',
    'rope_scaling',
    'rope_local_base_freq',
    'partial_rotary_factor',
    'rotary_pct',
    'sliding_window_pattern',
    'max_window_layers',
)
SLIDING, FULL = 'sliding_attention', 'full_attention'
WINDOW_FROM_LAYER = ('qwen2', 'qwen3')  # the first max_window_layers layers attend to everything


def read_config(name: str | Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model folder or of a model on the hub, with the meaning that its writer gave it.

    Args:
        name (str | Path): Folder, or name on the hub.
        trust_remote_code (bool): Use config classes that come with the model. Default: ``False``.

    Raises:
        OSError: If there is no such config.
        ValueError: If the config contradicts itself, or asks for what the installed transformers does not compute.
    """
    content, _ = PretrainedConfig.get_config_dict(name)
    if content.get('model_type') not in CONFIG_MAPPING or (trust_remote_code and 'auto_map' in content):
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    return config_from(content, name_or_path=str(name))


def config_from(content: Mapping[str, Any], **settings: Any) -> PretrainedConfig:
    """The config of a config.json that was read, of a model type that transformers knows.

    Args:
        content (Mapping[str, Any]): What the file holds, as either generation wrote it.
        **settings (Any): Attributes that replace what it says.

    Raises:
        ValueError: As :func:`read_config`.
    """
    try:
        return CONFIG_MAPPING[content['model_type']].from_dict(normalised(content), **settings)
    except STRICT_ERROR as error:
        raise ValueError(f'transformers takes no such config: {" ".join(str(error).split())}') from error


def normalised(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json in the words of the installed transformers.

    Args:
        content (Mapping[str, Any]): What the file holds; not changed.

    Raises:
        ValueError: As :func:`read_config`, naming the key.
    """
    content = json.loads(json.dumps(dict(content), default=str))
    if isinstance(content.get('text_config'), dict):
        content['text_config'] = normalised(content['text_config'])
    _refuse_contradictions(content)
    if not TRANSFORMERS_5:
        _convert_to_4(content)
    elif content.get('rope_parameters'):
        content.pop('rope_scaling', None)  # which would replace it, base and all
    return content


def add_older_names(path: Path) -> None:
    """Adds to a config.json of transformers 5 what it says in the words of transformers 4.

    transformers 4, llama.cpp and vLLM then read the same numbers; without them they take a rotary base of 10000.

    Args:
        path (Path): The config.json.
    """
    content = json.loads(path.read_text(encoding='utf-8'))
    older = dict(content)
    try:
        _convert_to_4(older)
    except ValueError as error:
        log.warning('%s can be opened by transformers 5 only: %s', path.parent, error)
        return
    content.update({key: value for key, value in older.items() if value is not None or key in content})
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n', encoding='utf-8')


def _convert_to_4(content: dict[str, Any]) -> None:
    """Puts a config.json into the words of transformers 4, in place."""
    if content.get('dtype') is not None:
        content['torch_dtype'] = content.pop('dtype')
    _convert_rotary(content)
    _convert_layer_types(content)
    if content.pop('use_bidirectional_attention', None):
        raise ValueError(_refusal('use_bidirectional_attention', True))


def layer_windows(config: PretrainedConfig) -> tuple[int, list[bool]] | None:
    """The sliding window and which layers it holds for, as the config says; None where no layer has one."""
    window, layers = getattr(config, 'sliding_window', None), config.num_hidden_layers
    if not window or getattr(config, 'use_sliding_window', True) is False:
        return None
    kinds = getattr(config, 'layer_types', None)
    if kinds:
        sliding = [kind == SLIDING for kind in kinds]
    elif config.model_type in WINDOW_FROM_LAYER:
        sliding = [layer >= config.max_window_layers for layer in range(layers)]
    elif config.model_type == 'gemma2':
        sliding = [layer % 2 == 0 for layer in range(layers)]
    elif config.model_type == 'gemma3_text':
        sliding = [(layer + 1) % config.sliding_window_pattern != 0 for layer in range(layers)]
    else:
        sliding = [True] * layers
    return (window, sliding) if any(sliding) else None


def check_attention(config: PretrainedConfig, attn_implementation: str, max_seq_len: int) -> None:
    """Raises a ValueError where this attention would leave out what the config asks for.

    Args:
        config (PretrainedConfig): As :func:`read_config` gives it.
        attn_implementation (str): ``'sdpa'``, ``'eager'`` or ``'flash_attention_2'``.
        max_seq_len (int): Tokens in the longest sequence of the run.
    """
    capping = getattr(config, 'attn_logit_softcapping', None)
    if capping and attn_implementation != attention_implementation(config, attn_implementation):
        raise ValueError(
            f'attn_implementation: {attn_implementation} leaves out the soft-capping of attention scores that the '
            f'config asks for (attn_logit_softcapping: {capping}); set eager or flash_attention_2.'
        )
    windows = layer_windows(config)
    if windows is None or TRANSFORMERS_5 or attn_implementation == 'flash_attention_2':
        return
    window, sliding = windows
    if config.model_type in WINDOW_FROM_LAYER and not all(sliding) and max_seq_len > window:
        raise ValueError(
            f'the config has a sliding window of {window} tokens from layer {sliding.index(True)} on; with '
            f'attn_implementation: {attn_implementation} transformers 4 applies it to every layer, which sequences of '
            f'{max_seq_len} tokens would notice. Set max_seq_len to at most {window}, use flash_attention_2, or '
            'transformers 5 (constraints/current.txt).'
        )


def check_stock_reading(name: str | Path, config: PretrainedConfig) -> None:
    """Raises a ValueError where transformers' own reading of a config leaves out what :func:`read_config` takes.

    Args:
        name (str | Path): Folder, or name on the hub.
        config (PretrainedConfig): As :func:`read_config` gives it.
    """
    try:
        stock = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        return  # a model with code of its own; whoever builds it says so
    for key in READ_OTHERWISE:
        if hasattr(config, key) and getattr(config, key) != getattr(stock, key, None):
            raise ValueError(
                f'the config of {name} was written by transformers 5; transformers 4 would compute with {key}: '
                f'{getattr(stock, key, None)!r} instead of {getattr(config, key)!r}. Set model.name: '
                'sheared_causal_lm, which reads it, or use transformers 5 (constraints/current.txt).'
            )


def _refusal(key: str, value: Any) -> str:
    return f'the config has {key}: {value!r}, {NEEDS_NEWER}.'


def _refuse_contradictions(content: Mapping[str, Any]) -> None:
    """Raises a ValueError where an older and a newer key say different things."""
    rotary = content.get('rope_parameters')
    if isinstance(rotary, dict):
        main = _main(rotary)
        model_type = content.get('model_type')
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


def _main(rotary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings of layers with full attention, or the only ones."""
    return rotary[FULL] if isinstance(rotary.get(FULL), dict) else rotary


def _kind(rotary: Mapping[str, Any]) -> str:
    return rotary.get('rope_type') or rotary.get('type') or 'default'


def _convert_rotary(content: dict[str, Any]) -> None:
    """``rope_parameters`` to ``rope_theta``, ``rope_scaling`` and what else transformers 4 calls its parts."""
    rotary = content.pop('rope_parameters', None)
    if rotary is None:
        return
    model_type = content.get('model_type')
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


def _rope_scaling(content: dict[str, Any], kind: str, main: dict[str, Any]) -> dict[str, Any] | None:
    """The ``rope_scaling`` that transformers 4 computes the same with."""
    longest, original = content.get('max_position_embeddings'), main.get('original_max_position_embeddings')
    if kind == 'longrope':  # version 4 reads it beside rope_scaling
        main.pop('original_max_position_embeddings', None)
        if original is not None:
            if content.get('original_max_position_embeddings', original) != original:
                raise ValueError(_refusal('rope_parameters.original_max_position_embeddings', original))
            content['original_max_position_embeddings'] = original
    if kind == 'dynamic' and original == longest:
        main.pop('original_max_position_embeddings', None)
    if main.get('truncate') is True:
        del main['truncate']
    if kind in ('yarn', 'longrope') and original and longest and main.get('factor') is not None:
        if longest / original != main['factor']:  # version 4 takes the quotient whatever factor says
            raise ValueError(
                f'{_refusal("rope_parameters.factor", main["factor"])[:-1]} (it takes {longest} / {original}).'
            )
    main = {key: value for key, value in main.items() if value is not None}
    unknown = [key for key in main if key not in ROTARY_KEYS[kind]]
    if unknown:
        raise ValueError(_refusal(f'rope_parameters.{unknown[0]}', main[unknown[0]]))
    if kind == 'default':
        return None
    if content.get('model_type') == 'phi3':  # which takes exactly these
        if main.get('attention_factor') is not None:
            raise ValueError(_refusal('rope_parameters.attention_factor', main['attention_factor']))
        return {'type': kind, 'short_factor': main['short_factor'], 'long_factor': main['long_factor']}
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
    elif model_type == 'gemma3_text':
        content['sliding_window_pattern'] = every = sliding.index(False) + 1 if False in sliding else len(kinds) + 1
        possible = [(layer + 1) % every != 0 for layer in range(len(kinds))]
    elif model_type in ('mistral', 'phi3', 'starcoder2'):  # one window for all layers, or none
        if not all(sliding):
            content['sliding_window'] = None
        possible = [all(sliding)] * len(kinds)
    else:
        possible = [False] * len(kinds)
    if sliding != possible:
        raise ValueError(refusal)
