"""Energies: how what a norm reads is spread over the hidden dimensions of the source.

:mod:`~llmshearing.models.gains` says what for. Each token's squares are taken relative to their own mean: in most
models a few tokens are a hundred times as large as the rest, and a plain mean would tell of those alone.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from llmshearing.masks.scores import Calibration
from llmshearing.models.gains import stream_norms

__all__ = ['norm_energies', 'relative_squares']


def norm_energies(calibration: Calibration) -> Tensor:
    """Mean squares of the input of every norm over hidden dimensions, each token relative to its own mean.

    The model is left without masks.

    Returns:
        Tensor: float32 [norms, hidden] on CPU, the same on every rank; norms in the order of
        :func:`~llmshearing.models.gains.stream_norms`.
    """
    cutter = calibration.cutter
    norms = stream_norms(cutter.family, cutter.shape.num_hidden_layers)
    sums = torch.zeros(len(norms), cutter.shape.hidden_size, device=calibration.device)

    def add(number: int, share: float, x: Tensor, out: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        sums[number] += share * relative_squares(rows, cutter.family.subtracts_mean).mean(0)

    calibration.watch((cutter.model.get_submodule(path), partial(add, number)) for number, path in enumerate(norms))
    return calibration.average(sums)


def relative_squares(rows: Tensor, is_centred: bool, present: Tensor | None = None) -> Tensor:
    """Squares of the entries over their mean in the row.

    Args:
        rows (Tensor): float32 [tokens, dimensions].
        is_centred (bool): Subtract the mean of the row first, as LayerNorm does.
        present (Tensor | None): bool [dimensions]: which take part; the others are zero. Default: all.

    Returns:
        Tensor: float32 [tokens, dimensions]; zero in rows that are all zeros.
    """
    present = torch.ones_like(rows[0], dtype=torch.bool) if present is None else present
    if is_centred:
        rows = rows - (rows * present).sum(-1, keepdim=True) / present.sum()
    squares = rows.square() * present
    mean = squares.sum(-1, keepdim=True) / present.sum()
    return squares / mean.clamp(min=torch.finfo(squares.dtype).tiny)  # a padding token may be all zeros
