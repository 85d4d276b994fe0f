"""``optimizer.disable_grad`` and ``optimizer.param_groups``: weights chosen by patterns of their names.

llm-foundry searches for the patterns and takes what it finds, so one that is misspelt freezes nothing, or gives its
rate to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmshearing.config.parts import constructor_of
from llmshearing.utils.settings import check_keys

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['check_chosen_weights']


def _group(param_str_match: str) -> None:
    """What llm-foundry reads of a group beside the optimizer's settings."""


def check_chosen_weights(optimizer: Mapping[str, Any], source: PretrainedConfig) -> None:
    """Checks the patterns against the names of the model's weights, and the settings of groups.

    Args:
        optimizer (Mapping[str, Any]): The section, whose keys have been checked.
        source (PretrainedConfig): Config of the model.

    Raises:
        ValueError: For a pattern that chooses no weight, patterns that freeze all, and what no optimizer is told.
    """
    from llmshearing.checkpoints.parameter_shapes import parameter_shapes

    frozen, groups = optimizer.get('disable_grad') or [], optimizer.get('param_groups') or []
    if not frozen and not groups:
        return
    names = [f'model.{name}' for name in parameter_shapes(source).shapes]
    frozen = [frozen] if isinstance(frozen, str) else frozen
    if not isinstance(frozen, Sequence) or not isinstance(groups, Sequence) or isinstance(groups, str):
        raise ValueError('optimizer: expected a list of patterns as disable_grad, and of groups as param_groups.')
    gone = {name for pattern in frozen for name in _chosen('optimizer.disable_grad', pattern, names)}
    if len(gone) == len(names):
        raise ValueError(
            f'optimizer.disable_grad: {list(frozen)} freezes every weight; freeze fewer, or set '
            'algorithms.targeted_pruning.freeze_weights: true to train masks alone.'
        )
    constructor = constructor_of('optimizer.name', optimizer['name'], 'optimizers')
    for number, group in enumerate(groups):
        where = f'optimizer.param_groups[{number}]'
        check_keys(where, group, _group, constructor, given=('params',))
        _chosen(f'{where}.param_str_match', group['param_str_match'], names)


def _chosen(where: str, pattern: Any, names: Sequence[str]) -> list[str]:
    try:
        found = [name for name in names if re.search(pattern, name)]
    except (re.error, TypeError) as error:
        raise ValueError(f'{where}: expected a regular expression, got {pattern!r} ({error}).') from error
    if not found:
        raise ValueError(
            f'{where}: {pattern!r} is in no name of a weight, so nothing would come of it. Names are such as '
            f'{names[len(names) // 2]}.'
        )
    return found
