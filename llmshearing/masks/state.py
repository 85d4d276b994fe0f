"""What a pruning run knows of its masks: the one place that says which masks are final, and how they are saved.

:class:`PruningState` is the part of the algorithm that needs no training. ``targeted_pruning`` is one while it runs;
:func:`read_pruning_state` makes one of what a checkpoint holds. So an export from a checkpoint and the export at the
end of a run ask the same object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.masks.axes import AxisPlan, plan_axes
from llmshearing.masks.axis_reports import AxisReport, axis_reports, unconverged
from llmshearing.masks.learner import MaskLearner, learner_class
from llmshearing.masks.sparsity_target import NOT_EXPORTABLE, SparsityTarget, plan_open_axes
from llmshearing.models.families import family_of
from llmshearing.models.gains import stream_norms
from llmshearing.models.shapes import ModelShape, shape_of

__all__ = [
    'KIND',
    'STATE_VERSION',
    'PruningState',
    'find_pruning_state',
    'plan_masks',
    'read_pruning_state',
    'refuse_open_widths',
    'refuse_unconverged',
]

KIND = 'llmshearing.pruning'  # what a state is, whatever the class that saved it is called
STATE_VERSION = 2  # 2: progressive masks note when each unit was told to go
STATE_KEYS = {'version', 'source', 'target', 'learner'}  # of the states that were saved before they had a kind
IDENTITY = ('version', 'source', 'target', 'mask_learning')  # a run takes no state that differs in these


class PruningState:
    """The masks of a run. Source, target and learner are there once the run has a model; reading them before raises.

    Attributes:
        mask_learning (str): How they are learned.
        source (ModelShape): Shape of the source.
        target (ModelShape | SparsityTarget): Shape to reach, or how much goes.
        plans (dict[str, AxisPlan]): The pruned axes.
        learner (MaskLearner): Masks as learned so far.
        frozen_masks (dict[str, Tensor] | None): The final masks, once they are fixed.
        norm_energies (Tensor | None): float32 [norms, hidden], measured before the first batch. Whoever cuts by these
            masks passes them to :class:`~llmshearing.models.cutting.CutPlan`, or sets them on the
            :class:`~llmshearing.models.cuttable.Cutter`: gains of norms follow hidden dimensions that go. None in
            runs and checkpoints without; gains then stay as they are.
        origin (tuple[str, dict[str, str]] | None): Name of the source and its small files
            (:func:`~llmshearing.models.source_files.read_source_files`), for exports where the source is not.
    """

    source: ModelShape
    target: ModelShape | SparsityTarget
    learner: MaskLearner

    def __init__(self, mask_learning: str):
        self.mask_learning = mask_learning
        self.plans: dict[str, AxisPlan] = {}
        self.frozen_masks: dict[str, Tensor] | None = None
        self.norm_energies: Tensor | None = None
        self.origin: tuple[str, dict[str, str]] | None = None

    @property
    def has_open_widths(self) -> bool:
        """Whether the target is a sparsity alone, so that every layer finds its own widths."""
        return isinstance(self.target, SparsityTarget)

    def reports(self) -> list[AxisReport]:
        """Target, expected and hard counts of every pruned axis."""
        return axis_reports(self.plans, self.learner.expected_kept(), self.learner.hard_counts())

    def final_masks(self) -> dict[str, Tensor]:
        """Masks that keep exactly the target's units; where widths are open, the expected number of each row."""
        return self._masks('expected' if self.has_open_widths else 'target')

    def current_masks(self) -> dict[str, Tensor]:
        """Masks as they are now: each row keeps its expected number of units."""
        return self._masks('expected')

    def state_dict(self) -> dict[str, Any]:
        """Small, of plain types and tensors; ``kind`` says what it is."""
        state: dict[str, Any] = {'kind': KIND, 'version': STATE_VERSION}
        if hasattr(self, 'learner'):
            state |= {
                'source': self.source.as_dict(),
                'target': self.target.as_dict(),
                'mask_learning': self.mask_learning,
                'learner': self.learner.state_dict(),
                'frozen_masks': self.frozen_masks,
                'norm_energies': self.norm_energies,
                'origin': self.origin,
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the masks.

        Raises:
            ValueError: If the state was saved by another version, for another source, target or way of learning masks.
        """
        own = self.state_dict()
        differing = [key for key in IDENTITY if own.get(key) != state.get(key)]
        if differing:
            listed = '\n'.join(f'  - {key}: checkpoint {state.get(key)}, this run {own.get(key)}' for key in differing)
            raise ValueError(
                f'The checkpoint belongs to another pruning run; start anew or use its settings:\n{listed}'
            )
        self.learner.load_state_dict(state['learner'])
        self.frozen_masks = state['frozen_masks']
        self.norm_energies = state.get('norm_energies')

    def _masks(self, counts: str) -> dict[str, Tensor]:
        return self.learner.deterministic(counts) if self.frozen_masks is None else self.frozen_masks


def plan_masks(config: PretrainedConfig, target: ModelShape | SparsityTarget) -> dict[str, AxisPlan]:
    """The axes of a source to put masks on, and how many units of each row stay."""
    if isinstance(target, SparsityTarget):
        return plan_open_axes(shape_of(config), target)
    layer_types = family_of(config).layer_types
    return plan_axes(shape_of(config), target, layer_types(config) if layer_types else None)


def find_pruning_state(algorithms: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state of pruning among the saved states of a run's algorithms by class name, None where there is none.

    It is known by what it says it is, never by the name of the class that saved it, which a user may have subclassed.

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
        state (Mapping[str, Any]): ``state_dict`` of the algorithm, tensors read.
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
    pruning = PruningState(state['mask_learning'])
    pruning.source, pruning.target, pruning.plans = source, target, plan_masks(config, target)
    pruning.learner = learner_class(pruning.mask_learning).restore(pruning.plans, state['learner'])
    pruning.frozen_masks, pruning.origin = state['frozen_masks'], state.get('origin')
    pruning.norm_energies = _read_energies(state.get('norm_energies'), config)
    return pruning


def _read_energies(energies: Tensor | None, config: PretrainedConfig) -> Tensor | None:
    source = shape_of(config)
    expected = (len(stream_norms(family_of(config), source.num_hidden_layers)), source.hidden_size)
    if energies is not None and tuple(energies.shape) != expected:
        raise ValueError(f"the checkpoint's norm_energies: got shape {tuple(energies.shape)}, expected {expected}.")
    return energies


def refuse_open_widths(pruning: PruningState) -> None:
    """Raises a ValueError if the target is a sparsity alone: no stock config describes what such masks leave."""
    if isinstance(pruning.target, SparsityTarget):
        raise ValueError(
            f'target: {pruning.target.describe()}: {NOT_EXPORTABLE} To study the masks, export with --masks keep.'
        )


def refuse_unconverged(pruning: PruningState, tolerance: float, allow: bool, remedy: str) -> list[AxisReport]:
    """Raises a ValueError if expected counts are further from the target than ``tolerance`` and that is not allowed.

    Args:
        pruning (PruningState): The masks; frozen ones are the target's whatever was expected.
        tolerance (float): Fraction of the target's units per row, of which half a unit is allowed at least.
        allow (bool): Raise nothing.
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
