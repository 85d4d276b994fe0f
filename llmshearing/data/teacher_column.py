"""The bytes of a teacher's column: what is kept of its prediction at one token, in a fixed number of bytes.

A row of ``teacher`` holds, for each token of the sequence, the prediction of the token after it:

    draws    entropy, float32 | ids of the draws, ascending, with repetition, 2 or 3 bytes each
    top_k    log-probability of all other tokens together, float32 | ids, 2 or 3 bytes each | minus log-probabilities in
             steps of 1/1024 nat, 2 bytes each (evenly 0.0005 off; float16 would be 0.002 off from 4 nats on)

Ids take 2 bytes up to 65,536 tokens and 3 above. A plain list of draws is smaller than pairs of id and count wherever
the number of bytes must not depend on the text: as many slots are needed as there are draws. The entropy is what makes
a divergence of a cross entropy; it has no part in gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ['KINDS', 'MOST_BYTES', 'ColumnFormat', 'most_tokens']

KINDS = ('draws', 'top_k')
MOST_BYTES = 64  # per token, where the user does not say how many tokens to keep
HEAD = 4  # bytes of the entropy or the rest
STEPS = 1024  # per nat


@dataclass(frozen=True)
class ColumnFormat:
    """How the bytes of a token are to be read.

    Args:
        kind (str): ``'draws'`` or ``'top_k'``.
        count (int): Draws, or likeliest tokens, per position.
        vocab_size (int): Tokens that the distribution is over.
    """

    kind: str
    count: int
    vocab_size: int

    @property
    def id_bytes(self) -> int:
        """Bytes of a token's id."""
        return 2 if self.vocab_size <= 1 << 16 else 3

    @property
    def width(self) -> int:
        """Bytes per token."""
        return HEAD + self.count * (self.id_bytes + 2 * (self.kind == 'top_k'))

    def encoding(self, length: int) -> str:
        """The column's encoding in MDS for sequences of ``length`` tokens."""
        return f'ndarray:uint8:{length},{self.width}'

    def pack(self, head: Tensor, ids: Tensor, log_probs: Tensor | None = None) -> np.ndarray:
        """Bytes of P positions.

        Args:
            head (Tensor): [P], the entropy in nats, or the log-probability of the rest (-inf where there is none).
            ids (Tensor): [P, count], whole numbers below ``vocab_size``.
            log_probs (Tensor | None): [P, count], for ``top_k``.

        Returns:
            np.ndarray: uint8 [P, width].
        """
        numbers = np.ascontiguousarray(ids.cpu().numpy().astype('<u4'))
        parts = [
            head.float().cpu().numpy().astype('<f4').view(np.uint8).reshape(len(numbers), HEAD),
            numbers.view(np.uint8)
            .reshape(len(numbers), self.count, 4)[:, :, : self.id_bytes]
            .reshape(len(numbers), -1),
        ]
        if log_probs is not None:
            steps = (log_probs.double() * -STEPS).round().clamp(0, (1 << 16) - 1)
            parts.append(steps.cpu().numpy().astype('<u2').view(np.uint8).reshape(len(numbers), -1))
        return np.concatenate(parts, axis=1)

    def unpack(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What :meth:`pack` was given, on the device of ``rows``.

        Args:
            rows (Tensor): uint8 [P, width].

        Returns:
            tuple[Tensor, Tensor, Tensor | None]: head, float32 [P]; ids, int64 [P, count]; log-probabilities, float32
            [P, count], for ``top_k``.
        """
        end = HEAD + self.count * self.id_bytes
        # A single row counts as contiguous with any stride, which view would refuse.
        head = rows[:, :HEAD].clone(memory_format=torch.contiguous_format).view(torch.float32).squeeze(-1)
        ids = _whole_numbers(rows[:, HEAD:end], self.id_bytes)
        if self.kind == 'draws':
            return head, ids, None
        return head, ids, _whole_numbers(rows[:, end:], 2).float() / -STEPS

    def fault(self, rows: Tensor) -> str | None:
        """What rows, uint8 [P, width], hold that no teacher predicts; None where all is well."""
        head, ids, _ = self.unpack(rows)
        sound = head.isfinite() if self.kind == 'draws' else head < math.inf  # there may be no rest
        if not sound.all():
            return f'the number {head[~sound][0].item()}'
        largest = int(ids.max())
        return None if largest < self.vocab_size else f'the token id {largest} of {self.vocab_size} tokens'


def _whole_numbers(rows: Tensor, size: int) -> Tensor:
    """Bytes [P, n * size], the lowest first, as int64 [P, n]."""
    parts = rows.reshape(len(rows), -1, size).long()
    numbers = parts[..., 0]
    for place in range(1, size):
        numbers = numbers + (parts[..., place] << 8 * place)
    return numbers


def most_tokens(kind: str, vocab_size: int) -> int:
    """The most draws, or likeliest tokens, that :data:`MOST_BYTES` hold."""
    one = ColumnFormat(kind, 1, vocab_size).width - HEAD
    return min((MOST_BYTES - HEAD) // one, vocab_size if kind == 'top_k' else MOST_BYTES)
