"""``pruning.json``: what a pruning run kept and how sure its masks were.

``export_pruned``, ``llmshearing export`` and ``cut`` write the file beside the exported weights. :func:`read_record`
takes whole records alone; the budget law, the next stage's report and pages, which are made without torch, need a few
keys of it, and take records of earlier releases that have no others (:func:`read_content`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmshearing.utils.files import dump_json, load_json

if TYPE_CHECKING:
    from torch import Tensor

    from llmshearing.masks.state import PruningState
    from llmshearing.models.counting import Layout
    from llmshearing.models.shapes import ModelShape
    from llmshearing.models.units import Units

__all__ = [
    'RECORD_NAME',
    'PruningRecord',
    'kept_indices',
    'read_content',
    'read_record',
    'record_of',
    'source_parameters',
    'write_record',
]

RECORD_NAME = 'pruning.json'
RECORD_VERSION = 1  # records of version 1 carry no number where they were written before records had one


@dataclasses.dataclass(frozen=True)
class PruningRecord:
    """What was kept, as plain types.

    Attributes:
        source_shape (dict[str, int]): Shape of the source.
        target_shape (dict[str, Any]): Shape to reach, or the sparsity where that alone was the target.
        shape (dict[str, int] | None): Shape of the written model; None where nothing was cut.
        mask_learning (str): How masks were learned.
        batches (int): Batches trained.
        tokens (int): Tokens trained on.
        source_name (str): Name of the source, without its folder.
        source_parameters (int | None): Parameters of the source.
        axes (list[dict[str, Any]]): An :class:`~llmshearing.masks.axis_reports.AxisReport` for each pruned axis.
        kept (dict[str, Any]): Kept units (:func:`kept_indices`).
        scores (dict[str, Any]): Score of every unit by axis, intermediate dimensions left out.
        version (int): Of this form.
    """

    source_shape: dict[str, int]
    target_shape: dict[str, Any]
    mask_learning: str
    batches: int
    tokens: int
    axes: list[dict[str, Any]]
    kept: dict[str, Any]
    shape: dict[str, int] | None = None
    source_name: str = 'unknown'
    source_parameters: int | None = None
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    version: int = RECORD_VERSION


def record_of(
    pruning: PruningState,
    units: Units,
    batches: int,
    tokens: int,
    source_name: str = 'unknown',
    shape: ModelShape | None = None,
    source_parameters: int | None = None,
) -> PruningRecord:
    """The record of a pruning run; what its parts are, :class:`PruningRecord` says."""
    return PruningRecord(
        source_shape=pruning.source.as_dict(),
        target_shape=pruning.target.as_dict(),
        shape=None if shape is None else shape.as_dict(),
        mask_learning=pruning.mask_learning,
        batches=batches,
        tokens=tokens,
        source_name=source_name,
        source_parameters=source_parameters,
        axes=[dataclasses.asdict(report) for report in pruning.reports()],
        kept=kept_indices(units),
        scores={axis: value.tolist() for axis, value in pruning.learner.scores().items() if axis != 'intermediate'},
    )


def write_record(folder: Path, record: PruningRecord) -> None:
    """Writes ``pruning.json`` into a folder."""
    dump_json(Path(folder) / RECORD_NAME, dataclasses.asdict(record), indent=1)


def read_record(folder: Path) -> PruningRecord:
    """The ``pruning.json`` of a folder.

    Raises:
        ValueError: As :func:`read_content`, and if it is no whole record.
    """
    content = read_content(folder)
    fields = {field.name for field in dataclasses.fields(PruningRecord)}
    try:
        return PruningRecord(**{key: value for key, value in content.items() if key in fields})
    except TypeError as error:
        raise ValueError(f'{Path(folder) / RECORD_NAME} is no record of a pruning run: {error}.') from error


def read_content(folder: Path) -> dict[str, Any]:
    """What the ``pruning.json`` of a folder holds, whole or not.

    Raises:
        ValueError: If there is none, or it is one of a newer release.
    """
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        raise ValueError(f'{path}: no such file; give the folder that export_pruned wrote.')
    content = load_json(path)
    version = content.get('version', RECORD_VERSION)
    if version != RECORD_VERSION:
        raise ValueError(f'{path} is of version {version}; this release reads version {RECORD_VERSION}.')
    return content


def source_parameters(content: Mapping[str, Any], layout: Layout) -> int:
    """Parameters of the source: as noted, or of an older record as the layout of what it was cut to counts them.

    Raises:
        ValueError: If neither says so.
    """
    from llmshearing.models.counting import count_source  # torch
    from llmshearing.models.shapes import ModelShape

    try:
        return content.get('source_parameters') or count_source(layout, ModelShape(**content['source_shape']))
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def kept_indices(units: Units) -> dict[str, Any]:
    """Kept units as plain lists, numbered as in the source; None stands for all."""

    def as_list(index: Tensor | None) -> list[int] | None:
        return None if index is None else index.tolist()

    return {
        'hidden': as_list(units.hidden),
        'layers': {
            str(layer): {
                'heads': as_list(kept.heads),
                'kv_heads': as_list(kept.kv_heads),
                'intermediate': as_list(kept.intermediate),
                **({} if kept.experts is None else {'experts': as_list(kept.experts)}),
            }
            for layer, kept in units.layers.items()
        },
    }
