"""From kept units to a finished folder, without the checks that need a model.

Shared by the callback ``export_pruned`` and by ``llmshearing export``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.compat.transformers import dtype_of
from llmshearing.export.model_card import CardFacts, Training, write_model_card
from llmshearing.export.model_folder import Tokenizer, exported_config, shape_left, write_model_folder
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.masks.axes import plan_axes
from llmshearing.masks.axis_reports import AxisReport
from llmshearing.masks.sparsity_target import SparsityTarget
from llmshearing.masks.state import PruningState
from llmshearing.metrics.pruning_record import record_of, write_record
from llmshearing.models.cutting import CutPlan
from llmshearing.models.shapes import ModelShape
from llmshearing.models.source_files import public_name

__all__ = ['Origin', 'check_shape_left', 'write_pruned_folder']


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a folder's weights come from.

    Attributes:
        source (str | None): Folder or hub name of the source model.
        parameters (int): Parameters of the source.
        training (Training): What they have seen, and their losses.
        unconverged (Sequence[AxisReport]): Axes whose masks were too far from the target when they were fixed.
        files (Mapping[str, str]): Small files of the source
            (:func:`~llmshearing.models.source_files.read_source_files`).
        tokenizer (Tokenizer): The tokenizer to write, or None.
        stage (str): What the card calls it, ``'pruned'`` or ``'cut'``.
        recipe (Mapping[str, Any]): Settings worth telling beside those of the masks, by name.
    """

    source: str | None
    parameters: int
    training: Training
    unconverged: Sequence[AxisReport] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer = None
    stage: str = 'pruned'
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_shape_left(config: PretrainedConfig, plan: CutPlan, target: ModelShape | SparsityTarget) -> None:
    """A RuntimeError where final masks leave another shape than they were made for."""
    shape = shape_left(config, plan)
    if shape != target:
        raise RuntimeError(f'the masks leave {shape}, the target is {target}; this is a bug in llmshearing.')


def write_pruned_folder(
    writer: ModelFolderWriter,
    pruning: PruningState,
    config: PretrainedConfig,
    plan: CutPlan,
    tensors: Iterator[tuple[str, Tensor]],
    dtype: torch.dtype | None,
    origin: Origin,
) -> ModelShape:
    """Writes the cut model with ``pruning.json``, model card and licence files, under the writer's hidden path.

    Args:
        writer (ModelFolderWriter): Takes the files; not committed here.
        pruning (PruningState): The masks and how they were learned.
        config (PretrainedConfig): The source's config.
        plan (CutPlan): Cuts of the masks to export.
        tensors (Iterator[tuple[str, Tensor]]): Tensors of the cut model by name.
        dtype (torch.dtype | None): Type of the written weights; None keeps each tensor's own.
        origin (Origin): Where the weights come from.

    Returns:
        ModelShape: Shape of the written model.
    """
    shape = shape_left(config, plan)
    write_model_folder(
        writer,
        exported_config(config, plan, dtype or dtype_of(config) or torch.float32),
        tensors,
        origin.tokenizer,
        origin.files,
        dtype,
    )
    name, training = Path(origin.source or 'unknown').name, origin.training
    write_record(
        writer.path, record_of(pruning, plan.units, training.batches, training.tokens, name, shape, origin.parameters)
    )
    recipe = {'mask learning': pruning.mask_learning, 'units per row': _units_per_row(pruning, shape), **origin.recipe}
    facts = CardFacts(
        name=writer.folder.name,
        source=public_name(origin.source),
        stage=origin.stage,
        shape=shape,
        parameters=writer.parameters,
        source_shape=pruning.source,
        source_parameters=origin.parameters,
        training=training,
        recipe=recipe,
        caution=_caution(pruning, shape, origin.unconverged),
    )
    write_model_card(writer.path, facts, origin.files)
    return shape


def _units_per_row(pruning: PruningState, shape: ModelShape) -> str:
    """Units of each pruned axis in the source and in the written model, with the target where that is another."""
    left = {axis: plan.keep for axis, plan in plan_axes(pruning.source, shape).items()}  # none of what is whole
    return ', '.join(
        f'{report.axis} {report.units} to {left.get(report.axis, report.units)}'
        f'{"" if left.get(report.axis, report.units) == report.target else f" (target {report.target})"}'
        for report in pruning.reports()
    )


def _caution(pruning: PruningState, shape: ModelShape, unconverged: Sequence[AxisReport]) -> str | None:
    """What a reader must know of a model that training itself had not arrived at."""
    if shape != pruning.target:
        return (
            '**Cut in the course of pruning, as the masks were, and not to the target of the run**, which was '
            f'{pruning.target}.'
        )
    if unconverged:
        listed = '; '.join(report.describe() for report in unconverged)
        return (
            '**The masks had not converged to the target when they were fixed**, so units were removed that the model '
            f'still used. Per row: {listed}.'
        )
    return None
