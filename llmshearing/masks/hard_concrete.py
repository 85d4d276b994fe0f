"""The hard concrete gate of Louizos et al. 2018 (arXiv 1712.01312), as plain functions of ``log_alpha``.

    u ~ U(eps, 1 - eps)    s = sigmoid((log u - log(1 - u) + log_alpha) / beta)    z = clamp(s * (r - l) + l, 0, 1)

with temperature beta = 2/3 and stretch l = -0.1, r = 1.1. Everything is float32: in bfloat16, values near one move in
steps of 1/256 and a sparsity cannot be steered.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ['LOG_ALPHA_MAX', 'LOG_ALPHA_MIN', 'deterministic_gate', 'probability_kept', 'sample_gate']

TEMPERATURE = 2 / 3
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
NOISE_MARGIN = 1e-6
PROBABILITY_MARGIN = 1e-6
DETERMINISTIC_FACTOR = 0.8
LOG_ALPHA_MIN, LOG_ALPHA_MAX = math.log(1e-2), math.log(1e2)


def sample_gate(log_alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Draws gates z in [0, 1]; differentiable in ``log_alpha`` where z is strictly inside.

    Args:
        log_alpha (Tensor): float32, any shape, on CPU.
        generator (torch.Generator): Source of the noise; the same state gives the same gates everywhere.
    """
    u = torch.rand(log_alpha.shape, generator=generator).mul_(1 - 2 * NOISE_MARGIN).add_(NOISE_MARGIN)
    s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + log_alpha) / TEMPERATURE)
    return (s * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0.0, 1.0)


def probability_kept(log_alpha: Tensor) -> Tensor:
    """P(z > 0), clamped to [1e-6, 1 - 1e-6]; differentiable."""
    shift = TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH)
    return torch.sigmoid(log_alpha - shift).clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)


def deterministic_gate(log_alpha: Tensor) -> Tensor:
    """Value of a kept gate when nothing is drawn: sigmoid(0.8 * log_alpha / beta)."""
    return torch.sigmoid(DETERMINISTIC_FACTOR * log_alpha / TEMPERATURE)
