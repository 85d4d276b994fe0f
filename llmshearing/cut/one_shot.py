"""The cut itself, on a model in memory: score, choose, compensate.

It is what ``targeted_pruning`` with ``mask_learning: one_shot`` does around its first batch when that batch teaches the
weights nothing, by the same learner, scores and compensation, and it gives the same masks and weights to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from llmshearing.masks.energies import norm_energies
from llmshearing.masks.in_order import compensate_in_order
from llmshearing.masks.learner import LearnerSettings, build_learner
from llmshearing.masks.scores import Calibration, method_by_axis, score_units
from llmshearing.masks.state import PruningState, plan_masks
from llmshearing.models.shapes import ModelShape

__all__ = ['Measured', 'choose_in_one_shot', 'measure_units', 'prune_in_one_shot']


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is measured of a source once, whatever it is cut to.

    Attributes:
        scores (dict[str, Tensor]): Mask-shaped scores by axis.
        energies (Tensor | None): :func:`~llmshearing.masks.energies.norm_energies`; None where no hidden units go.
    """

    scores: dict[str, Tensor]
    energies: Tensor | None


def prune_in_one_shot(
    calibration: Calibration,
    target: ModelShape,
    scores: str | Mapping[str, str],
    compensate: bool = True,
    layer_done: Callable[[], object] = lambda: None,
) -> PruningState:
    """Chooses the target's units of a model and sets the masks; with ``compensate``, changes its weights for them.

    Args:
        calibration (Calibration): The model, in evaluation mode, and the batches that units are chosen by.
        target (ModelShape): Shape to cut to.
        scores (str | Mapping[str, str]): As for :func:`~llmshearing.masks.scores.method_by_axis`.
        compensate (bool): See :mod:`~llmshearing.masks.in_order`; over the calibration batches. Default: ``True``.
        layer_done (Callable): Called for every layer that is compensated. Default: nothing.

    Returns:
        PruningState: What was chosen and by what, for an export; the masks are set on ``calibration.cutter``.
    """
    methods = method_by_axis(scores, plan_masks(calibration.cutter.model.config, target))
    return choose_in_one_shot(calibration, target, measure_units(calibration, methods), compensate, layer_done)


def measure_units(calibration: Calibration, methods: Mapping[str, str]) -> Measured:
    """Scores the units of a model that has no masks yet.

    Args:
        calibration (Calibration): The model and the batches to look at.
        methods (Mapping[str, str]): Method by axis, from :func:`~llmshearing.masks.scores.method_by_axis`.
    """
    scores = score_units(methods, calibration)
    return Measured(scores, norm_energies(calibration) if 'hidden' in methods else None)


def choose_in_one_shot(
    calibration: Calibration,
    target: ModelShape,
    measured: Measured,
    compensate: bool = True,
    layer_done: Callable[[], object] = lambda: None,
) -> PruningState:
    """As :func:`prune_in_one_shot`, of a source that has been measured along all axes that the target cuts."""
    cutter, pruning = calibration.cutter, PruningState('one_shot')
    pruning.source, pruning.target = cutter.shape, target
    pruning.plans = plan_masks(cutter.model.config, target)
    settings = LearnerSettings(seed=calibration.seed)
    pruning.learner = build_learner(pruning.mask_learning, pruning.plans, settings)
    pruning.learner.start_from({axis: measured.scores[axis] for axis in pruning.plans})
    if 'hidden' in pruning.plans:
        pruning.norm_energies = measured.energies
    cutter.norm_energies = pruning.norm_energies
    if compensate:
        compensate_in_order(calibration, pruning.final_masks(), layer_done=layer_done)
    cutter.set_masks(pruning.final_masks())
    return pruning
