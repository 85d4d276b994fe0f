"""The teacher's column of a batch as what the divergence is computed from, and whether it fits the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmshearing.algorithms.distillation.divergence import TeacherTarget, TopTokens
from llmshearing.algorithms.distillation.sampled import SampledTokens
from llmshearing.data.dynamic_text import DynamicTextDataset
from llmshearing.data.stored_teacher import TeacherNote

__all__ = ['check_student', 'note_of_loader', 'stored_target']


def note_of_loader(loader: Any) -> TeacherNote:
    """What the data of a training loader say of their teacher.

    Raises:
        ValueError: If it serves no teacher's column.
    """
    dataset = getattr(loader, 'dataset', None)
    if not isinstance(dataset, DynamicTextDataset) or dataset.teacher is None:
        raise ValueError(
            "distillation: stored: true needs a training loader that serves a teacher's column, got "
            f'{type(dataset).__name__}; set train_loader.name: dynamic_text with dataset.teacher: true.'
        )
    return dataset.teacher


def check_student(note: TeacherNote, vocab_size: int, temperature: float, shared_vocab_size: int | None) -> None:
    """Refuses a column that the student or the settings do not fit.

    Args:
        note (TeacherNote): What the data say of their teacher.
        vocab_size (int): Tokens that the student predicts.
        temperature (float): Of the run.
        shared_vocab_size (int | None): What the user says they share; None: everything.

    Raises:
        ValueError: If the temperature or the number of tokens is another one.
    """
    if temperature != note.temperature:
        raise ValueError(
            f'distillation: temperature={temperature} is not the {note.temperature} that {note.teacher} was stored '
            f'at; set temperature: {note.temperature}, or run llmshearing teach with --temperature {temperature}.'
        )
    wanted = vocab_size if shared_vocab_size is None else shared_vocab_size
    if note.vocab_size != wanted or note.vocab_size > vocab_size:
        raise ValueError(
            f'distillation: the stored teacher predicts {note.vocab_size} tokens, the student {vocab_size}'
            f'{"" if shared_vocab_size is None else f", and shared_vocab_size is {shared_vocab_size}"}. Where the '
            'student only has rows for padding beyond them, set shared_vocab_size to the number of the teacher; else '
            "run llmshearing teach with --shared-vocab-size, or --like for a student's trimmed vocabulary."
        )


def stored_target(rows: Tensor, note: TeacherNote) -> TeacherTarget:
    """What the divergence needs of a batch's column.

    Args:
        rows (Tensor): uint8 [batch, length, bytes per token]; the row of a token is the prediction of the next one.
        note (TeacherNote): How to read them.
    """
    head, ids, log_probs = note.format.unpack(rows.flatten(0, 1))
    if log_probs is None:
        kept = SampledTokens(ids, head)
    else:
        # What rounding leaves over of a distribution is shared out, so that gradients add up to 0.
        whole = torch.logsumexp(torch.cat([log_probs, head.unsqueeze(-1)], dim=-1), dim=-1)
        kept = TopTokens(log_probs - whole.unsqueeze(-1), ids.int(), head - whole)
    return TeacherTarget(note.temperature, note.vocab_size, kept)
