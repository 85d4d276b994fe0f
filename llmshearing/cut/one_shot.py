"""The cut itself, on a model in memory: score, choose, compensate.

It is what ``targeted_pruning`` with ``mask_learning: one_shot`` does around its first batch when that batch teaches the
weights nothing, by the same learner, scores and compensation, and it gives the same masks and weights to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from llmshearing.cut.memory import layers_by_pass
from llmshearing.masks.compensation import TOKENS, Compensation
from llmshearing.masks.energies import norm_energies
from llmshearing.masks.learner import LearnerSettings, build_learner
from llmshearing.masks.scores import Calibration, method_by_axis, score_units
from llmshearing.masks.state import PruningState, plan_masks
from llmshearing.models.shapes import ModelShape
from llmshearing.models.units import kept_units

__all__ = ['Measured', 'choose_in_one_shot', 'compensate_for', 'measure_units', 'prune_in_one_shot']


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
    calibration: Calibration, target: ModelShape, scores: str | Mapping[str, str], compensate: bool = True
) -> PruningState:
    """Chooses the target's units of a model and sets the masks; with ``compensate``, changes its weights for them.

    Args:
        calibration (Calibration): The model, in evaluation mode, and the batches that units are chosen by.
        target (ModelShape): Shape to cut to.
        scores (str | Mapping[str, str]): As for :func:`~llmshearing.masks.scores.method_by_axis`.
        compensate (bool): See :mod:`~llmshearing.masks.compensation`; over the calibration batches. Default: ``True``.

    Returns:
        PruningState: What was chosen and by what, for an export; the masks are set on ``calibration.cutter``.
    """
    methods = method_by_axis(scores, plan_masks(calibration.cutter.model.config, target))
    return choose_in_one_shot(calibration, target, measure_units(calibration, methods), compensate)


def measure_units(calibration: Calibration, methods: Mapping[str, str]) -> Measured:
    """Scores the units of a model that has no masks yet.

    Args:
        calibration (Calibration): The model and the batches to look at.
        methods (Mapping[str, str]): Method by axis, from :func:`~llmshearing.masks.scores.method_by_axis`.
    """
    scores = score_units(methods, calibration)
    return Measured(scores, norm_energies(calibration) if 'hidden' in methods else None)


def choose_in_one_shot(
    calibration: Calibration, target: ModelShape, measured: Measured, compensate: bool = True
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
        compensate_for(calibration, pruning.final_masks())
    cutter.set_masks(pruning.final_masks())
    return pruning


@torch.no_grad()
def compensate_for(calibration: Calibration, masks: Mapping[str, Tensor], merge_layers: bool = True) -> None:
    """Changes the weights so that the units that ``masks`` keep take over from the others.

    What is added up over the tokens is the square of a layer's widths, which of all layers is more than a large model.
    So a pass over the text sees to some layers, the last ones first: what the layers before them compute is still what
    the source computes, and the result is that of a single pass, to the bit.

    Args:
        calibration (Calibration): The model, and the batches that are looked at, up to
            :data:`~llmshearing.masks.compensation.TOKENS` tokens.
        masks (Mapping[str, Tensor]): Zeros and ones by axis; they are not set.
        merge_layers (bool): Also put what layers add that go into the MLPs before them. Default: ``True``.
    """
    cutter = calibration.cutter
    cutter.set_masks({axis: torch.ones_like(mask) for axis, mask in masks.items()})
    modules = list(cutter.family.modules(cutter.shape.num_hidden_layers))
    embedding = cutter.family.embedding_path
    paths = {path for path, _, layer in modules if layer is None} - {embedding}
    passes = list(layers_by_pass(cutter.shape, masks, list(kept_units(masks, cutter.shape).layers)))
    for number, layers in enumerate(passes):
        paths |= {path for path, _, layer in modules if layer in layers}
        if number == len(passes) - 1:  # no pass sees what it changes
            paths.add(embedding)
        _compensate(calibration, masks, merge_layers, paths)
        paths = set()
    cutter.set_masks(None)


def _compensate(
    calibration: Calibration, masks: Mapping[str, Tensor], merge_layers: bool, paths: Collection[str]
) -> None:
    """One pass over the text, which changes these modules."""
    watching = Compensation(calibration.cutter, masks, coming=masks if merge_layers else None, paths=paths)
    seen = 0
    try:
        for part, _ in calibration.passes():
            if seen >= TOKENS:
                break
            calibration.loss_of(part)
            seen += part['input_ids'].numel()
    finally:
        watching.stop()
    watching.apply(masks)
