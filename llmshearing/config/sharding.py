"""``fsdp_config`` and where the model is initialised: what ends in an assertion or a hanging rank inside a library."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from llmshearing.compat.versions import GLOO_AVERAGES
from llmshearing.config.parts import pruning_name
from llmshearing.utils.checks import check_one_of
from llmshearing.utils.settings import check_keys
from llmshearing.utils.suggestions import refuse_unknown

__all__ = ['check_sharding', 'is_sharded']

log = logging.getLogger(__name__)

MIXED_PRECISION = ('param_dtype', 'reduce_dtype', 'buffer_dtype')


def is_sharded(config: Mapping[str, Any]) -> bool:
    """Whether a run reads and writes sharded checkpoints, whatever is wrong with its configuration."""
    fsdp = config.get('fsdp_config')
    return isinstance(fsdp, Mapping) and fsdp.get('state_dict_type') == 'sharded'


def check_sharding(config: Mapping[str, Any]) -> None:
    """Checks ``fsdp_config`` and ``model.init_device`` against the machine and against each other.

    Raises:
        ValueError: For what cannot work, with the remedy.
    """
    fsdp, ranks = config.get('fsdp_config'), int(os.environ.get('WORLD_SIZE', '1'))
    if fsdp:
        _check_settings(fsdp)
        _check_version(pruning_name(config) is not None)
        _tell_sums_of_gradients(ranks)
    if 'mono_checkpoint_saver' in (config.get('callbacks') or {}) and not (fsdp and _version() == '1'):
        raise ValueError(
            'callbacks.mono_checkpoint_saver needs FSDP1, and fails at its first checkpoint without; remove it and set '
            'save_folder and, with fsdp_config, fsdp_config.state_dict_type: full.'
        )
    _check_init_device(config['model'], bool(fsdp))


def _version() -> str:
    return os.environ.get('FSDP_VERSION', '2')


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Keys of FSDP2 have their types; those of FSDP1 pass, since Composer warns of them and ignores them."""
    from composer.utils.parallelism import FSDP2Config, FSDPConfig

    precision = settings.get('mixed_precision')
    by_part = isinstance(precision, Mapping)  # Composer takes that, too
    others = {key: value for key, value in settings.items() if key != 'mixed_precision' or not by_part}
    check_keys('fsdp_config', others, FSDP2Config, FSDPConfig, more=('load_planner', 'save_planner'))
    if by_part:
        refuse_unknown('fsdp_config.mixed_precision', precision, MIXED_PRECISION)
    check_one_of('fsdp_config.state_dict_type', settings.get('state_dict_type', 'full'), ('full', 'sharded'))
    if isinstance(precision, str):
        check_one_of('fsdp_config.mixed_precision', precision, ('DEFAULT', 'PURE', 'FULL'))


def _check_version(is_pruning: bool) -> None:
    reasons = [] if torch.cuda.is_available() else ['FSDP1 cannot start on CPU']
    if is_pruning:
        reasons.append('pruning is built for FSDP2 (FSDP1 flattens the parameters that masks cut)')
    version = _version()
    if version != '2' and reasons:
        raise ValueError(
            f'fsdp_config with FSDP_VERSION={version}: {", and ".join(reasons)}; unset FSDP_VERSION or set it to 2.'
        )


def _tell_sums_of_gradients(ranks: int) -> None:
    if ranks > 1 and not GLOO_AVERAGES and not torch.cuda.is_available():
        log.warning(
            'FSDP2 on CPU: gloo adds gradients up where FSDP2 asks for their average (torch before 2.14), so they '
            'are %s times too large. AdamW does not notice, gradient clipping does. For numbers that count train on '
            'GPUs, or on CPU without fsdp_config.',
            ranks,
        )


def _check_init_device(model: Mapping[str, Any], sharded: bool) -> None:
    device = model.get('init_device', 'cpu')
    check_one_of('model.init_device', device, ('cpu', 'mixed', 'meta'))
    if device == 'mixed' and not sharded:
        raise ValueError(
            'model.init_device: mixed needs fsdp_config, which shares the weights out; without it use cpu.'
        )
    if device != 'meta':
        return
    if model.get('pretrained', True):
        raise ValueError(
            'model.init_device: meta leaves the weights to be initialised, but this model is pretrained. '
            'With fsdp_config use mixed: rank 0 reads the weights, the other ranks take their share from it. Without '
            'use cpu.'
        )
    if not torch.cuda.is_available():
        raise ValueError(
            'model.init_device: meta initialises weights on GPUs (Composer), and there is none here; use cpu.'
        )
