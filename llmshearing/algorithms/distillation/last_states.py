"""How far the student's last hidden states are from the teacher's, in the dimensions that the student has kept.

The last hidden states are what enters the LM head. A student that was cut from its teacher has some of the teacher's
hidden dimensions: while it is pruned the masks say which, afterwards the ``pruning.json`` beside its weights. With h
the student's state at a position and g the kept part of the teacher's, the distance is the mean of 1 - cos(h, g).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.models import HuggingFaceModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmshearing.metrics.pruning_record import RECORD_NAME, read_record
from llmshearing.models.cuttable import Cutter

__all__ = ['LastStates']

LEAST_COSINE = 0.2  # below it on average at the first batch, dimensions of the same number are not the same


class LastStates:
    """Sees the last hidden states of student and teacher in their own forward passes.

    Args:
        student (HuggingFaceModel): The model that trains.
        teacher (PreTrainedModel): The model that it was cut from, in the same basis: of a rotated source, that one.

    Raises:
        ValueError: If the student has not been cut from a model of the teacher's hidden size.
    """

    def __init__(self, student: HuggingFaceModel, teacher: PreTrainedModel):
        self._cutter: Cutter | None = getattr(student, 'cutter', None)
        self._kept, size = _kept_dimensions(student)
        if teacher.config.hidden_size != size:
            raise ValueError(
                f'distillation: hidden_weight needs the teacher that the student was cut from, of hidden size {size}; '
                f'this one has {teacher.config.hidden_size}. Set hidden_weight to 0, or choose that teacher.'
            )
        self._checked = False
        self._states: dict[str, Tensor] = {}
        for name, model in (('student', student.model), ('teacher', teacher)):
            head = model.get_output_embeddings()
            assert isinstance(head, nn.Module)  # every causal LM of the families has one
            head.register_forward_pre_hook(partial(self._see, name))

    def _see(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._states[name] = inputs[0]

    def distance(self, positions: Tensor) -> Tensor:
        """The mean of 1 - cos over positions, after the forward passes of both.

        Args:
            positions (Tensor): [n], int64, into the flattened batch.

        Returns:
            Tensor: [], with a gradient to the student; 0 without positions.

        Raises:
            ValueError: If the first batch's states have nothing to do with each other.
        """
        student, teacher = (self._states.pop(name).flatten(0, 1)[positions].float() for name in ('student', 'teacher'))
        kept = self._kept
        if self._cutter is not None and self._cutter.plan is not None:
            kept = self._cutter.plan.units.hidden
        if kept is not None:
            teacher = teacher[:, kept.to(teacher.device)]
        cosines = torch.cosine_similarity(student, teacher, dim=-1)
        if not self._checked and len(positions):
            self._checked = True
            cosine = cosines.mean().item()
            if cosine < LEAST_COSINE:
                raise ValueError(
                    f"distillation: hidden_weight compares the student's hidden dimensions with the teacher's of the "
                    f'same numbers, but their mean cosine is {cosine:.3f}: they are other dimensions. Give the teacher '
                    'that the student was cut from (the rotated source, where it was rotated), or set hidden_weight to '
                    '0.'
                )
        return (1 - cosines).sum() / max(len(positions), 1)


def _kept_dimensions(student: HuggingFaceModel) -> tuple[Tensor | None, int]:
    """Which of its source's hidden dimensions a model has that no masks cut, None for all; and how many that has."""
    folder = Path(str(student.config.name_or_path))
    if hasattr(student, 'cutter') or not (folder / RECORD_NAME).is_file():
        return None, student.config.hidden_size
    record = read_record(folder)
    kept = record.kept.get('hidden')
    return None if kept is None else torch.tensor(kept), record.source_shape['hidden_size']
