"""Optimizer state for parameters that were never run.

A layer that masks leave out from the first batch on (``one_shot``, a ``start_sparsity``, or a draw) gets no gradient,
so the optimizer makes no state for its parameters. Checkpoints hold what there is, and PyTorch refuses to load one that
lacks the state of a trainable parameter: such a run could not be resumed.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim import Optimizer

__all__ = ['add_missing_gradients']


def add_missing_gradients(optimizers: Iterable[Optimizer]) -> None:
    """Gives trainable parameters that have neither a gradient nor optimizer state a gradient of zeros.

    The optimizer's next step then makes their state, so this happens once for each, on the first batch. That step can
    change them by its weight decay only, once, at a warm-up's first learning rate; afterwards they cost neither time
    nor decay, only the memory of the state, which estimates count for every parameter. (An optimizer that keeps no
    state at all, such as SGD without momentum, gets the zeros every time.) Zeros are sharded as the parameter is; ranks
    agree because they share their masks.

    Args:
        optimizers (Iterable[Optimizer]): After the backward passes of a batch, before the step.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group['params']:
                if parameter.requires_grad and parameter.grad is None and not optimizer.state.get(parameter):
                    parameter.grad = torch.zeros_like(parameter)
