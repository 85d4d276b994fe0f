"""What a run would resume from, checked with the rest of its configuration before anything is built.

Composer finds the checkpoint to resume from by a link (``latest-rank0.pt``) that it replaces in two steps after every
save. A run that is killed between them has checkpoints and no link, and ``autoresume`` would begin at batch 0 without a
word.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmshearing.checkpoints.validation import is_whole
from llmshearing.config.parts import pruning_name
from llmshearing.config.sharding import is_sharded

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['check_fits', 'check_resume', 'check_stage', 'leaves_masks_out', 'resume_source']

log = logging.getLogger(__name__)

WEIGHTS = 'state/model'  # in a checkpoint
LATEST, LATEST_SHARDED = 'latest-rank{rank}.pt', 'latest-sharded-rank{rank}'  # llm-foundry's defaults


def check_resume(config: Mapping[str, Any]) -> None:
    """Checks what a run would resume from.

    Raises:
        ValueError: For what cannot work, with the remedy.
    """
    if config.get('autoresume') and config.get('save_weights_only'):
        raise ValueError(
            'autoresume: true goes on from whole checkpoints, and save_weights_only: true writes none: a stopped run '
            'would begin anew with its last weights. Set one of them to false.'
        )
    latest = _latest(config)
    if latest is not None and not config.get('load_path'):
        _check_link(latest, config)
    source, resumes = resume_source(config), latest is not None and latest.exists()
    path = config.get('load_path')
    if source is None and path is not None and '://' not in path and '{' not in path:
        raise ValueError(f'load_path: there is no {path}; name a checkpoint that is there, or leave it out to begin.')
    if resumes and path is not None and source != Path(path.replace('{rank}', '0')).resolve():
        log.warning(
            'load_path: %s is not read, as autoresume goes on from %s. To begin with it, choose another save_folder.',
            path,
            source,
        )
    if source is not None:
        _check_kind(source, config)
        weights_only = not resumes and bool(config.get('load_weights_only'))
        _check_masks(source, pruning_name(config) is not None, weights_only)
    if not resumes:  # else Composer ignores nothing
        _check_ignored('load_', source or config.get('load_path'), config, config)
    _check_loading_callback(config)


def check_fits(config: Mapping[str, Any], source: PretrainedConfig) -> None:
    """Checks that the weights in the checkpoint to go on from are those of the source's model.

    Args:
        config (Mapping[str, Any]): A whole llm-foundry training configuration.
        source (PretrainedConfig): Config of the source, with the run's overrides.

    Raises:
        ValueError: Naming the first tensor that is not there or has another shape; for a mixture of the other
            generation of transformers. What cannot be read is told by Composer's loading, with the newest checkpoint
            that can.
    """
    from llmshearing.checkpoints.checkpoint import weight_shapes
    from llmshearing.checkpoints.parameter_shapes import check_generation, parameter_shapes

    checkpoint = resume_source(config)
    patterns = config.get('load_ignore_keys') or ()
    if checkpoint is None or config['model'].get('peft_config') or _leaves_weights_out(patterns) is not None:
        return
    try:
        stored, expected = weight_shapes(checkpoint, source), parameter_shapes(source)
    except (ValueError, KeyError):  # KeyError: no causal language model
        return
    check_generation(checkpoint, stored, expected.shapes)
    names = {**expected.shapes, **stored}
    if not config.get('load_strict_model_weights', True):
        names = expected.shapes.keys() & stored.keys()
    for name in names:
        if name in expected.tied or any(fnmatchcase(f'{WEIGHTS}/model.{name}', one) for one in patterns):
            continue
        if stored.get(name) != expected.shapes.get(name):
            here, there = (list(shapes[name]) if name in shapes else 'none' for shapes in (expected.shapes, stored))
            raise ValueError(
                f'{checkpoint} holds another model than model.pretrained_model_name_or_path: {name} is {there} there '
                f'and {here} here. To go on, name the source that the run began with; to begin with this one, choose '
                'another save_folder and no load_path.'
            )


def resume_source(config: Mapping[str, Any]) -> Path | None:
    """The file or folder on this machine that a run would go on from, links followed; None where it begins anew."""
    latest = _latest(config)
    if latest is not None and latest.exists():
        return latest.resolve()
    path = config.get('load_path')
    return Path(path).resolve() if isinstance(path, str) and '://' not in path and Path(path).exists() else None


def _latest(config: Mapping[str, Any]) -> Path | None:
    """The link to the last checkpoint of a local ``save_folder`` that is there, of a run that resumes by it."""
    folder = config.get('save_folder')
    if not config.get('autoresume') or not isinstance(folder, str) or '://' in folder:
        return None
    folder = folder.replace('{run_name}', str(config.get('run_name') or os.environ.get('RUN_NAME')))
    if '{' in folder or not Path(folder).is_dir():
        return None
    default = LATEST_SHARDED if is_sharded(config) else LATEST
    return Path(folder) / (config.get('save_latest_filename') or default).replace('{rank}', '0')


def _check_kind(source: Path, config: Mapping[str, Any]) -> None:
    """One process goes on from a single file under any ``fsdp_config``; several only as it says."""
    if (source / 'config.json').is_file() or source.suffix == '.safetensors':
        raise ValueError(
            f'{source} is a model and no checkpoint of a run; name its folder as model.pretrained_model_name_or_path, '
            'and leave load_path out.'
        )
    several = int(os.environ.get('WORLD_SIZE', '1')) > 1
    if source.is_file() and is_sharded(config) and several:
        raise ValueError(
            f'{source} is a checkpoint in a single file, and fsdp_config.state_dict_type: sharded reads folders. Set '
            f'fsdp_config.state_dict_type: full load_path={source} autoresume: false.'
        )
    if source.is_dir() and not is_sharded(config):
        found = '' if (source / '.metadata').is_file() else ', or none'
        raise ValueError(
            f'{source} is a sharded checkpoint{found}, and this run reads single files. Set fsdp_config: '
            '{state_dict_type: sharded} (one process will do), or start from its weights alone: llmshearing export.'
        )


def _check_masks(source: Path, pruning: bool, weights_only: bool, where: str = '') -> None:
    from llmshearing.checkpoints.checkpoint import holds_masks

    try:
        masked = holds_masks(source)
    except (ValueError, OSError):  # told by Composer's loading, with the newest checkpoint that can be read
        return
    check_stage(source, masked, pruning, weights_only, where)


def _check_loading_callback(config: Mapping[str, Any]) -> None:
    """What Composer's own callback loads beside ``load_path`` is held against the run in the same way."""
    where, settings = 'callbacks.load_checkpoint.', (config.get('callbacks') or {}).get('load_checkpoint') or {}
    path = settings.get('load_path')
    if path is None:
        return
    if '://' not in path and Path(path).exists():
        _check_masks(
            Path(path).resolve(), pruning_name(config) is not None, bool(settings.get('load_weights_only')), where
        )
    _check_ignored(where, path, settings, config)


def _check_ignored(
    where: str, source: Path | str | None, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    key = f'{where}ignore_keys'
    patterns = settings.get(key.rpartition('.')[2])
    if source is None or settings.get('load_weights_only') or pruning_name(config) is None:
        return
    masks = leaves_masks_out(patterns, config)
    weights = _leaves_weights_out(patterns)
    if masks is not None or weights is not None:
        lost = 'the masks' if masks is not None else 'weights'
        why = 'units would never be scored anew' if masks is not None else 'its masks would cut those of the source'
        raise ValueError(
            f'{key}: {masks or weights!r} leaves {lost} of {source} out, and {why}. '
            'Remove it to go on; to begin pruning with the weights of another checkpoint, set load_weights_only: true.'
        )


def check_stage(source: Path | str, masked: bool, pruning: bool, weights_only: bool = False, where: str = '') -> None:
    """Masks and weights belong together: what was begun by pruning goes on as pruning, and nothing else does.

    Args:
        source (Path | str): The checkpoint, for the message.
        masked (bool): Whether it holds masks.
        pruning (bool): Whether the run prunes.
        weights_only (bool): Whether the run takes nothing but its weights. Default: ``False``.
        where (str): The section whose ``load_path`` it is, with its dot. Default: ``''``, the top level.

    Raises:
        ValueError: If the run and the checkpoint do not belong together.
    """
    if masked and not pruning:
        raise ValueError(
            f'{source} is a checkpoint of pruning, and this run has no algorithms.targeted_pruning: it would train the '
            f'uncut model. Export it (llmshearing export {source} --out FOLDER) and begin with '
            f'model.pretrained_model_name_or_path=FOLDER and no {where}load_path.'
        )
    if masked and weights_only:
        raise ValueError(
            f'{source} is a checkpoint of pruning, and {where}load_weights_only: true would leave its masks out. '
            f'Set it to false to go on, or begin anew from the source without {where}load_path.'
        )
    if pruning and not masked and not weights_only:
        raise ValueError(
            f'{source} is no checkpoint of pruning: units would never be scored, as that is done before batch 0. Set '
            f'{where}load_weights_only: true to begin pruning with its weights.'
        )


def _leaves_weights_out(patterns: Iterable[str] | None) -> str | None:
    return next((one for one in patterns or () if one.startswith(WEIGHTS) or fnmatchcase(WEIGHTS, one)), None)


def leaves_masks_out(patterns: Iterable[str] | None, config: Mapping[str, Any]) -> str | None:
    """The first of the patterns that Composer would ignore of a checkpoint by which the masks go; None without one.

    Args:
        patterns (Iterable[str] | None): Such as ``save_ignore_keys`` and ``load_ignore_keys``.
        config (Mapping[str, Any]): A whole llm-foundry training configuration.
    """
    from llmfoundry.registry import algorithms

    name = pruning_name(config)
    if name is None:
        return None
    # Composer keeps a list, whose entries it calls by number; by its name somebody means the same.
    own = (list(config['algorithms']).index(name), algorithms.get(name).__qualname__)
    paths = ['state', 'state/algorithms', *(f'state/algorithms/{entry}' for entry in own)]
    matching = (one for one in patterns or () if any(fnmatchcase(path, one) for path in paths))
    return next(matching, None)


def _check_link(latest: Path, config: Mapping[str, Any]) -> None:
    if latest.exists():
        return
    folder = latest.parent
    if os.path.lexists(latest):
        raise ValueError(
            f'autoresume: {latest} points to {os.readlink(latest)}, which is not there. Point it to a checkpoint that '
            'is (ln -sfn), or remove it to begin anew.'
        )
    found = [*folder.glob('*.pt'), *(path.parent for path in folder.glob('*/.metadata'))]  # written last of its folder
    saved = sorted(found, key=lambda path: path.stat().st_mtime)
    whole = next((path for path in reversed(saved) if path.is_dir() or is_whole(path)), None)
    if whole is not None and whole.is_dir() and not is_sharded(config):
        raise ValueError(
            f'autoresume: {whole} is a sharded checkpoint, and this run reads single files. Set fsdp_config: '
            '{state_dict_type: sharded} (one process will do), or choose another save_folder to begin anew.'
        )
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
