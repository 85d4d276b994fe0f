"""Masks that all ranks agree on to the last bit.

Every rank computes the same masks from the same numbers. But nodes with different processors may round a logarithm
differently, and one unit in the last place decides whether a gate is zero: a layer that one rank runs and another does
not would leave FSDP2's collectives waiting for ever. So rank 0 decides, with one small collective per set of masks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from composer.devices import Device
from composer.utils import dist
from torch import Tensor

from llmshearing.models.cuttable import Cutter

__all__ = ['average_mask_gradients', 'average_over_ranks', 'take_from_rank_0']


@torch.no_grad()
def take_from_rank_0(values: Mapping[str, Tensor], device: Device) -> dict[str, Tensor]:
    """Overwrites ``values`` with those of rank 0, in place, and returns them. A collective if there are more ranks.

    Args:
        values (Mapping[str, Tensor]): float32 on CPU; names and shapes are the same on every rank.
        device (Device): The run's, on which its process group communicates.
    """
    if dist.get_world_size() > 1:
        flat = device.tensor_to_device(torch.cat([value.flatten() for value in values.values()]))
        dist.broadcast(flat, src=0)
        parts = flat.cpu().split([value.numel() for value in values.values()])
        for value, part in zip(values.values(), parts):
            value.copy_(part.view_as(value))
    return dict(values)


def average_over_ranks(tensor: Tensor) -> None:
    """Averages a tensor over ranks, in place. A collective."""
    dist.all_reduce(tensor, reduce_operation='SUM')
    tensor.div_(dist.get_world_size())


def average_mask_gradients(cutter: Cutter, batch: int) -> dict[str, Tensor]:
    """Gradients of a batch's masks by axis, averaged over ranks. A collective.

    Raises:
        FloatingPointError: If one is not finite, on every rank; names the batch and the axes.
    """
    gradients = cutter.mask_gradients(reduce=average_over_ranks)
    broken = [axis for axis, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    if broken:
        raise FloatingPointError(
            f'batch {batch}: the gradient of the {", ".join(broken)} mask is not finite on some rank. The checkpoints '
            'saved so far are intact; resume from the last one with a lower learning rate or other data.'
        )
    return gradients
