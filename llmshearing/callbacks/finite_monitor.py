"""``finite_monitor``: ends a run before a loss, a gradient or a mask that is NaN or infinite changes the weights.

Composer's ``nan_monitor`` looks for NaN in the loss of its own rank and leaves the other ranks waiting. Here all ranks
learn of it in one reduction per batch and stop together, with the same message; a checkpoint of the damage is never
written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from llmshearing.compat.composer import checkpoint_savers, unwrapped
from llmshearing.data.dynamic_text import DynamicTextLoader

__all__ = ['FiniteMonitor']

LISTED = 3  # parameters in one message


class FiniteMonitor(Callback):
    """Checks every batch before its optimizer step.

    Gradients are seen after ``gradient_clipping``: clipping by norm leaves NaN of an infinite one, by value hides it.

    Raises:
        FloatingPointError: On all ranks, naming the batch, what is not finite, on which ranks, and the last checkpoint.
    """

    def __init__(self) -> None:
        self._broken: list[Tensor] = []  # of the batch's micro-batches, bool: whose loss is not finite

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self._broken = []

    def after_loss(self, state: State, logger: Logger) -> None:
        self._broken += [~torch.isfinite(loss.detach()).all() for loss in _tensors(state.loss)]

    def after_train_batch(self, state: State, logger: Logger) -> None:
        gradients = {
            name: _local(parameter.grad)
            for name, parameter in state.model.named_parameters()
            if parameter.grad is not None
        }
        broken = torch.stack(self._broken).any()
        if gradients:
            largest = torch.nn.utils.get_total_norm(gradients.values(), math.inf)
            broken = broken | ~torch.isfinite(largest.to(broken.device))
        masks = _masks(state)
        found = broken.to(torch.int32) | int(any(not torch.isfinite(mask).all() for mask in masks.values()))
        dist.all_reduce(found, reduce_operation='MAX')
        if found.item():
            raise FloatingPointError(self._describe(state, gradients, masks))

    def _describe(self, state: State, gradients: dict[str, Tensor], masks: dict[str, Tensor]) -> str:
        own = {
            'loss': any(broken.item() for broken in self._broken),
            'gradients': [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()],
            'masks': [axis for axis, mask in masks.items() if not torch.isfinite(mask).all()],
            'saved': [
                path for saver in checkpoint_savers(state) for path in saver.saved_checkpoints
            ],  # of whole checkpoints rank 0 alone knows
        }
        ranks = dist.all_gather_object(own)
        parts = []
        losses_on = [str(number) for number, rank in enumerate(ranks) if rank['loss']]
        if losses_on:
            parts.append(f'the training loss (rank {", ".join(losses_on)})')
        masks_found = sorted({axis for rank in ranks for axis in rank['masks']})
        if masks_found:
            parts.append(f'the {", ".join(masks_found)} mask')
        names = list(dict.fromkeys(name.removeprefix('module.') for rank in ranks for name in rank['gradients']))
        if names:
            more = f' and {len(names) - LISTED} more' if len(names) > LISTED else ''
            parts.append(f'the gradient of {", ".join(names[:LISTED])}{more}')
        saved = ranks[0]['saved']
        last = (
            f'the last checkpoint is {saved[-1]}. Resume from it'
            if saved
            else 'no checkpoint was saved since this start. Start again'
        )
        is_mixed = isinstance(state.train_dataloader, DynamicTextLoader)
        data = ' (train_loader.dataset.restart_on_new_data: true)' if is_mixed else ''
        return (
            f'batch {state.timestamp.batch.value}: not finite: {"; ".join(parts)}. The weights were not updated; '
            f'{last} with a lower optimizer.lr, a higher precision, or other data{data}.'
        )


def _tensors(loss: Any) -> Iterable[Tensor]:
    """The tensors of a loss, which may be one, several, or several with names."""
    if isinstance(loss, Tensor):
        return [loss]
    return list(loss.values()) if isinstance(loss, dict) else list(loss)


def _local(gradient: Tensor) -> Tensor:
    """This rank's part; empty parts, of parameters smaller than the number of ranks, count as finite."""
    gradient = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return gradient if gradient.numel() else gradient.new_zeros(1)


def _masks(state: State) -> dict[str, Tensor]:
    return getattr(getattr(unwrapped(state), 'cutter', None), 'masks', None) or {}
