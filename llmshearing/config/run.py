"""The config transform of llm-foundry that prepares and checks a run before anything is built: before weights are read,
before the first batch, on every rank.

It runs first under ``llmshearing train`` and ``llmfoundry train`` alike. Runs without any part of this package are left
alone. What holds for every section is in the other modules of this package; here is what our own parts need of each
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.config.parts import our_parts, section_names
from llmshearing.config.process import prepare_process
from llmshearing.config.resume import check_resume
from llmshearing.config.secrets import check_no_secrets
from llmshearing.config.sections import check_config, check_local_folder
from llmshearing.config.times import check_time

__all__ = ['check_run', 'prepare_run']

# A folder with a tokenizer has one of these.
TOKENIZER_FILES = ('tokenizer_config.json', 'tokenizer.json', 'tokenizer.model', 'vocab.json')


def prepare_run(config: dict[str, Any]) -> dict[str, Any]:
    """The config transform: prepares the process, fills defaults in and checks the result.

    Args:
        config (dict[str, Any]): A whole llm-foundry training configuration.

    Raises:
        ValueError: As :func:`check_run`.
    """
    if any(our_parts(config)):
        prepare_process(config)
        check_run(config)
    return config


def check_run(config: dict[str, Any]) -> dict[str, Any]:
    """Checks a configuration and changes nothing; returns it.

    Args:
        config (dict[str, Any]): A whole llm-foundry training configuration with one of our parts.

    Raises:
        ValueError: Naming what was got, what is possible and what to change.
    """
    check_no_secrets(config)
    algorithms, callbacks = section_names(config.get('algorithms')), section_names(config.get('callbacks'))
    if 'dynamic_batch_loading' in callbacks and section_names(config.get('train_loader'), 'name') != ['dynamic_text']:
        raise ValueError('callbacks.dynamic_batch_loading needs train_loader.name: dynamic_text.')
    check_config(config)
    _check_rounds(config)
    check_resume(config)
    _check_model(config['model'])
    check_local_folder('tokenizer.name', config['tokenizer']['name'], *TOKENIZER_FILES)
    if 'targeted_pruning' in algorithms:
        _check_pruning(config['algorithms']['targeted_pruning'], config['model'], config)
    if 'export_pruned' in callbacks:
        _check_export(config['callbacks']['export_pruned'], config.get('algorithms') or {})
    _check_precision(config)
    return config


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
    from llmshearing.algorithms.targeted_pruning import TargetedPruning
    from llmshearing.masks.sparsity_target import read_sparsity_target
    from llmshearing.models.families import family_of
    from llmshearing.models.shapes import shape_of
    from llmshearing.models.targets import target_shape

    if model.get('name') != 'sheared_causal_lm':
        raise ValueError(f'algorithms.targeted_pruning needs model.name: sheared_causal_lm, got {model.get("name")!r}.')
    for key in ('lagrangian_warmup', 'freeze_masks_after'):
        if settings.get(key) is not None:
            check_time(f'algorithms.targeted_pruning.{key}', settings[key])
    _check_checkpoints(settings, config)
    pruning = TargetedPruning(**settings)
    source_config = _source_config(model)
    family_of(source_config)  # refuses other model types, whose configs may have no such shape
    if read_sparsity_target(pruning.target_settings, shape_of(source_config)) is None:
        target_shape(source_config, pruning.target_settings)


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
        return AutoConfig.from_pretrained(name, trust_remote_code=model.get('trust_remote_code', False))
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
