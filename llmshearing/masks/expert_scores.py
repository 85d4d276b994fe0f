"""Scores of routed experts and of what is inside them.

| method | axes | score of a unit |
|---|---|---|
| `reap` | experts | mean over the tokens routed to it of gate x norm of its output (REAP, arXiv 2510.13999) |
| `frequency` | experts | share of the tokens that are routed to it |

Both are of the text that calibration sees: an expert of a language or a domain that is not in it has no score at all
and goes first. Calibration batches are taken in turn from all evaluation sets of a run, so have one of every domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from llmshearing.compat.experts import RoutedTokens, expert_matrices, watch_experts
from llmshearing.masks.scores import Calibration

__all__ = ['add_expert_magnitudes', 'frequency', 'inner_activation', 'reap', 'squared']


def _sums(calibration: Calibration, width: int, value: Callable[[RoutedTokens], Tensor]) -> tuple[Tensor, Tensor]:
    """Sum over routed tokens of a value, [layers, experts, width], and their numbers, [layers, experts, 1]."""
    cutter, shape = calibration.cutter, calibration.cutter.shape
    sums = torch.zeros(shape.num_hidden_layers, shape.num_experts, width + 1, device=calibration.device)

    def see(layer: int, tokens: RoutedTokens) -> None:
        values = value(tokens).detach().float().reshape(len(tokens.gates), width)
        sums[layer, tokens.expert] += torch.cat([values.sum(0), values.new_tensor([len(values)])])

    with ExitStack() as hooks:
        for layer in range(shape.num_hidden_layers):
            block = cutter.model.get_submodule(f'{cutter.family.layer_path(layer)}.{cutter.family.mlp}')
            hooks.enter_context(watch_experts(block, cutter.family, partial(see, layer)))
        calibration.watch(())  # runs all passes; experts are no modules everywhere, and so watched another way
    everywhere = calibration.average(sums)
    return everywhere[..., :width], everywhere[..., width:]


def reap(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    """What an expert adds to a token that is routed to it."""
    sums, counts = _sums(calibration, 1, lambda tokens: tokens.gates.float() * tokens.out.float().norm(dim=-1))
    return {'expert': (sums / counts.clamp(min=torch.finfo(counts.dtype).tiny)).squeeze(-1)}


def frequency(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    """How many of the tokens are routed to an expert."""
    _, counts = _sums(calibration, 1, lambda tokens: tokens.gates)
    counts = counts.squeeze(-1)
    return {'expert': counts * calibration.cutter.shape.num_experts_per_tok / counts.sum(1, keepdim=True)}


def inner_activation(calibration: Calibration) -> Tensor:
    """Root mean square of what the intermediate dimensions of experts carry, over the tokens routed to each.

    Returns:
        Tensor: float32 [layers, experts x intermediate size].
    """
    width = calibration.cutter.shape.intermediate_size
    sums, counts = _sums(calibration, width, lambda tokens: tokens.inner.float().square())
    return (sums / counts.clamp(min=torch.finfo(counts.dtype).tiny)).sqrt().flatten(1)


def add_expert_magnitudes(calibration: Calibration, squares: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
    """Adds the squares of all weights of routed experts, and their numbers, to what they belong to, by axis."""
    cutter, shape = calibration.cutter, calibration.cutter.shape
    experts, hidden, width = shape.num_experts, shape.hidden_size, shape.intermediate_size
    for layer in range(shape.num_hidden_layers):
        block = cutter.model.get_submodule(f'{cutter.family.layer_path(layer)}.{cutter.family.mlp}')
        gate_up, down = (squared(matrix) for matrix in expert_matrices(block, cutter.family))
        inner = gate_up.view(experts, 2, width, hidden).sum((1, 3)) + down.sum(1)
        found = {
            'layer': (inner.sum(), 3 * experts * width * hidden),
            'hidden': (gate_up.sum((0, 1)) + down.sum((0, 2)), 3 * experts * width),
            'expert': (inner.sum(1), 3 * width * hidden),
            'intermediate': (inner.flatten(), 3 * hidden),
        }
        for axis in found.keys() & squares.keys():
            place = ... if axis == 'hidden' else layer
            squares[axis][place] += found[axis][0]
            counts[axis][place] += found[axis][1]


def squared(matrix: Tensor) -> Tensor:
    """Squares of a whole weight, sharded or not, float32 on the CPU."""
    matrix = matrix.detach()
    return (matrix.full_tensor() if isinstance(matrix, DTensor) else matrix).float().cpu().square()
