"""A source in memory: opened after its weights were checked, and its losses on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from llmshearing.checkpoints.source import check_weights
from llmshearing.checkpoints.weights_in_file import open_in_file
from llmshearing.compat.torch import DTYPES
from llmshearing.cut.plan import PlannedCut
from llmshearing.cut.text import Text
from llmshearing.export.model_folder import open_strictly
from llmshearing.models.source_config import read_config
from llmshearing.scaling.loss import domain_loss

__all__ = ['losses_of', 'open_result', 'open_source']


def open_source(plan: PlannedCut, device: str, place: Path | None = None) -> PreTrainedModel:
    """The source in evaluation mode, without gradients.

    Args:
        plan (PlannedCut): What to open it for.
        device (str): Where to compute.
        place (Path | None): Folder on the disk that may hold the weights of a large source. Default: they are all in
            memory.

    Raises:
        ValueError: For weights that do not fit the config.
    """
    check_weights(plan.folder, plan.config)
    if plan.scratch and place is not None:
        held: Any = open_in_file(plan.folder, plan.config, DTYPES[plan.computed_in], place)
        return held.to(device)
    return open_strictly(plan.folder, DTYPES[plan.computed_in], plan.config).to(device).requires_grad_(False)


def open_result(plan: PlannedCut, folder: Path, device: str) -> PreTrainedModel:
    """The finished folder's model as the source was opened; a large one after its tensors were compared."""
    dtype = DTYPES[plan.computed_in]
    if plan.scratch:
        model: Any = open_in_file(folder, read_config(folder), dtype, folder.parent)
    else:
        model = open_strictly(folder, dtype)
    return model.to(device)


def losses_of(model: PreTrainedModel, texts: Sequence[Text], sequences: int) -> dict[str, float]:
    """Nats per token on the held-out part of each text, of so many sequences in a forward pass."""
    return {each.name: domain_loss(model, each.held_out, sequences, f'--text {each.name}')['loss'] for each in texts}
