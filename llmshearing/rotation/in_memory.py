"""A model in memory turned to the principal directions of its stream, for whoever cuts it right away.

``llmshearing rotate`` writes a folder, goes on after a kill and compares in float64. Here nothing is written, and the
loss on the same text before and after is the check.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmshearing.rotation.basis import NO_AXES, principal_basis
from llmshearing.rotation.check import LARGEST_RAISE, held_out_loss, least_common_gain
from llmshearing.rotation.folding import gain_in_use
from llmshearing.rotation.moments import stream_moments
from llmshearing.rotation.rotate import Rotation, rotate_model
from llmshearing.rotation.settings import default_fixed_axes
from llmshearing.rotation.stream import stream_parts

__all__ = ['Rotated', 'rotate_in_memory']


@dataclasses.dataclass(frozen=True)
class Rotated:
    """What a rotation did.

    Attributes:
        fixed_axes (int): Axes of a tied model that stay as they are.
        loss_before (float): Nats per token on the first batch.
        loss_after (float): The same of the rotated model.
    """

    fixed_axes: int
    loss_before: float
    loss_after: float


@torch.no_grad()
def rotate_in_memory(model: PreTrainedModel, batches: Sequence[Tensor]) -> Rotated:
    """Rotates a model in place. A tied LM head stays tied, with as many fixed axes as its gains ask for.

    Args:
        model (PreTrainedModel): Of a family that can be rotated (:mod:`~llmshearing.rotation.stream`), in evaluation
            mode.
        batches (Sequence[Tensor]): Token ids to look at, [batch, tokens] each.

    Raises:
        ValueError: If the rotated model does not compute what the model did; it is then not to be used.
    """
    before = held_out_loss(model, batches[:1])
    moments = stream_moments(model, batches)
    fixed, gain = NO_AXES, None
    parts = stream_parts(model.config)
    if parts.tied:
        own, squares = gain_in_use(parts.final_norm, model.get_parameter).cpu(), moments.mean_squares()[-1].cpu()
        count = default_fixed_axes(len(squares))
        fixed, gain, _ = least_common_gain(model, own, squares, count, batches[:1], before)
    rotate_model(model, Rotation(principal_basis(moments.covariance, fixed), gain))
    after = held_out_loss(model, batches[:1])
    if not after - before <= 2 * LARGEST_RAISE:
        raise ValueError(
            f'rotated, the model has a loss of {after:.4f} nats instead of {before:.4f} before anything is cut; cut it '
            'in its own basis with --no-rotate, and please report this source.'
        )
    return Rotated(len(fixed), before, after)
