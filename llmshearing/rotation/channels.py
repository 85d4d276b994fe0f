"""Inner channels of mixers that have as many as the stream has dimensions, such as LFM2's short convolutions.

A channel goes with the hidden dimension at its place, and a rotation puts the directions that matter most in front. So
it puts the channels that matter most in front as well, layer by layer: their order is free, because a channel computes
by itself. What matters is told by the weights alone, by the product of the norms of all that a channel goes through.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from llmshearing.models.roles import Linear, PerUnit, Role

__all__ = ['Channels', 'channels_among']

COPIES = {'channels': 1, 'three_channels': 3}


@dataclasses.dataclass(frozen=True)
class Channels:
    """The weights of one mixer that run along its channels.

    Attributes:
        sides (Mapping[str, tuple[int, int]]): By module path: which dimension of the weight they are, and how many
            times they come there, one after the other.
    """

    sides: Mapping[str, tuple[int, int]]

    def order(self, weight_of: Callable[[str], Tensor]) -> Tensor:
        """Channels by falling product of the norms of their weights, int64 [channels].

        Args:
            weight_of (Callable): Weight of a module by its path.
        """
        norms = []
        for path, (side, copies) in self.sides.items():
            weight = weight_of(path).double().movedim(side, 0).flatten(1)
            norms.append(weight.norm(dim=1).view(copies, -1).prod(0))
        return math.prod(norms[1:], start=norms[0]).argsort(descending=True, stable=True)

    def taken(self, path: str, kind: str, tensor: Tensor, channels: Tensor, count: int) -> Tensor:
        """A weight or bias of one of the modules with the named channels alone, in their order.

        Args:
            path (str): Of the module.
            kind (str): ``'weight'`` or ``'bias'``.
            tensor (Tensor): It.
            channels (Tensor): Which to take, int64.
            count (int): Channels that there are.
        """
        side, copies = self.sides[path]
        if kind == 'bias' and side:
            return tensor  # of a projection from the channels to the stream
        index = torch.cat([channels + count * copy for copy in range(copies)])
        return tensor.index_select(side, index.to(tensor.device))


def channels_among(roles: Mapping[str, Role]) -> Channels | None:
    """The channels of a layer, from its modules by path; None where it has none."""
    sides = {}
    for path, role in roles.items():
        if isinstance(role, (Linear, PerUnit)):
            dims = (role.rows, role.columns) if isinstance(role, Linear) else (role.dim,)
            sides.update((path, (side, COPIES[dim])) for side, dim in enumerate(dims) if dim in COPIES)
    return Channels(sides) if sides else None
