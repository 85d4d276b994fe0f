"""How the gain of a norm follows the hidden dimensions that go.

A norm divides by the root mean square of what it reads. When hidden dimensions go, that mean is over fewer of them, and
what is kept would come out larger or smaller than before. So the gain of every norm over the residual stream's
dimensions is multiplied by

    sqrt(d / d' * sum over kept i of z_i^2 e_i / sum over all i of e_i)

with d dimensions of which d' are kept, mask values z and energies e, the mean squares of what this norm reads in the
source (:func:`~llmshearing.masks.energies.norm_energies`). For a token whose squares are in the proportions of e, what
is kept comes out exactly as in the source. A norm whose output is added to the stream reads values that no mask
scales, so there z counts as one. LayerNorm subtracts the mean of the kept dimensions, which is nearly that of all: its
squares are those of the centred input, and the factor is right up to the shift of the mean, of the order of 1 / d'.
The factor is a constant to autograd: masks learn from what they scale, not from how the gain makes up for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmshearing.models.roles import Family, Norm

__all__ = ['gain_factors', 'stream_norms']


def stream_norms(family: Family, num_hidden_layers: int) -> dict[str, Norm]:
    """Every norm over hidden dimensions by module path, in the order of energies."""
    return {
        path: role
        for path, role, _ in family.modules(num_hidden_layers)
        if isinstance(role, Norm) and role.dim == 'hidden'
    }


def gain_factors(energies: Tensor, kept: Tensor | None, values: Tensor, reads: Tensor) -> Tensor:
    """Factors of the norms' gains under a hidden mask.

    Args:
        energies (Tensor): float32 [norms, hidden].
        kept (Tensor | None): int64 [kept]; None keeps all.
        values (Tensor): float32 [kept], the mask where it is not zero.
        reads (Tensor): bool [norms]: which of them read the stream, whose writers the mask scales.

    Returns:
        Tensor: float32 [norms]; one for a norm that was never given anything but zeros.
    """
    left = energies if kept is None else energies.index_select(1, kept)
    scaled = (left * values.square()).sum(1)  # not a matrix product, which autocast would round to bfloat16
    left = torch.where(reads, scaled, left.sum(1)) / left.shape[1]
    whole = energies.mean(1)
    return torch.where(whole > 0, left / whole.clamp(min=torch.finfo(whole.dtype).tiny), 1.0).sqrt()
