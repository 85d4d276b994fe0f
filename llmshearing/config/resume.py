"""What a run would resume from, checked with the rest of its configuration before anything is built.

Composer finds the checkpoint to resume from by a link (``latest-rank0.pt``) that it replaces in two steps after every
save. A run that is killed between them has checkpoints and no link, and ``autoresume`` would begin at batch 0 without a
word.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.checkpoints.validation import is_whole

__all__ = ['check_resume']

LATEST, LATEST_SHARDED = 'latest-rank{rank}.pt', 'latest-sharded-rank{rank}'  # llm-foundry's defaults


def check_resume(config: Mapping[str, Any]) -> None:
    """Checks what a run would resume from.

    Args:
        config (Mapping[str, Any]): A whole llm-foundry training configuration.

    Raises:
        ValueError: For what cannot work, with the remedy.
    """
    if config.get('autoresume'):
        _check_link(config, config.get('fsdp_config') or {})


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
