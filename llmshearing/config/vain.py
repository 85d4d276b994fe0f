"""Settings at the top level that need another one: without it nothing comes of them, and no library says so."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

__all__ = ['tell_vain_settings']

log = logging.getLogger(__name__)

# What is needed, any of these, and what says how it is to be done.
NEEDED = (
    (
        ('save_folder',),
        (
            'save_interval',
            'save_filename',
            'save_latest_filename',
            'save_num_checkpoints_to_keep',
            'save_overwrite',
            'save_weights_only',
            'save_ignore_keys',
        ),
    ),
    (('load_path',), ('load_weights_only', 'load_ignore_keys')),
    (('icl_tasks', 'icl_tasks_str'), ('icl_seq_len', 'icl_subset_num_batches')),
    (
        ('eval_loader', 'eval_loaders', 'icl_tasks', 'icl_tasks_str'),
        ('eval_interval', 'eval_first', 'eval_subset_num_batches'),
    ),
)


def tell_vain_settings(config: Mapping[str, Any]) -> None:
    """Warns of settings that are given, are not llm-foundry's defaults, and do nothing in this run.

    Args:
        config (Mapping[str, Any]): A whole llm-foundry training configuration whose keys have been checked.
    """
    from llmfoundry.utils.config_utils import TrainConfig

    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for needed, settings in NEEDED:
        vain = [key for key in settings if key in config and config[key] not in (None, defaults[key])]
        if vain and not any(config.get(key) for key in needed):
            log.warning('%s: nothing comes of this without %s; set that, or remove this.', ', '.join(vain), needed[0])
    if 'console_log_interval' in config and 'console_progress' in (config.get('loggers') or {}):
        log.warning(
            'console_log_interval: loggers.console_progress goes by its own interval; set that, or remove this.'
        )
