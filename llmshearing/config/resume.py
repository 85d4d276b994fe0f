"""What a run must satisfy to survive and to be resumed, checked with the rest of its configuration before anything is
built.

Composer finds the checkpoint to resume from by a link (``latest-rank0.pt``) that it replaces in two steps after every
save. A run that is killed between them has checkpoints and no link, and ``autoresume`` would begin at batch 0 without a
word. The other checks are of combinations that end in an assertion or a hanging rank deep inside a library.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmshearing.checkpoints.validation import is_whole

__all__ = ['check_resume']

log = logging.getLogger(__name__)

LATEST, LATEST_SHARDED = 'latest-rank{rank}.pt', 'latest-sharded-rank{rank}'  # llm-foundry's defaults


def check_resume(config: Mapping[str, Any]) -> None:
    """Checks what a run would resume from, its sharding and its initialisation.

    Args:
        config (Mapping[str, Any]): A whole llm-foundry training configuration.

    Raises:
        ValueError: For what cannot work, with the remedy.
    """
    fsdp = config.get('fsdp_config')
    if fsdp:
        _check_fsdp()
    _check_meta(config.get('model') or {})
    if config.get('autoresume'):
        _check_link(config, fsdp or {})


def _check_fsdp() -> None:
    version = os.environ.setdefault('FSDP_VERSION', '2')
    if torch.cuda.is_available():
        return
    if version != '2':
        raise ValueError(
            f'fsdp_config with FSDP_VERSION={version}: FSDP1 cannot start on CPU; unset FSDP_VERSION or set it to 2.'
        )
    if int(os.environ.get('WORLD_SIZE', '1')) > 1:
        log.warning(
            'FSDP2 on CPU: gloo adds gradients up where FSDP2 asks for their average (torch 2.7), so they are %s times '
            'too large. AdamW does not notice, gradient clipping does. For numbers that count train on GPUs, or on CPU '
            'without fsdp_config.',
            os.environ['WORLD_SIZE'],
        )


def _check_meta(model: Mapping[str, Any]) -> None:
    if model.get('init_device') != 'meta':
        return
    if model.get('pretrained', True):
        raise ValueError(
            'model.init_device: meta leaves the weights to be initialised, but this model is pretrained. Use mixed: '
            'rank 0 reads the weights, the other ranks take their share from it.'
        )
    if not torch.cuda.is_available():
        raise ValueError(
            'model.init_device: meta initialises weights on GPUs (Composer), and there is none here; use mixed or cpu.'
        )


def _check_link(config: Mapping[str, Any], fsdp: Mapping[str, Any]) -> None:
    folder = config.get('save_folder')
    if not isinstance(folder, str) or '://' in folder:
        return
    folder = folder.replace('{run_name}', str(config.get('run_name') or os.environ.get('RUN_NAME')))
    if '{' in folder or not Path(folder).is_dir():
        return
    folder = Path(folder)
    default = LATEST_SHARDED if fsdp.get('state_dict_type') == 'sharded' else LATEST
    latest = folder / (config.get('save_latest_filename') or default).replace('{rank}', '0')
    if latest.exists():
        return
    if os.path.lexists(latest):
        raise ValueError(
            f'autoresume: {latest} points to {os.readlink(latest)}, which is not there. Point it to a checkpoint that '
            'is (ln -sfn), or remove it to begin anew.'
        )
    found = [*folder.glob('*.pt'), *(path.parent for path in folder.glob('*/.metadata'))]  # written last of its folder
    saved = sorted(found, key=lambda path: path.stat().st_mtime)
    whole = next((path for path in reversed(saved) if path.is_dir() or is_whole(path)), None)
    if whole is not None:
        cut_off = '' if whole == saved[-1] else f'; {saved[-1].name} is newer, but cut off'
        raise ValueError(
            f'autoresume: {folder} holds checkpoints ({whole.name} is the newest{cut_off}) but not the link '
            f'{latest.name} to the last one, so training would begin anew. To go on: ln -s {whole.name} {latest}; to '
            'begin anew choose another save_folder or empty it.'
        )
    if saved:
        raise ValueError(
            f'autoresume: {folder} holds no whole checkpoint: {saved[-1].name} was cut off while it was written, and '
            'there is no other. Nothing can be resumed; empty the folder to begin anew.'
        )
