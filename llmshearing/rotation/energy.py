"""Energy kept: which share of the normalised stream the leading directions of a basis hold, for every width.

It shows where to put the target's hidden_size. The cut there makes gains follow (:mod:`llmshearing.models.gains`);
without that the loss is a whole nat higher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmshearing.models.gains import gain_factors
from llmshearing.utils.markdown import markdown_table

__all__ = ['cut_gain_factors', 'energy_kept', 'energy_table', 'table_widths']


def energy_kept(mean_squares: Tensor) -> Tensor:
    """Share of the energy in the first k dimensions, for k = 1 ... hidden.

    Args:
        mean_squares (Tensor): :func:`~llmshearing.rotation.moments.stream_mean_squares` in the rotated basis,
            [reading norms, hidden], or one row of it.

    Returns:
        Tensor: float64, of the same shape; the last entry of each row is 1.
    """
    sums = mean_squares.double().cumsum(-1)
    return sums / sums[..., -1:].clamp_min(torch.finfo(torch.float64).tiny)


def cut_gain_factors(mean_squares: Tensor, kept: int) -> Tensor:
    """What a cut to the leading ``kept`` dimensions multiplies gains by, from [norms, hidden]; float64 [norms]."""
    mean_squares = mean_squares.double()
    leading, every = torch.arange(kept), torch.ones(len(mean_squares), dtype=torch.bool)
    device = mean_squares.device
    return gain_factors(mean_squares, leading.to(device), mean_squares.new_ones(kept), every.to(device))


def table_widths(hidden_size: int) -> list[int]:
    """Sixteen evenly spaced hidden sizes for a table, the whole one last."""
    return sorted({max(1, round(hidden_size * step / 16)) for step in range(1, 17)})


def energy_table(kept: Tensor) -> str:
    """Energy kept against hidden size as markdown: mean over the norms, the least and the final norm's.

    Args:
        kept (Tensor): :func:`energy_kept`, [reading norms, hidden].
    """
    rows = []
    for width in table_widths(kept.shape[1]):
        column = kept[:, width - 1]
        cells = (column.mean().item(), column.min().item(), column[-1].item())
        rows.append([str(width), *(f'{100 * cell:.1f} %' for cell in cells)])
    return markdown_table(['hidden_size', 'energy kept, mean of norms', 'least of a norm', 'final norm'], rows)
