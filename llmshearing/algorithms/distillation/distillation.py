"""``distillation``: the Composer Algorithm that adds a teacher's opinion to the loss.

Before a micro-batch's forward pass the teacher is run on it, so that its activations are gone before the student's are
made; after the loss, the divergence is added. What is stored of a teacher comes with the batch instead. Composer logs
the parts as ``loss/train/language_model``, ``loss/train/distillation`` and, if asked for, ``loss/train/hidden_states``
beside the total. A live teacher is held by the algorithm, which is in no module tree: no optimizer, gradient clipping
or checkpoint sees it.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from composer.core import Algorithm, Event, State, get_precision_context
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from llmshearing.algorithms.distillation.divergence import TeacherTarget, distillation_loss, teacher_target
from llmshearing.algorithms.distillation.last_states import LastStates
from llmshearing.algorithms.distillation.stored import check_student, note_of_loader, stored_target
from llmshearing.algorithms.distillation.teacher import build_teacher, missing_folder
from llmshearing.checkpoints.identity import refuse_other_sources
from llmshearing.checkpoints.weight_files import check_has_config
from llmshearing.data.stored_teacher import NOTE, TeacherNote
from llmshearing.masks.scores import IGNORED_LABEL
from llmshearing.utils.checks import check_integer, check_number, check_precision

__all__ = ['Distillation', 'predicting_positions']

log = logging.getLogger(__name__)


def predicting_positions(labels: Tensor) -> Tensor:
    """Positions whose next token carries a loss: those that the language-model loss averages over.

    Args:
        labels (Tensor): [batch, length], -100 where there is no loss; not shifted.

    Returns:
        Tensor: [n], int64, ascending, into the flattened batch.
    """
    counts = torch.zeros_like(labels, dtype=torch.bool)
    counts[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    # The number of positions is needed here, so the host waits for the device once per micro-batch, a moment beside the
    # forward passes. Taking all positions would spare that, and double the divergence's cost where half of the labels
    # are ignored, as those of prompts are.
    return counts.flatten().nonzero().squeeze(-1)


class Distillation(Algorithm):
    """Adds ``weight * T^2 * KL(teacher || student)`` over next-token distributions to the language-model loss.

    Works with any causal model of llm-foundry whose outputs hold logits (``hf_causal_lm``, ``sheared_causal_lm``).

    Args:
        teacher (str | None): Hugging Face folder or name of a model with the student's vocabulary; the unpruned source,
            mostly. Default: ``None``, with ``stored``.
        stored (bool): Take the teacher that ``llmshearing teach`` has stored beside the data, in place of ``teacher``.
            Default: ``False``.
        weight (float): Factor of the divergence beside the language-model loss. Default: ``1.0``.
        temperature (float): T, by which logits are divided. Default: ``1.0``.
        top_k (int | None): Compare the teacher's so many likeliest tokens and one bucket of all others, which takes
            less memory; of a stored teacher, the data say. Default: ``None``, the whole vocabulary.
        shared_vocab_size (int | None): Compare the first so many tokens, for models that pad one vocabulary to
            different sizes. Default: ``None``, all, which must then be equally many.
        hidden_weight (float): Factor of the distance between the last hidden states of both
            (:mod:`~llmshearing.algorithms.distillation.last_states`); the teacher must be the model that the student
            was cut from. Default: ``0.0``.

    Raises:
        ValueError: For values out of range or a folder without a model here, and at the start of the run for a teacher
            that does not fit the student.
    """

    def __init__(
        self,
        teacher: str | None = None,
        weight: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        shared_vocab_size: int | None = None,
        stored: bool = False,
        hidden_weight: float = 0.0,
    ):
        for name, value in (('weight', weight), ('temperature', temperature)):
            check_number(f'distillation.{name}', value, 0, above=True)
        if top_k is not None:  # else all tokens
            check_integer('distillation.top_k', top_k, 1)
        check_number('distillation.hidden_weight', hidden_weight, 0)
        self.weight, self.temperature, self.top_k = weight, temperature, top_k
        self.hidden_weight = hidden_weight
        self.shared_vocab_size = shared_vocab_size
        if (teacher is None) != bool(stored):
            given = 'neither' if teacher is None else 'both'
            raise ValueError(
                f'distillation: expected teacher, a model to run, or stored: true, its predictions in the data; got '
                f'{given}.'
            )
        if stored and top_k is not None:
            raise ValueError(
                f'distillation: top_k={top_k} is for a live teacher; a stored one has what llmshearing teach kept '
                '(--draws, --top-k). Remove top_k.'
            )
        if stored and hidden_weight:
            raise ValueError(
                f'distillation: hidden_weight={hidden_weight} needs a live teacher; hidden states are not stored. '
                'Remove hidden_weight, or give teacher in place of stored.'
            )
        self.stored = stored
        self.teacher_name = str(teacher)
        if not stored and missing_folder(self.teacher_name):
            check_has_config(f'distillation: teacher {teacher}', self.teacher_name)
        self.teacher: PreTrainedModel  # known once the run has a model, as is the number of tokens
        self.vocab_size = 0
        self._inputs: frozenset[str] = frozenset()
        self._note: TeacherNote | None = None
        self._target: TeacherTarget | None = None
        self._last_states: LastStates | None = None

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.INIT, Event.FIT_START, Event.BEFORE_FORWARD, Event.AFTER_LOSS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.INIT:
            self._prepare(state)
        elif event == Event.FIT_START:
            self._prepare_stored(state)
        elif event == Event.BEFORE_FORWARD:
            stored = None if self._note is None else stored_target(state.batch[NOTE], self._note)
            self._target = stored or self._ask_teacher(state)
        elif self._target is None:
            raise RuntimeError('distillation: a loss without a forward pass before it, at which the teacher is asked.')
        else:
            state.loss = self._with_divergence(state, self._target)
            self._target = None

    def _prepare(self, state: State) -> None:
        student = state.model
        if not isinstance(student, HuggingFaceModel):
            got = type(student).__name__
            raise ValueError(
                f'distillation needs a Hugging Face model of llm-foundry, got {got}; set model.name: hf_causal_lm.'
            )
        check_precision(state.precision.value)
        if self.stored:  # the data are known later, when the model may be wrapped
            self.vocab_size = student.config.vocab_size
            return
        self.teacher, self.vocab_size = build_teacher(self.teacher_name, student, state, self.shared_vocab_size)
        refuse_other_sources(self.teacher_name, weights=state.fsdp_config is None)  # else read by rank 0 alone
        if self.top_k is not None and self.top_k > self.vocab_size:
            raise ValueError(
                f'distillation: top_k={self.top_k} is more than the {self.vocab_size} tokens there are; lower it.'
            )
        if self.hidden_weight:
            self._last_states = LastStates(student, self.teacher)
        self._inputs = frozenset(inspect.signature(self.teacher.forward).parameters) - {'labels'}
        log.info('Distilling from %s over %d tokens.', self.teacher_name, self.vocab_size)

    def _prepare_stored(self, state: State) -> None:
        if not self.stored:
            return
        self._note = note = note_of_loader(state.train_dataloader)
        check_student(note, self.vocab_size, self.temperature, self.shared_vocab_size)
        log.info('Distilling from what is stored of %s: %s of %d.', note.teacher, note.kind, note.count)

    @torch.no_grad()
    def _ask_teacher(self, state: State) -> TeacherTarget:
        inputs = {key: value for key, value in state.batch.items() if key in self._inputs}
        with get_precision_context(state.precision, state.precision_config):
            logits = self.teacher(**inputs, use_cache=False).logits
        if isinstance(self.teacher, FSDPModule):
            # FSDP2 keeps what the root holds (embeddings, head) whole for a backward pass, which here never comes.
            self.teacher.reshard()
        return teacher_target(logits, self.temperature, self.top_k, self.vocab_size)

    def _with_divergence(self, state: State, target: TeacherTarget) -> dict[str, Tensor]:
        if not isinstance(state.loss, Tensor):
            got = type(state.loss).__name__
            raise ValueError(f'distillation needs a model whose loss is one tensor, got {got}; choose another model.')
        positions = predicting_positions(state.batch['labels'])
        outputs: Any = state.outputs  # a mapping, which Composer's annotation leaves out
        divergence = distillation_loss(outputs['logits'], target, positions)
        parts = {'language_model': state.loss, 'distillation': divergence}
        total = state.loss + self.weight * divergence
        if self._last_states is not None:
            parts['hidden_states'] = self._last_states.distance(positions)
            total = total + self.hidden_weight * parts['hidden_states']
        return {'total': total, **parts}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the teacher never changes and is read again from its folder."""
        return {}
