"""Divergence from a teacher of which a few draws per position are known, without bias.

With draws v_1 ... v_N of the teacher's distribution p at temperature T, of which each token v is drawn N p_v times in
expectation (arXiv 2503.16870, section 3: weights 1 where the proposal is the teacher itself), the loss at one position

    T^2 * (-1/N * sum_i log q_(v_i) - H(p))           H: the teacher's entropy, stored exactly

is in expectation T^2 * KL(p || q), and so is its gradient, T * (q_v - N_v / N). One draw of few tokens may be negative;
their mean is not.

As :mod:`~llmshearing.algorithms.distillation.divergence`, it takes positions in chunks and writes the gradient in the
forward pass; as nearly all positions of packed text count, a chunk is a stretch of them, which needs no copy.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

__all__ = ['SampledLoss', 'SampledTokens', 'take_gradient']


@dataclasses.dataclass(frozen=True)
class SampledTokens:
    """Draws at P positions.

    Args:
        indices (Tensor): [P, N], int64, ids of the draws, with repetition.
        entropy (Tensor): [P], float32, of the distribution that they were drawn from, in nats.
    """

    indices: Tensor
    entropy: Tensor


class SampledLoss(torch.autograd.Function):
    """Mean of the loss above over some positions.

    Args:
        student_logits (Tensor): [P, at least vocab_size].
        sampled (SampledTokens): At the same positions.
        positions (Tensor): [n], int64: which of them count. None at all gives 0.
        temperature (float): T.
        vocab_size (int): The first so many tokens take part.
        rows (int): Positions in a chunk.

    Returns:
        Tensor: Scalar, float32. Its gradient can be taken once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_logits: Tensor,
        sampled: SampledTokens,
        positions: Tensor,
        temperature: float,
        vocab_size: int,
        rows: int,
    ) -> Tensor:
        count, draws = max(len(positions), 1), sampled.indices.shape[1]
        shares = torch.zeros(len(student_logits), device=student_logits.device)
        shares[positions] = 1.0 / count
        gradient = torch.zeros_like(student_logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=student_logits.device)
        for start in range(0, len(student_logits), rows):
            part = slice(start, start + rows)
            logits, ids, share = student_logits[part, :vocab_size].float(), sampled.indices[part], shares[part]
            log_q = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
            divergence = -log_q.gather(-1, ids).mean(-1) - sampled.entropy[part]
            total += (divergence * share).sum() * temperature**2
            if gradient is not None:
                weight = (share * temperature).unsqueeze(-1)
                difference = log_q.exp_().mul_(weight)
                difference.scatter_add_(-1, ids, (-weight / draws).expand(-1, draws).contiguous())
                gradient[part, :vocab_size] = difference.to(gradient.dtype)
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return take_gradient(ctx, grad_output), None, None, None, None, None


def take_gradient(ctx: Any, grad_output: Tensor) -> Tensor:
    """The gradient of the student's logits that a forward pass has left.

    Raises:
        RuntimeError: If it was taken before, which changed it.
    """
    gradient, ctx.gradient = ctx.gradient, None
    if gradient is None:
        raise RuntimeError('the gradient of distillation_loss can be taken once; compute the loss again.')
    return gradient.mul_(grad_output)
