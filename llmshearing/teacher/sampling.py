"""What is kept of a distribution: draws without bias, or its top.

The draws of a position are a systematic sample (Madow and Madow 1944): one uniform number u sets N points (u + i) / N
on the cumulated distribution, and each point takes the token in whose interval it lies. So a token of probability p is
drawn N p times in expectation, as with N independent draws, which is all that an unbiased loss needs (arXiv 2503.16870,
section 3); but never more than one draw away from it, so the loss scatters less for the same bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmshearing.data.teacher_column import ColumnFormat

__all__ = ['draw', 'encode', 'uniform_numbers']

# Probabilities that are cumulated in float64 at a time: what a core's cache holds, or 128 MB of a GPU's memory.
CHUNK_ELEMENTS = {'cpu': 2**18, 'cuda': 2**24}


def uniform_numbers(tag: int, sample: int, length: int) -> np.ndarray:
    """One number in [0, 1) per token, float64, from what the sample is and which of its shard: no other thing counts.

    Args:
        tag (int): See :func:`~llmshearing.data.stored_teacher.tag_of`; the seed is in its key.
        sample (int): Number in its shard, so that equal texts are drawn for apart.
        length (int): Tokens.
    """
    return np.random.default_rng([int(tag), sample]).random(length)


def draw(log_p: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Draws of each distribution.

    Args:
        log_p (Tensor): [P, vocabulary], log-probabilities.
        uniform (Tensor): [P], float64, in [0, 1).
        count (int): Draws per position.

    Returns:
        Tensor: [P, count], int64, ascending.
    """
    points = (uniform.unsqueeze(-1) + torch.arange(count, device=log_p.device, dtype=torch.float64)) / count
    cumulated = log_p.double().exp_().cumsum_(-1)
    end = cumulated[:, -1:]  # which is 1 but for rounding, to which no point may be rounded up
    points = torch.minimum(points * end, torch.nextafter(end, torch.zeros_like(end)))
    # The first token whose end lies above the point: one without probability has no end of its own.
    return torch.searchsorted(cumulated, points, right=True)


def _entropy_of(log_p: Tensor) -> Tensor:
    """[P], in nats; a probability of 0 adds nothing."""
    return -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)


def encode(logits: Tensor, form: ColumnFormat, temperature: float, uniform: np.ndarray) -> np.ndarray:
    """The bytes of P positions.

    Args:
        logits (Tensor): [P, vocab_size], the teacher's.
        form (ColumnFormat): What to keep.
        temperature (float): Divides them.
        uniform (np.ndarray): [P], float64, from :func:`uniform_numbers`.

    Returns:
        np.ndarray: uint8 [P, bytes per token].

    Raises:
        FloatingPointError: If a distribution is none, because a logit is NaN or infinite.
    """
    result = np.empty((len(logits), form.width), np.uint8)
    rows = max(1, CHUNK_ELEMENTS.get(logits.device.type, 2**22) // form.vocab_size)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        log_p = torch.log_softmax(logits[part].float() / temperature, dim=-1)
        entropy = _entropy_of(log_p)
        if entropy.isnan().any():  # one bad logit is enough
            raise FloatingPointError('the teacher predicts NaN or infinity')
        if form.kind == 'draws':
            points = torch.from_numpy(uniform[part]).to(log_p.device)
            result[part] = form.pack(entropy, draw(log_p, points, form.count))
        else:
            top, ids = log_p.topk(form.count, dim=-1)
            rest = log_p.scatter(-1, ids, float('-inf')).logsumexp(-1)
            result[part] = form.pack(rest, ids, top)
    return result
