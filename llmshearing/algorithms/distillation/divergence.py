"""Kullback-Leibler divergence from a teacher's next-token distribution, whole or reduced to its top-k tokens.

With p the teacher's and q the student's distribution at temperature T (logits divided by T), the loss at one position
is

    T^2 * sum_v p_v * (log p_v - log q_v)              (Hinton et al., arXiv 1503.02531, section 2)

With ``top_k``, v runs over the teacher's k likeliest tokens and over one bucket that holds all others, so that both
sides remain distributions and the student still learns how much probability to leave to the rest. At k = vocabulary the
two are equal.

The distributions of all positions in float32 would be several times the size of the logits. Positions are therefore
taken in chunks, and the gradient, which has a closed form, is computed in the forward pass into one tensor of the
student's dtype:

    d loss / d student_logit_v = T * (q_v - p_v)          with top-k: p_v = q_v * p_rest / q_rest for v in the bucket
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from llmshearing.algorithms.distillation.sampled import SampledLoss, SampledTokens, take_gradient

__all__ = ['TeacherTarget', 'TopTokens', 'distillation_loss', 'teacher_target']

CHUNK_ELEMENTS = 2**24  # logits that are held in float32 at a time: 64 MB
CACHED_ELEMENTS = 2**20  # on CPU, of a loss that passes over them a few times: 4 MB


@dataclasses.dataclass(frozen=True)
class TopTokens:
    """The k likeliest tokens at P positions.

    Args:
        log_probs (Tensor): [P, k], float32, log p of each.
        indices (Tensor): [P, k], int32, their ids.
        log_rest (Tensor): [P], float32, log of the probability of all others together; -inf where there are none.
    """

    log_probs: Tensor
    indices: Tensor
    log_rest: Tensor


@dataclasses.dataclass(frozen=True)
class TeacherTarget:
    """What is kept of the teacher's prediction at P positions.

    Args:
        temperature (float): T, by which logits of both sides are divided.
        vocab_size (int): Tokens that both sides share; logits beyond are left out.
        kept (Tensor | TopTokens | SampledTokens): The teacher's own logits, [P, at least vocab_size], with top-k its
            likeliest tokens, or draws of it that were stored.
    """

    temperature: float
    vocab_size: int
    kept: Tensor | TopTokens | SampledTokens


def _chunks(positions: int, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocab_size)
    return [slice(start, start + size) for start in range(0, positions, size)]


def _log_softmax(logits: Tensor, temperature: float, vocab_size: int) -> Tensor:
    return torch.log_softmax(logits[:, :vocab_size].float() / temperature, dim=-1)


def _log_rest(log_probs: Tensor, indices: Tensor) -> Tensor:
    """[P] log-probability of all tokens but ``indices``; as exact as the logits, unlike 1 - sum."""
    return log_probs.scatter(-1, indices, float('-inf')).logsumexp(-1)


@torch.no_grad()
def teacher_target(logits: Tensor, temperature: float, top_k: int | None, vocab_size: int) -> TeacherTarget:
    """Keeps of a teacher's logits what the loss needs.

    Args:
        logits (Tensor): [..., at least vocab_size].
        temperature (float): Above 0.
        top_k (int | None): Tokens to keep per position; None keeps the whole distribution.
        vocab_size (int): The first so many tokens take part.
    """
    logits = logits.reshape(-1, logits.shape[-1])
    if top_k is None:
        return TeacherTarget(temperature, vocab_size, logits)
    log_probs = torch.empty(len(logits), top_k, device=logits.device)
    indices = torch.empty(len(logits), top_k, device=logits.device, dtype=torch.int32)
    log_rest = torch.empty(len(logits), device=logits.device)
    for part in _chunks(len(logits), vocab_size):
        whole = _log_softmax(logits[part], temperature, vocab_size)
        log_probs[part], top = whole.topk(top_k, dim=-1)
        indices[part], log_rest[part] = top.int(), _log_rest(whole, top)
    return TeacherTarget(temperature, vocab_size, TopTokens(log_probs, indices, log_rest))


def distillation_loss(student_logits: Tensor, target: TeacherTarget, positions: Tensor) -> Tensor:
    """Mean of T^2 * KL(teacher || student) over the given positions; see the head of this file.

    Args:
        student_logits (Tensor): [..., at least vocab_size], the same positions in the same order as the target's.
        target (TeacherTarget): Of :func:`teacher_target`, or stored.
        positions (Tensor): [n], int64: which of the flattened positions count. None at all gives 0.

    Returns:
        Tensor: Scalar, float32. Its gradient can be taken once.
    """
    flat = student_logits.reshape(-1, student_logits.shape[-1])
    if isinstance(target.kept, SampledTokens):
        elements = min(CHUNK_ELEMENTS, CACHED_ELEMENTS) if flat.device.type == 'cpu' else CHUNK_ELEMENTS
        rows = max(1, elements // target.vocab_size)
        return SampledLoss.apply(flat, target.kept, positions, target.temperature, target.vocab_size, rows)
    return _DistillationLoss.apply(flat, target, positions)


class _DistillationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_logits: Tensor, target: TeacherTarget, positions: Tensor) -> Tensor:
        count, temperature = max(len(positions), 1), target.temperature
        gradient = torch.zeros_like(student_logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=student_logits.device)
        for part in _chunks(len(positions), target.vocab_size):
            rows = positions[part]
            log_q = _log_softmax(student_logits[rows], temperature, target.vocab_size)
            if isinstance(target.kept, TopTokens):
                divergence, wanted = _reduced(log_q, target.kept, rows)
            else:
                assert isinstance(target.kept, Tensor)  # draws have a loss of their own
                log_p = _log_softmax(target.kept[rows], temperature, target.vocab_size)
                divergence, wanted = _full(log_q, log_p)
            total += divergence * (temperature**2 / count)
            if gradient is not None:
                difference = log_q.exp_().sub_(wanted).mul_(temperature / count)
                gradient[rows, : target.vocab_size] = difference.to(gradient.dtype)
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        return take_gradient(ctx, grad_output), None, None


def _full(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the divergences [scalar] and the distribution that the student is drawn to [rows, vocabulary]."""
    p = log_p.exp()
    return (p * log_p.sub_(log_q)).sum(), p


def _reduced(log_q: Tensor, top: TopTokens, rows: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`_full`; within the bucket, the student is drawn to its own proportions."""
    log_p, log_p_rest, indices = top.log_probs[rows], top.log_rest[rows], top.indices[rows].long()
    log_q_rest = _log_rest(log_q, indices)
    # False at k = vocabulary, where both are -inf and their difference is not a number.
    has_rest = log_p_rest > float('-inf')
    log_ratio = torch.where(has_rest, log_p_rest - log_q_rest, float('-inf'))
    p = log_p.exp()
    divergence = (p * (log_p - log_q.gather(-1, indices))).sum()
    divergence = divergence + torch.where(has_rest, log_p_rest.exp() * log_ratio, 0.0).sum()
    return divergence, (log_q + log_ratio.unsqueeze(-1)).exp_().scatter_(-1, indices, p)
