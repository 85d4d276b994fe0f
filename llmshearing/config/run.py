"""Checks a run's configuration before anything is built:
before weights are read, before the first batch, on every rank.

Registered as a config transform of llm-foundry, so it runs first under ``llmshearing/train.py`` and
``llmfoundry train`` alike. Runs without any part of this package are left alone. What holds for every section is in
the other modules of this package; here is what our own parts need of each other, and the two settings that are safer
than llm-foundry's: no remote code unless it is asked for, and no checkpoint that could run code.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmshearing.compat import composer, llmfoundry
from llmshearing.config.keys import check_time
from llmshearing.config.secrets import check_no_secrets
from llmshearing.config.sections import check_config, check_local_folder

__all__ = ['check_run']

# A folder with a tokenizer has one of these.
TOKENIZER_FILES = ('tokenizer_config.json', 'tokenizer.json', 'tokenizer.model', 'vocab.json')


def check_run(config: dict[str, Any]) -> dict[str, Any]:
    """Raises a ValueError that names what was got, what is possible and what to change; returns ``config``.

    Args:
        config (dict[str, Any]): A whole llm-foundry training configuration. Where ``trust_remote_code`` is not set,
            it is set to false.
    """
    if not any(_our_parts(config)):
        return config
    composer.install()
    llmfoundry.install()
    from llmshearing.checkpoints.guard import guard_checkpoint_loading
    from llmshearing.config.resume import check_resume

    check_no_secrets(config)
    if 'dynamic_batch_loading' in _names(config.get('callbacks')) and _names(config.get('train_loader'), 'name') != [
        'dynamic_text'
    ]:
        raise ValueError('callbacks.dynamic_batch_loading needs train_loader.name: dynamic_text.')
    check_config(config)
    if config.get('python_log_level', 'debug'):  # llm-foundry's default; it sets the level of its own loggers only
        logging.getLogger('llmshearing').setLevel(config.get('python_log_level', 'debug').upper())
    _check_rounds(config)
    check_resume(config)
    guard_checkpoint_loading()
    _trust_no_remote_code(config)
    algorithms, callbacks, model = config.get('algorithms') or {}, config.get('callbacks') or {}, config['model']
    _check_model(model)
    check_local_folder('tokenizer.name', config['tokenizer']['name'], *TOKENIZER_FILES)
    if 'targeted_pruning' in algorithms:
        _check_pruning(algorithms['targeted_pruning'], model, config)
    if 'export_pruned' in callbacks:
        _check_export(callbacks['export_pruned'], algorithms)
    _check_precision(config)
    return config


def _our_parts(config: Mapping[str, Any]) -> Iterator[str]:
    """Names in a configuration that this package has registered; whatever else is wrong with it."""
    from llmfoundry import registry

    places = (
        (registry.models, _names(config.get('model'), 'name')),
        (registry.dataloaders, _names(config.get('train_loader'), 'name')),
        (registry.algorithms, _names(config.get('algorithms'))),
        (registry.callbacks, _names(config.get('callbacks'))),
        (registry.loggers, _names(config.get('loggers'))),
    )
    for entries, names in places:
        for name in names:
            if name in entries and entries.get(name).__module__.split('.')[0] == 'llmshearing':
                yield name


def _names(section: Any, key: str = '') -> list[str]:
    if not isinstance(section, Mapping):
        return []
    return [name for name in ([section.get(key)] if key else section) if isinstance(name, str)]


def _trust_no_remote_code(config: dict[str, Any]) -> None:
    """llm-foundry runs code that comes with a model unless told otherwise, and transformers asks on the terminal."""
    from llmfoundry import registry

    if config['model']['name'] in ('sheared_causal_lm', 'hf_causal_lm', 'hf_t5'):
        config['model'].setdefault('trust_remote_code', False)
    if config['tokenizer']['name'] not in registry.tokenizers:
        config['tokenizer']['kwargs'] = {'trust_remote_code': False, **(config['tokenizer'].get('kwargs') or {})}


def _check_rounds(config: Mapping[str, Any]) -> None:
    loader, batches = config['train_loader'], config.get('train_subset_num_batches')
    if loader['name'] != 'dynamic_text' or batches in (None, -1, loader['dataset'].get('round_batches')):
        return
    raise ValueError(
        f'train_subset_num_batches: {batches} would serve the beginning of every mixing round and nothing else; remove '
        'it and say with max_duration how long to train.'
    )


def _check_model(model: Mapping[str, Any]) -> None:
    from llmshearing.utils.paths import check_safetensors_index

    where = 'model.pretrained_model_name_or_path'
    source = model.get('pretrained_model_name_or_path')
    if source is None:  # a model of llm-foundry's own kind
        return
    if not source:
        raise ValueError(f'{where}: expected a Hugging Face folder or name, got {source!r}.')
    check_local_folder(where, source, 'config.json')
    index = Path(source) / 'model.safetensors.index.json'
    if index.is_file():
        check_safetensors_index(index)


def _check_pruning(settings: Mapping[str, Any], model: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    from llmshearing.algorithms.targeted_pruning.settings import PruningSettings
    from llmshearing.masks.sparsity_target import read_sparsity_target
    from llmshearing.models.families import family_of
    from llmshearing.models.shapes import shape_of
    from llmshearing.models.targets import target_shape

    if model.get('name') != 'sheared_causal_lm':
        raise ValueError(f'algorithms.targeted_pruning needs model.name: sheared_causal_lm, got {model.get("name")!r}.')
    if config.get('fsdp_config'):
        if os.environ.setdefault('FSDP_VERSION', '2') != '2':
            raise ValueError(
                f'fsdp_config with FSDP_VERSION={os.environ["FSDP_VERSION"]}: pruning is built for FSDP2 (FSDP1 '
                'flattens the parameters that masks cut); unset FSDP_VERSION or set it to 2.'
            )
    for key in ('warmup', 'lagrangian_warmup', 'freeze_masks_after'):
        if settings.get(key) is not None:
            check_time(f'algorithms.targeted_pruning.{key}', settings[key])
    _check_checkpoints(settings, config)
    target = PruningSettings(**settings).target
    source_config = _source_config(model)
    family_of(source_config)  # refuses other model types, whose configs may have no such shape
    if read_sparsity_target(target, shape_of(source_config)) is None:
        target_shape(source_config, target)


def _check_checkpoints(settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuses checkpoints that a pruning run could not go on from, or be exported from."""
    if config.get('save_weights_only'):
        raise ValueError(
            'save_weights_only: true leaves the masks out of the checkpoints, so they can be neither resumed nor '
            'exported; set it to false for pruning.'
        )
    sharding = config.get('fsdp_config')
    if sharding and settings.get('freeze_weights') and sharding.get('state_dict_type', 'full') == 'full':
        raise ValueError(
            'algorithms.targeted_pruning.freeze_weights: true leaves the optimizer without tensors, and PyTorch cannot '
            'load such a full checkpoint under FSDP2; set fsdp_config.state_dict_type: sharded.'
        )


def _source_config(model: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    name = model['pretrained_model_name_or_path']
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=model['trust_remote_code'])
    except OSError as error:
        raise ValueError(
            f'model.pretrained_model_name_or_path: the config of {name} cannot be read ({error}).'
        ) from error


def _check_precision(config: Mapping[str, Any]) -> None:
    import torch

    precision = config.get('precision', 'amp_bf16')
    if precision == 'amp_fp16':
        raise ValueError(
            'precision: amp_fp16 scales losses, which gradients of masks, distillation and finite_monitor do not take '
            'into account; use amp_bf16 or fp32.'
        )
    if precision != 'fp32' and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ValueError(
            f'precision: Composer trains in fp32 only on CPU, got {precision!r}; set fp32 (on GPUs amp_bf16 or fp32).'
        )


def _check_export(settings: Mapping[str, Any], algorithms: Mapping[str, Any]) -> None:
    from llmshearing.masks.sparsity_target import NOT_EXPORTABLE

    if 'targeted_pruning' not in algorithms:
        raise ValueError(
            'callbacks.export_pruned exports what algorithms.targeted_pruning learned; add that algorithm.'
        )
    if 'sparsity' in (algorithms['targeted_pruning'].get('target') or {}):
        raise ValueError(f'callbacks.export_pruned: {NOT_EXPORTABLE}')
    if Path(settings['folder']).exists() and not settings.get('overwrite', False):
        raise ValueError(
            f'callbacks.export_pruned: {settings["folder"]} exists already; '
            'choose another folder or set overwrite: true.'
        )
