"""What a pruning run knows about its masks, read from a checkpoint: the same answers that the running algorithm gives.

Export from a checkpoint and export at the end of a run share everything below; :class:`PruningState` stands in for the
algorithm where only its saved state is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.masks.axes import AxisPlan, plan_axes
from llmshearing.masks.lagrangian import LagrangianMasks
from llmshearing.masks.learner import AxisReport, MaskLearner, axis_reports, unconverged
from llmshearing.masks.progressive import ProgressiveMasks
from llmshearing.masks.sparsity_target import NOT_EXPORTABLE, SparsityTarget, plan_open_axes
from llmshearing.models.families import family_of
from llmshearing.models.shapes import ModelShape, shape_of

__all__ = [
    'KIND',
    'STATE_VERSION',
    'LearnedMasks',
    'PruningState',
    'find_pruning_state',
    'read_pruning_state',
    'refuse_open_widths',
    'refuse_unconverged',
]

KIND = 'llmshearing.pruning'  # what a state is, whatever the class that saved it is called
STATE_VERSION = 2  # 2: progressive masks note when each unit was told to go
STATE_KEYS = {'version', 'source', 'target', 'learner'}  # of the states that were saved before they had a kind


class LearnedMasks(Protocol):
    """What export needs to know of masks: :class:`TargetedPruning` and :class:`PruningState` both offer it."""

    source: ModelShape
    target: ModelShape | SparsityTarget
    mask_learning: str
    learner: MaskLearner
    frozen_masks: dict[str, Tensor] | None

    def reports(self) -> list[AxisReport]: ...

    def final_masks(self) -> dict[str, Tensor]: ...


@dataclasses.dataclass
class PruningState:
    """The masks of a checkpoint.

    Attributes:
        source (ModelShape): Shape of the source.
        target (ModelShape | SparsityTarget): Shape to reach, or how much goes.
        mask_learning (str): How they are learned.
        plans (dict[str, AxisPlan]): The pruned axes.
        learner (MaskLearner): Masks as learned so far.
        frozen_masks (dict[str, Tensor] | None): The final masks, where they were fixed already.
    """

    source: ModelShape
    target: ModelShape | SparsityTarget
    mask_learning: str
    plans: dict[str, AxisPlan]
    learner: MaskLearner
    frozen_masks: dict[str, Tensor] | None

    def reports(self) -> list[AxisReport]:
        """Target, expected and hard counts of every pruned axis."""
        return axis_reports(self.plans, self.learner.kept(), self.learner.hard_counts())

    def final_masks(self) -> dict[str, Tensor]:
        """Masks that keep exactly the target's units; where widths are open, the expected number of each row."""
        if isinstance(self.target, SparsityTarget):
            return self.current_masks()
        return self.learner.deterministic('target') if self.frozen_masks is None else self.frozen_masks

    def current_masks(self) -> dict[str, Tensor]:
        """Masks as they are now: each row keeps its expected number of units."""
        return self.learner.deterministic('expected') if self.frozen_masks is None else self.frozen_masks


def find_pruning_state(algorithms: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state of pruning among the saved states of a run's algorithms, None where there is none.

    It is known by what it says it is, never by the name of the class that saved it, which a user may have subclassed.

    Args:
        algorithms (Mapping[str, Any]): Saved states by class name.

    Raises:
        ValueError: If there is more than one.
    """
    found = {
        name: state
        for name, state in algorithms.items()
        if isinstance(state, Mapping) and (state.get('kind') == KIND or set(state) >= STATE_KEYS)
    }
    if len(found) > 1:
        raise ValueError(
            f'the checkpoint holds the masks of {len(found)} algorithms ({", ".join(found)}); expected one.'
        )
    return next(iter(found.values()), None)


def read_pruning_state(state: Mapping[str, Any], config: PretrainedConfig) -> PruningState:
    """Rebuilds the masks from the algorithm's saved state.

    Args:
        state (Mapping[str, Any]): ``state_dict`` of :class:`TargetedPruning`, tensors read.
        config (PretrainedConfig): The source's config, from the same checkpoint.

    Raises:
        ValueError: If the state is of another version, was saved before the run knew its model, or does not
            belong to the config.
    """
    version = state.get('version')
    if version != STATE_VERSION or 'learner' not in state:
        raise ValueError(
            f"the checkpoint's masks are of version {version} with {', '.join(map(str, state)) or 'nothing'}; "
            f'this release reads version {STATE_VERSION} of a run that has started. Use the release that wrote it.'
        )
    source = ModelShape(**state['source'])
    target = SparsityTarget(**state['target']) if 'sparsity' in state['target'] else ModelShape(**state['target'])
    if source != shape_of(config):
        raise ValueError(
            f"the masks belong to a source of shape {source}, the checkpoint's config has {shape_of(config)}."
        )
    family = family_of(config)
    if isinstance(target, SparsityTarget):
        plans = plan_open_axes(source, target)
    else:
        plans = plan_axes(source, target, family.layer_types(config) if family.layer_types else None)
    learned, saved = state['mask_learning'], state['learner']
    scores = saved.get('log_alpha' if learned == 'lagrangian' else 'importance', {})
    for axis, plan in plans.items():
        if axis not in scores or tuple(scores[axis].shape) != plan.mask_shape:
            got = f'shape {tuple(scores[axis].shape)}' if axis in scores else 'none'
            raise ValueError(f"the checkpoint's {axis} mask: got {got}, expected shape {plan.mask_shape}.")
    # Rates, noise and optimizer do not matter any more: nothing is drawn or stepped.
    if learned == 'lagrangian':
        learner: MaskLearner = LagrangianMasks(
            plans, learning_rate=0.0, multiplier_learning_rate=0.0, damping=0.0, start_sparsity=0.0, seed=0
        )
        learner.log_alpha = {axis: scores[axis] for axis in plans}
    else:
        learner = ProgressiveMasks(plans, start_sparsity=0.0, seed=0, fade=saved['fade'])
        learner.load_state_dict(saved)
    return PruningState(source, target, learned, plans, learner, state['frozen_masks'])


def refuse_open_widths(pruning: LearnedMasks) -> None:
    """Raises a ValueError if the target is a sparsity alone: no stock config describes what such masks leave."""
    if isinstance(pruning.target, SparsityTarget):
        raise ValueError(
            f'target: {pruning.target.describe()}: {NOT_EXPORTABLE} To study the masks, export with --masks keep.'
        )


def refuse_unconverged(pruning: LearnedMasks, tolerance: float, allow: bool, remedy: str) -> list[AxisReport]:
    """Raises a ValueError if expected counts are further from the target than ``tolerance`` and that is not allowed.

    Args:
        remedy (str): What the user can do; ends the message.

    Returns:
        list[AxisReport]: The axes that are so far away nevertheless, for the model card.
    """
    away = unconverged(pruning.reports(), tolerance)
    if away and not allow and pruning.frozen_masks is None:
        listed = '\n'.join(f'  - {report.describe()}' for report in away)
        raise ValueError(
            f'The masks have not converged to the target within {tolerance:.0%}; '
            f'nothing was exported:\n{listed}\n{remedy}'
        )
    return away
