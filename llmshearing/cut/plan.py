"""What a cut would do, from config.json alone: shape, sizes, type, memory. Whatever is impossible is refused here."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from llmshearing.checkpoints.rotated import has_learned_basis
from llmshearing.checkpoints.source import WHOLE_UP_TO
from llmshearing.compat.torch import DTYPES
from llmshearing.compat.transformers import attention_implementation, dtype_of
from llmshearing.config.source import read_source
from llmshearing.cut.memory import memory_needed
from llmshearing.cut.settings import CutSettings
from llmshearing.cut.target import BUDGETS, cut_shape
from llmshearing.masks.axes import AxisPlan
from llmshearing.masks.state import plan_masks
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.families import family_of
from llmshearing.models.shapes import DTYPE_BYTES, ModelShape, shape_of
from llmshearing.models.source_config import check_attention
from llmshearing.models.units import mask_shapes
from llmshearing.utils.numbers import with_unit
from llmshearing.utils.paths import expand_path

__all__ = ['PlannedCut', 'plan_cut']

TOKENS_PER_PASS = 2048


@dataclasses.dataclass(frozen=True)
class PlannedCut:
    """What can be told of a cut before a weight is read.

    Attributes:
        folder (Path): The source.
        config (PretrainedConfig): Its config.
        target (ModelShape): Shape to cut to.
        axes (dict[str, AxisPlan]): The pruned axes.
        source_parameters (int): Parameters of the source.
        parameters (int): Parameters of the target.
        dtype (str): Type of the written weights.
        computed_in (str): Type of the weights in memory.
        rotates (bool): Whether the stream is rotated first.
        unrotated (str | None): Why it is not, where it was to be.
        scores (dict[str, str]): Method that scores the units, by axis, of all there are.
        length (int): Tokens per sequence.
        sequences_per_pass (int): Sequences that one forward pass takes.
        memory (int): Bytes at the peak.
        scratch (int): Bytes that the source's weights take on the output's disk meanwhile; 0 where they are in memory.
        with_all_layers (ModelShape | None): The budget's shape if no layers go, where the budget leaves that open.
    """

    folder: Path
    config: PretrainedConfig
    target: ModelShape
    axes: dict[str, AxisPlan]
    source_parameters: int
    parameters: int
    dtype: str
    computed_in: str
    rotates: bool
    unrotated: str | None
    scores: dict[str, str]
    length: int
    sequences_per_pass: int
    memory: int
    scratch: int
    with_all_layers: ModelShape | None

    @property
    def bytes(self) -> int:
        """Size of the written weights."""
        return DTYPE_BYTES[self.dtype] * self.parameters

    def lines(self) -> list[str]:
        """The plan in words."""
        meanwhile = f', and meanwhile {with_unit(self.scratch, "B")} for the weights' if self.scratch else ''
        basis = ', in a rotated basis' if self.rotates else ''
        basis += f' ({self.unrotated})' if self.unrotated else ''
        source, others = shape_of(self.config), []
        if self.with_all_layers is not None:
            shape = self.with_all_layers.as_dict()
            sizes = ', '.join(f'{key}={size}' for key, size in shape.items() if size != source.as_dict()[key])
            others = [
                f'num_hidden_layers={source.num_hidden_layers} beside the budget would keep all layers, with {sizes}; '
                '`llmshearing search` compares shapes'
            ]
        return [
            f'source: {self.source_parameters:,} parameters, {source}',
            f'target: {self.parameters:,} parameters ({self.parameters / self.source_parameters:.1%}), {self.target}',
            *others,
            f'along {", ".join(self.axes)}{basis}',
            f'takes about {with_unit(self.memory, "B")} of memory in {self.computed_in}, '
            f'and {with_unit(self.bytes, "B")} of disk in {self.dtype}{meanwhile}',
        ]


def plan_cut(source: str | Path, target: Mapping[str, Any], settings: CutSettings, device: str = 'cpu') -> PlannedCut:
    """What a cut would do; reads config.json and nothing else.

    Args:
        source (str | Path): Folder of a Hugging Face model.
        target (Mapping[str, Any]): As for :func:`~llmshearing.models.targets.target_shape`.
        settings (CutSettings): What else decides the cut.
        device (str): Where it will be computed. Default: the CPU.

    Raises:
        ValueError: For a source of a type that is not supported, or a target that it cannot be cut to.
    """
    config, folder = read_source(str(source)), Path(expand_path('SOURCE', str(source)))
    if not folder.is_dir():
        raise ValueError(f'{source} is a config alone; name the folder that has the weights and the tokenizer as well.')
    stored = str(dtype_of(config) or torch.float32).removeprefix('torch.')
    dtype = settings.dtype or (stored if stored in DTYPES else 'float32')
    if 'size' in target and target.get('dtype', dtype) != dtype:
        raise ValueError(
            f'--target counts its size in {target["dtype"]}, but the weights will be written in {dtype}; leave dtype '
            f'out of the target, or add --dtype {target["dtype"]}.'
        )
    if 'size' in target:
        target = {**target, 'dtype': dtype}
    shape = cut_shape(config, target, settings.axes, settings.keep_heads)
    axes, layout = plan_masks(config, shape), layout_of(config)
    whole = int(count_parameters(layout, shape_of(config)).total)
    length = min(settings.seq_len, getattr(config, 'max_position_embeddings', None) or settings.seq_len)
    check_attention(config, attention_implementation(config), length)
    computed_in = 'float32' if whole <= WHOLE_UP_TO else dtype
    learned = has_learned_basis(folder)
    scores = settings.scores_by_axis(learned)
    _check_scores(settings.scores, scores, axes, shape_of(config))
    unrotated, why_not = None, family_of(config).why_not_rotatable
    if learned:
        unrotated = 'in the basis that `llmshearing rotate --learn` found, which stays'
    elif why_not is not None:
        unrotated = f'{config.model_type} cannot be rotated: {why_not}'
    rotates = settings.rotate and 'hidden' in axes
    scratch = DTYPE_BYTES[computed_in] * whole if whole > WHOLE_UP_TO else 0
    sequences = max(1, TOKENS_PER_PASS // length)
    methods, in_file = {scores[axis] for axis in axes}, bool(scratch) and device == 'cpu'
    pass_sizes = (sequences, length, settings.tokens)
    memory = memory_needed(config, shape, axes, computed_in, *pass_sizes, methods, settings.compensate, in_file)
    return PlannedCut(
        folder=folder,
        config=config,
        target=shape,
        axes=axes,
        source_parameters=whole,
        parameters=int(count_parameters(layout, shape).total),
        dtype=dtype,
        computed_in=computed_in,
        rotates=rotates and unrotated is None,
        unrotated=unrotated if rotates else None,
        scores=scores,
        length=length,
        sequences_per_pass=sequences,
        memory=memory,
        scratch=scratch,
        with_all_layers=_with_all_layers(config, target, settings) if 'layer' in axes else None,
    )


def _with_all_layers(config: PretrainedConfig, target: Mapping[str, Any], settings: CutSettings) -> ModelShape | None:
    if 'num_hidden_layers' in target or not any(key in target for key in BUDGETS):
        return None
    try:
        pinned = {**target, 'num_hidden_layers': config.num_hidden_layers}
        return cut_shape(config, pinned, settings.axes, settings.keep_heads)
    except ValueError:  # the budget is too small for that
        return None


def _check_scores(
    asked: str | Mapping[str, str] | None, by_axis: Mapping[str, str], cut: Collection[str], source: ModelShape
) -> None:
    """Refuses scores that decide nothing: of no axis that is cut, or of one that the source does not have."""
    listed = ', '.join(cut)
    if isinstance(asked, str) and asked not in {by_axis[axis] for axis in cut}:
        raise ValueError(f'--scores {asked} scores none of the axes that are cut ({listed}); leave it out.')
    absent = [] if asked is None or isinstance(asked, str) else sorted(set(asked) - set(mask_shapes(source)))
    if absent:
        raise ValueError(f'--scores {absent[0]}=...: the source has no such axis; those that are cut are {listed}.')
