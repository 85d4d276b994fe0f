"""What a pruning run needs of its other sections, so that it can be resumed and its result exported."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmshearing.config.parts import pruning_name
from llmshearing.config.resume import leaves_masks_out
from llmshearing.utils.paths import refuse_existing

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['check_export', 'check_pruning']

log = logging.getLogger(__name__)


def check_pruning(config: Mapping[str, Any], settings: Mapping[str, Any], source: PretrainedConfig) -> None:
    """Checks the algorithm that prunes against the source and the rest of the run.

    Args:
        config (Mapping[str, Any]): A whole llm-foundry training configuration whose keys have been checked.
        settings (Mapping[str, Any]): Those of the algorithm.
        source (PretrainedConfig): Config of the source model.

    Raises:
        ValueError: For a target that cannot be reached, and for settings whose result would not be the pruned model.
    """
    from llmshearing.masks.sparsity_target import read_sparsity_target
    from llmshearing.models.shapes import shape_of
    from llmshearing.models.targets import target_shape

    if not config['model'].get('pretrained', True):
        raise ValueError(
            'model.pretrained: false leaves random weights, of which there is nothing to learn what to keep; remove it '
            'for pruning.'
        )
    _check_checkpoints(settings, config)
    _tell_what_is_lost(settings, config)
    target = settings.get('target')  # an algorithm of another package may have its own
    if target is not None and read_sparsity_target(target, shape_of(source)) is None:
        target_shape(source, target)


def check_export(config: Mapping[str, Any]) -> None:
    """Checks ``callbacks.export_pruned``, whose keys have been checked, against the pruning that it exports.

    Raises:
        ValueError: If there is nothing to export, or its place is taken.
    """
    from llmshearing.masks.sparsity_target import NOT_EXPORTABLE

    where, settings = 'callbacks.export_pruned', config['callbacks']['export_pruned']
    algorithms, pruning = config.get('algorithms') or {}, pruning_name(config)
    if pruning is None:
        raise ValueError(f'{where} exports what algorithms.targeted_pruning learned; add that algorithm.')
    if 'sparsity' in ((algorithms[pruning] or {}).get('target') or {}):
        raise ValueError(f'{where}: {NOT_EXPORTABLE}')
    needed = (
        config['model'].get('pretrained_model_name_or_path'),
        config['tokenizer']['name'],
        (algorithms.get('distillation') or {}).get('teacher'),
        config.get('save_folder'),
        config.get('load_path'),
    )
    if os.environ.get('RANK', '0') == '0':  # the only one that writes; on other nodes another folder may be there
        refuse_existing(where, settings['folder'], settings.get('overwrite', False), needed)
    callbacks, loggers = config['callbacks'], config.get('loggers') or {}
    written = {
        'save_folder': config.get('save_folder'),
        'loggers.metrics_file.path': (loggers.get('metrics_file') or {}).get('path'),
        'callbacks.run_report.folder': (callbacks.get('run_report') or {}).get('folder'),
        'callbacks.dynamic_batch_loading.weights_file': (callbacks.get('dynamic_batch_loading') or {}).get(
            'weights_file'
        ),
    }
    folder = Path(settings['folder']).resolve()
    for place, path in written.items():
        if path and '://' not in path and Path(path).resolve().is_relative_to(folder):
            raise ValueError(
                f'{where}.folder: {settings["folder"]} is to be new at the end of the run, and {place}: {path} is '
                'written into it meanwhile; choose another folder.'
            )


def _tell_what_is_lost(settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Warns of a run that leaves nothing but its log; somebody may want no more than that."""
    if 'export_pruned' in (config.get('callbacks') or {}) or config.get('save_folder'):
        return
    exports = 'sparsity' not in (settings.get('target') or {})
    log.warning(
        'This run keeps nothing of what it prunes. Set save_folder for checkpoints%s.',
        ', or callbacks.export_pruned: {folder: ...} for the pruned model' if exports else '',
    )


def _check_checkpoints(settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuses checkpoints that a pruning run could not go on from, or be exported from."""
    if 'hf_checkpointer' in (config.get('callbacks') or {}):
        raise ValueError(
            'callbacks.hf_checkpointer writes the uncut model, under a name that looks like the result; for pruning '
            'remove it and add callbacks.export_pruned: {folder: ...}, which writes the pruned one. A checkpoint on '
            'the way is exported by `llmshearing export`.'
        )
    if config.get('save_weights_only'):
        raise ValueError(
            'save_weights_only: true leaves the masks out of the checkpoints, so they can be neither resumed nor '
            'exported; set it to false for pruning.'
        )
    left_out = leaves_masks_out(config.get('save_ignore_keys'), config)
    if left_out is not None:
        raise ValueError(
            f'save_ignore_keys: {left_out!r} leaves the masks out of the checkpoints, so they can be neither resumed '
            'nor exported; remove it for pruning.'
        )
    sharding = config.get('fsdp_config')
    if sharding and settings.get('freeze_weights') and sharding.get('state_dict_type', 'full') == 'full':
        raise ValueError(
            'algorithms.targeted_pruning.freeze_weights: true leaves the optimizer without tensors, and PyTorch cannot '
            'load such a full checkpoint under FSDP2; set fsdp_config.state_dict_type: sharded.'
        )
