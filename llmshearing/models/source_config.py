"""Reads a source's config.json as either generation of transformers wrote it.

Keys that the installed version does not know are converted where it can compute the same, and refused by name where it
cannot (:mod:`llmshearing.compat.configs`). A config that says two different things is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from llmshearing.compat.configs import (
    OF_A_FORWARD_PASS,
    WINDOW_BUT_EVERY,
    WINDOW_FROM_LAYER,
    normalise_config,
    with_stock_type,
)
from llmshearing.compat.rotary import FULL, SLIDING
from llmshearing.compat.transformers import STRICT_ERROR, WINDOWS_BY_LAYER, attention_implementation
from llmshearing.models.config_keys import number_out_of_range, refuse_uncomputed, uncomputed_error
from llmshearing.models.families import installed_table

__all__ = [
    'OF_ANOTHER_PACKAGE',
    'check_attention',
    'check_stock_reading',
    'config_from',
    'is_known_type',
    'layer_windows',
    'read_config',
]

OF_ANOTHER_PACKAGE = (
    'For a model type of another package, install that package: an entry point of the group llmshearing_families, with '
    'the type for its name, is to import what registers config and model with transformers.'
)

READ_OTHERWISE = (
    'hidden_act',
    'rope_theta',
    'rope_scaling',
    'rope_local_base_freq',
    'partial_rotary_factor',
    'rotary_pct',
    'sliding_window_pattern',
    'max_window_layers',
)

# What config classes raise for values that they compute with before they look at them.
STUMBLES = (IndexError, TypeError, ZeroDivisionError)

# Ways of quantising that transformers 5 undoes exactly, on any machine.
DEQUANTISED = ('fp8', 'mxfp4')


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
    model_type = content.get('model_type')
    if is_known_type(model_type) and not (trust_remote_code and 'auto_map' in content):
        return config_from(content, name_or_path=str(name))
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **OF_A_FORWARD_PASS)
    except ValueError as error:
        if not model_type or 'auto_map' in content:
            raise
        raise ValueError(f'{error}\n{OF_ANOTHER_PACKAGE}') from error


def refuse_quantised(where: str, config: PretrainedConfig) -> None:
    """Refuses a source with quantised weights, with the way to plain ones.

    Raises:
        ValueError: Naming the method.
    """
    settings = getattr(config, 'quantization_config', None)
    if settings is None:
        return
    method = settings.get('quant_method') if isinstance(settings, dict) else settings.quant_method
    remedy = 'use the model that it was quantised from'
    if method in DEQUANTISED:
        remedy += (
            ", or write one with plain weights: transformers 5 opens it so with 'dequantize': True in the "
            'quantization_config of its config, and saves it with save_pretrained (llmshearing/models/README.md, '
            '"Quantised releases", has the lines)'
        )
    raise ValueError(f'{where} has quantised weights ({method}), which are not read here; {remedy}.')


def is_known_type(model_type: Any) -> bool:
    """Whether transformers knows a model type, by itself or from the installed package that brings a table of it."""
    if not isinstance(model_type, str):
        return False
    if model_type not in CONFIG_MAPPING:
        installed_table(model_type)  # which may register it with transformers
    return model_type in CONFIG_MAPPING


def config_from(content: Mapping[str, Any], **settings: Any) -> PretrainedConfig:
    """The config of a config.json that was read, of a model type that transformers knows.

    Args:
        content (Mapping[str, Any]): What the file holds, as either generation wrote it.
        **settings (Any): Attributes that replace what it says.

    Raises:
        ValueError: As :func:`read_config`.
    """
    try:
        content = with_stock_type(normalise_config(content))
        wrong = number_out_of_range(content)
        if wrong is not None:
            raise ValueError(f'the config has {wrong}: correct its config.json.')
        refuse_uncomputed(content)
        config = CONFIG_MAPPING[content['model_type']].from_dict(content, **settings)
        _refuse_unread_kinds(content, config)
        return config
    except STUMBLES as error:
        reason = f'{type(error).__name__}: {error}; among what it says, look at {_odd_settings(content)}'
        raise ValueError(f'transformers takes no such config of a {content["model_type"]}: {reason}.') from error
    except (STRICT_ERROR, KeyError) as error:  # a KeyError: rotary settings of which one is missing
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(
            f'transformers takes no such config of a {content["model_type"]}: {" ".join(str(reason).split())}'
        ) from error


def _odd_settings(content: Mapping[str, Any]) -> str:
    """Settings that are nothing, or of another kind than in transformers' own config of the type."""
    usual = CONFIG_MAPPING[content['model_type']]().to_dict()
    odd = {
        key: value
        for key, value in content.items()
        if isinstance(usual.get(key), (int, float))
        and (not isinstance(value, (int, float)) or value == 0 != usual[key])
    }
    return ', '.join(f'{key}: {value!r}' for key, value in odd.items()) or 'the sizes'


def _refuse_unread_kinds(content: Mapping[str, Any], config: PretrainedConfig) -> None:
    """Raises a ValueError for kinds of layers other than those that a type without such a setting computes."""
    kinds = content.get('layer_types')
    if not kinds or hasattr(type(config)(), 'layer_types'):
        return
    if set(kinds) != {SLIDING if getattr(config, 'sliding_window', None) else FULL}:
        raise uncomputed_error('layer_types', kinds, content['model_type'])


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
    elif config.model_type in WINDOW_BUT_EVERY:
        sliding = [(layer + 1) % config.sliding_window_pattern != 0 for layer in range(layers)]
    else:
        sliding = [True] * layers
    return (window, sliding) if any(sliding) else None


def check_attention(config: PretrainedConfig, attn_implementation: str, max_seq_len: int) -> None:
    """Raises a ValueError where this attention would not compute what the config asks for.

    Args:
        config (PretrainedConfig): As :func:`read_config` gives it.
        attn_implementation (str): ``'sdpa'``, ``'eager'`` or ``'flash_attention_2'``.
        max_seq_len (int): Tokens in the longest sequence of the run.
    """
    if attn_implementation.startswith('paged|'):
        raise ValueError(
            f'attn_implementation: {attn_implementation} is for servers: in training, tokens see those that they are '
            f'to predict. Set {attn_implementation.removeprefix("paged|")}.'
        )
    if attn_implementation != attention_implementation(config, attn_implementation):
        capping = getattr(config, 'attn_logit_softcapping', None)
        left_out = f'the attention sinks of {config.model_type}; set eager'
        if capping:
            asked = f'attn_logit_softcapping: {capping}'
            left_out = f'the soft-capping of scores that the config asks for ({asked}); set eager or flash_attention_2'
        raise ValueError(f'attn_implementation: {attn_implementation} leaves out {left_out}.')
    windows = layer_windows(config)
    if windows is None or WINDOWS_BY_LAYER or attn_implementation == 'flash_attention_2':
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
    """Raises a ValueError where transformers' own reading of a config leaves out what :func:`read_config` takes."""
    try:
        stock = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        return  # a model with code of its own; whoever builds it says so
    for key in READ_OTHERWISE:
        if hasattr(config, key) and getattr(config, key) != getattr(stock, key, None):
            raise ValueError(
                f'the config of {name} is in words of which the installed transformers by itself does not take all; it '
                f'would compute with {key}: {getattr(stock, key, None)!r} instead of {getattr(config, key)!r}. Set '
                'model.name: sheared_causal_lm, which reads it, or use the transformers that wrote it.'
            )
