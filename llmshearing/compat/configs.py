"""Config files of transformers 4 and 5: what either calls the same settings, for reading and for writing.

transformers 5 writes other keys than 4 (``rope_parameters``, ``dtype``, ``layer_types``). Version 4 keeps keys that it
does not know and computes without them: with a rotary base of 10000, say. Programs that read a config.json often know
the older names only, so what we write carries both.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmshearing.compat.rotary import (
    FULL,
    SLIDING,
    check_rotary,
    convert_rotary,
    main_rotary,
    refuse_contradictions,
    rename_rotary,
)
from llmshearing.compat.versions import TRANSFORMERS_5, needs_newer
from llmshearing.utils.files import dump_json, load_json

__all__ = [
    'OF_A_FORWARD_PASS',
    'SAME_NUMBERS',
    'WINDOW_BUT_EVERY',
    'WINDOW_FROM_LAYER',
    'add_older_names',
    'dump_config',
    'normalise_config',
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
# The attention of whoever saved the config, which transformers 4 would look for on any machine.
OF_A_MACHINE = ('attn_implementation', '_attn_implementation', '_attn_implementation_internal')
# Keys of the first configs of a type that vLLM and llama.cpp read, and which of transformers' numbers each of them is.
SAME_NUMBERS = {
    'lfm2': {
        'block_dim': 'hidden_size',
        'conv_dim': 'hidden_size',
        'conv_dim_out': 'hidden_size',
        'block_ff_dim': 'intermediate_size',
        'num_heads': 'num_attention_heads',
    }
}
# Kinds of layers in the first configs of a type, which transformers 5 reads as well.
OLDER_KINDS = {'granitemoehybrid': {'linear_attention': 'mamba', 'full_attention': 'attention'}}
WINDOW_BUT_EVERY = ('gemma3_text', 'cohere2')  # every sliding_window_pattern-th layer attends to everything
WINDOW_FROM_LAYER = ('qwen2', 'qwen3')  # the first max_window_layers layers attend to everything
ONE_WINDOW = ('mistral', 'phi3', 'starcoder2')  # for all layers, or none; kinds of layers are not looked at


def normalise_config(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json in the words of the installed transformers, without what is for one call or one machine.

    Args:
        stored (Mapping[str, Any]): What the file holds; not changed.

    Raises:
        ValueError: If it contradicts itself, or asks for what the installed transformers does not compute; names the
            key.
    """
    content: dict[str, Any] = json.loads(json.dumps(dict(stored), default=str))
    content = {key: value for key, value in content.items() if key not in (*OF_A_FORWARD_PASS, *OF_A_MACHINE)}
    if isinstance(content.get('text_config'), dict):
        content['text_config'] = normalise_config(content['text_config'])
    _check_dtype(content)
    _rename_activation(content)
    rename_rotary(content)
    refuse_contradictions(content)
    check_rotary(content)
    if TRANSFORMERS_5:
        if content.get('rope_parameters'):
            content.pop('rope_scaling', None)  # which would replace it, base and all
        return content
    _convert_dtype(content)
    convert_rotary(content)
    _convert_layer_types(content)
    _convert_experts(content)
    if not content.get('use_bidirectional_attention'):  # else it is refused, under either version
        content.pop('use_bidirectional_attention', None)
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
    _rename_activation(content)
    older = dict(content)
    for convert in (_convert_dtype, convert_rotary, _convert_layer_types, _convert_experts):
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


def _rename_activation(content: dict[str, Any]) -> None:
    """``gelu`` of the first Gemmas, by which the tanh approximation is meant; transformers 5 knows, 4.51 does not."""
    if content.get('model_type') == 'gemma' and content.get('hidden_act') == 'gelu':
        content['hidden_act'] = 'gelu_pytorch_tanh'


def _check_dtype(content: Mapping[str, Any]) -> None:
    for key in ('dtype', 'torch_dtype'):
        name = content.get(key)
        found = getattr(torch, name.removeprefix('torch.'), None) if isinstance(name, str) else None
        if not (name is None or isinstance(found, torch.dtype) or isinstance(name, dict)):  # a mapping: for each part
            raise ValueError(
                f'the config has {key}: {name!r}; expected a type such as bfloat16: correct its config.json.'
            )


def _convert_experts(content: dict[str, Any]) -> None:
    """``num_local_experts`` to ``num_experts``, in a Qwen 3 mixture, for which transformers 5 writes the former."""
    if content.get('model_type') == 'qwen3_moe' and content.get('num_local_experts') is not None:
        content['num_experts'] = content.pop('num_local_experts')  # beside it, a cut would leave this one as it was


def _convert_dtype(content: dict[str, Any]) -> None:
    """``dtype`` to ``torch_dtype``."""
    if content.get('dtype') is not None:
        content['torch_dtype'] = content.pop('dtype')


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
    sliding, refusal = [kind == SLIDING for kind in kinds], needs_newer('layer_types', kinds)
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
