"""Checks a run's configuration before anything is built: before weights are read, before the first batch, on every rank.

Registered as a config transform of llm-foundry, so it runs first under ``llmshearing/train.py`` and ``llmfoundry train``
alike. It only looks at our own parts and returns the configuration unchanged.
"""
from __future__ import annotations

import difflib
import inspect
import os
from pathlib import Path
from typing import Any, Callable, Mapping

__all__ = ['check_run']


def check_run(config: dict[str, Any]) -> dict[str, Any]:
    """Raises a ValueError that names what was got, what is possible and what to change; returns ``config``.

    Args:
        config (dict[str, Any]): A whole llm-foundry training configuration.
    """
    algorithms, callbacks = config.get('algorithms') or {}, config.get('callbacks') or {}
    model = config.get('model') or {}
    if model.get('name') == 'sheared_causal_lm':
        _check_model(model)
    if 'targeted_pruning' in algorithms:
        _check_pruning(algorithms['targeted_pruning'] or {}, model, config)
    if 'export_pruned' in callbacks:
        _check_export(callbacks['export_pruned'] or {}, algorithms)
    if 'dynamic_batch_loading' in callbacks:
        from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading
        check_keys('callbacks.dynamic_batch_loading', callbacks['dynamic_batch_loading'] or {}, DynamicBatchLoading)
        if (config.get('train_loader') or {}).get('name') != 'dynamic_text':
            raise ValueError('callbacks.dynamic_batch_loading needs train_loader.name: dynamic_text.')
    return config


def check_keys(where: str, settings: Any, *constructors: Callable) -> None:
    """Refuses keys that none of the constructors takes, with the nearest ones that they do, and missing required ones."""
    if not isinstance(settings, Mapping):
        raise ValueError(f'{where}: expected keys and values, got {settings!r}.')
    parameters = {
        name: parameter for constructor in constructors for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind != parameter.VAR_KEYWORD
    }
    for key in settings:
        if key not in parameters:
            near = difflib.get_close_matches(str(key), parameters, 1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            raise ValueError(f'{where}: unknown key {key!r}.{hint} Possible: {", ".join(parameters)}.')
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in settings]
    if missing:
        raise ValueError(f'{where}: missing {", ".join(missing)}.')


def _check_model(model: Mapping[str, Any]) -> None:
    from llmfoundry.models.hf import ComposerHFCausalLM

    from llmshearing.models.sheared_causal_lm import ShearedCausalLM
    settings = {key: value for key, value in model.items() if key not in ('name', 'master_weights_dtype')}
    check_keys('model', {'tokenizer': None, **settings}, ShearedCausalLM, ComposerHFCausalLM)
    source = str(model['pretrained_model_name_or_path'])
    looks_local = source.startswith(('/', '.', '~')) or source.count('/') > 1
    if looks_local and not (Path(source) / 'config.json').is_file():
        raise ValueError(f'model.pretrained_model_name_or_path: {source} is no Hugging Face model folder (no config.json there).')


def _check_pruning(settings: Mapping[str, Any], model: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    from transformers import AutoConfig

    from llmshearing.algorithms.targeted_pruning import TargetedPruning
    from llmshearing.algorithms.targeted_pruning.sparsity_target import read_sparsity_target
    from llmshearing.models.shapes import shape_of
    from llmshearing.models.targets import target_shape
    check_keys('algorithms.targeted_pruning', settings, TargetedPruning)
    if model.get('name') != 'sheared_causal_lm':
        raise ValueError(f'algorithms.targeted_pruning needs model.name: sheared_causal_lm, got {model.get("name")!r}.')
    if config.get('precision') == 'amp_fp16':
        raise ValueError('precision: amp_fp16 scales gradients and does not work with targeted_pruning; use amp_bf16 or fp32.')
    if config.get('fsdp_config'):
        if os.environ.setdefault('FSDP_VERSION', '2') != '2':
            raise ValueError(
                f'fsdp_config with FSDP_VERSION={os.environ["FSDP_VERSION"]}: pruning is built for FSDP2 (FSDP1 flattens the '
                'parameters that masks cut); unset FSDP_VERSION or set it to 2.',
            )
    pruning = TargetedPruning(**settings)
    source_config = AutoConfig.from_pretrained(
        model['pretrained_model_name_or_path'],
        trust_remote_code=model.get('trust_remote_code', False),
    )
    if read_sparsity_target(pruning.target_settings, shape_of(source_config)) is None:
        target_shape(source_config, pruning.target_settings)


def _check_export(settings: Mapping[str, Any], algorithms: Mapping[str, Any]) -> None:
    from llmshearing.algorithms.targeted_pruning.sparsity_target import NOT_EXPORTABLE
    from llmshearing.callbacks.export_pruned import ExportPruned
    check_keys('callbacks.export_pruned', settings, ExportPruned)
    if 'targeted_pruning' not in algorithms:
        raise ValueError('callbacks.export_pruned exports what algorithms.targeted_pruning learned; add that algorithm.')
    if 'sparsity' in (algorithms['targeted_pruning'].get('target') or {}):
        raise ValueError(f'callbacks.export_pruned: {NOT_EXPORTABLE}')
    if Path(settings['folder']).exists() and not settings.get('overwrite', False):
        raise ValueError(
            f'callbacks.export_pruned: {settings["folder"]} exists already; choose another folder or set overwrite: true.',
        )
