"""Paths and names of files in a configuration: what a shell means by them, and nothing outside the folder they are for.

Composer and llm-foundry open a path as it is written, so ``~/runs`` becomes a folder called ``~``. Names of checkpoints
are templates: an unknown field is found only when the first one is saved.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from llmshearing.config.sharding import is_sharded
from llmshearing.config.tree import walk
from llmshearing.utils.paths import expand_path
from llmshearing.utils.suggestions import did_you_mean

__all__ = ['check_names', 'expand_paths']

# Dotted places of paths, list entries under the name of their list. A name of a hub holds neither ~ nor $.
PATHS = (
    'save_folder',
    'load_path',
    'code_paths',
    'icl_tasks_str',
    'eval_gauntlet_str',
    'icl_tasks.dataset_uri',
    'model.pretrained_*_or_path',
    'tokenizer.name',
    'tokenizer.kwargs.*_dir',
    'tokenizer.kwargs.*_file',
    '*loader*.local',
    '*loader*.remote',
    '*loader*.hf_name',
    '*loader*.data_files*',
    '*loader*.hf_kwargs.*_dir',
    '*loader*.proportions',
    'algorithms.distillation.teacher',
    'callbacks.*folder',
    'callbacks.*.filename',
    'callbacks.*.remote_file_name',
    'callbacks.*.weights_file',
    'callbacks.*.reference_losses',
    'callbacks.*.pruned',
    'callbacks.*.law',
    'callbacks.*.source',
    'callbacks.*.load_path',
    'callbacks.*.workspace_dir',
    'loggers.metrics_file.path',
    'loggers.mlflow.*uri',
    'loggers.tensorboard.log_dir',
    'loggers.wandb.init_kwargs.dir',
    'profiler.*folder',
)
TEXTS = ('*prompt*', '*delimiter*')  # which may begin with anything
ADDRESSES = ('*save_folder', '*load_path', '*remote_file_name')  # which Composer takes apart as a URL, local ones too
TAKEN_AS_THEY_STAND = (
    'callbacks.export_pruned.folder',
    'callbacks.run_report.folder',
    'callbacks.*.weights_file',
    'loggers.metrics_file.path',
)
FIELDS = (
    'run_name', 'rank', 'local_rank', 'world_size', 'local_world_size', 'node_rank', 'epoch', 'batch',
    'batch_in_epoch', 'sample', 'sample_in_epoch', 'token', 'token_in_epoch', 'total_wct', 'epoch_wct', 'batch_wct',
)  # fmt: skip
# Known before the first batch; a folder and the link to the last checkpoint have no time in their names.
FIELDS_OF_PROCESS = FIELDS[:6]
# What no two checkpoints of a run have in common: one of these fields, or an epoch and one that counts within it.
COUNTS_ON = {'batch', 'sample', 'token', 'total_wct'}
COUNTS_WITHIN = {'batch_in_epoch', 'sample_in_epoch', 'token_in_epoch', 'epoch_wct'}


def expand_paths(config: dict[str, Any]) -> None:
    """Replaces ``~`` and environment variables in every path of a configuration, in place.

    Raises:
        ValueError: For a variable that is not set, an unknown user, or a home folder where no path of ours is.
    """
    for parent, key, place, shown in walk(config):
        value = parent[key]
        if not isinstance(value, str):
            continue
        if _is_among(place, PATHS):
            parent[key] = expand_path(place, value)
        elif (value == '~' or value.startswith('~/')) and _is_among(place, ('*',)) and not _is_among(place, TEXTS):
            raise ValueError(
                f'{shown}: {value!r} would be taken with its ~, and not as your home folder; write the whole path.'
            )


def _is_among(place: str, patterns: tuple[str, ...]) -> bool:
    is_setting = place.partition('.')[0] not in ('variables', 'metadata')
    return is_setting and any(fnmatchcase(place, pattern) for pattern in patterns)


def check_names(config: Mapping[str, Any]) -> None:
    """Checks the templates of the names of folders and checkpoints.

    Raises:
        ValueError: For a field that does not exist, a path of which Composer takes a part, a name that leads out of
            its folder, or one that the next checkpoint has as well where old ones are deleted.
    """
    for key, fields in (('save_filename', FIELDS), ('save_latest_filename', FIELDS_OF_PROCESS)):
        if config.get(key) is not None:
            _check_template(key, config[key], fields)
            _check_inside(key, config[key], 'save_folder')
    _check_one_name_each(config)
    if '..' in PurePosixPath(str(config.get('run_name') or '')).parts:
        raise ValueError(
            f'run_name: {config["run_name"]!r} leads out of the folders that are named by it; leave out "..".'
        )
    if config.get('save_folder') is not None:
        if not config['save_folder'].strip():
            raise ValueError(f'save_folder: expected a folder, got {config["save_folder"]!r}; leave it out for none.')
        _check_template('save_folder', config['save_folder'], FIELDS_OF_PROCESS)
    for entry in walk(config):
        if _is_among(entry.place, ADDRESSES):
            _check_address(entry.place, str(entry.value))
        if _is_among(entry.place, TAKEN_AS_THEY_STAND) and '{' in str(entry.value):
            raise ValueError(
                f'{entry.place}: {entry.value!r} would be a name with braces: fields are filled in for save_folder and '
                'names of checkpoints alone. Write what you mean, or ${run_name}.'
            )
    checkpointer = (config.get('callbacks') or {}).get('hf_checkpointer') or {}
    name = checkpointer.get('huggingface_folder_name')
    if name is not None:
        _check_template('callbacks.hf_checkpointer.huggingface_folder_name', name, FIELDS)
        _check_inside('callbacks.hf_checkpointer.huggingface_folder_name', name, 'its save_folder')


def _check_address(key: str, address: str) -> None:
    parts = urlparse(address)
    if parts.params or parts.query or parts.fragment:
        raise ValueError(
            f'{key}: of {address!r} Composer would take {parts.path!r} alone, as in a URL; choose a path without '
            '"#", "?" and ";".'
        )


def _check_template(key: str, template: str, fields: tuple[str, ...]) -> None:
    try:
        found = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(f'{key}: {template!r} is no name with fields in braces ({error}).') from error
    for field in found:
        if field not in fields:
            raise ValueError(
                f'{key}: {template!r} has the unknown field {field!r}.{did_you_mean(field, fields)} '
                f'Possible: {", ".join(fields)}.'
            )


def _check_one_name_each(config: Mapping[str, Any]) -> None:
    """Refuses names by which Composer, deleting an old checkpoint, deletes the one that took its name."""
    name, kept = config.get('save_filename'), config.get('save_num_checkpoints_to_keep') or -1
    if name is None or not config.get('save_folder') or kept < 1:
        return
    if is_sharded(config):  # such checkpoints are named by a folder's template
        return
    fields = {field for _, field, _, _ in string.Formatter().parse(name)}
    if not (fields & COUNTS_ON or ('epoch' in fields and fields & COUNTS_WITHIN)):
        path = PurePosixPath(name)
        better = path.with_name(f'{path.stem}-ba{{batch}}{path.suffix}')
        raise ValueError(
            f'save_filename: {name!r} is the name of more than one checkpoint, and save_num_checkpoints_to_keep: '
            f'{kept} would delete the newest as an old one. Write {str(better)!r}, or keep all names apart by another '
            f'of {", ".join(sorted(COUNTS_ON))}; or set save_num_checkpoints_to_keep: -1.'
        )


def _check_inside(key: str, name: str, folder: str) -> None:
    parts = PurePosixPath(name).parts
    if '://' not in name and (Path(name).is_absolute() or '..' in parts or not parts):
        raise ValueError(f'{key}: {name!r} leads out of {folder}; give a name in it.')
