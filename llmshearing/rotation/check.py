"""Whether a rotated model computes what its source does, before it is called done."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmshearing.rotation.exact import exact_logits
from llmshearing.rotation.folding import common_gain, odd_axes
from llmshearing.rotation.moments import stream_device
from llmshearing.rotation.stream import stream_parts
from llmshearing.scaling.loss import sequence_losses

__all__ = [
    'LARGEST_RAISE',
    'TOLERANCE',
    'check_logits',
    'check_raise',
    'held_out_loss',
    'least_common_gain',
    'probe_logits',
    'set_final_gain',
    'try_common_gain',
]

# Allowed difference by the type that was stored. In single precision the largest of any logit, as a fraction of the
# largest logit (float64 is for tests on functions); in half precision every weight is rounded anew, about as far from
# the source as the source is from its own float32, so there the root mean square, as a fraction of the logits'.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
LARGEST_RAISE = 0.01  # nats that a tied final norm with one common gain may cost
PROBE = 512  # tokens


def set_final_gain(model: PreTrainedModel, gain: Tensor | None) -> None:
    """Gives the final norm another gain in use, [hidden], in place; None leaves it."""
    if gain is not None:
        final = stream_parts(model.config).final_norm
        weight = model.get_parameter(f'{final.path}.weight')
        weight.data.copy_(gain.to(weight.device) - final.offset)


def try_common_gain(
    model: PreTrainedModel, own: Tensor, mean_squares: Tensor, count: int, batches: Sequence[Tensor]
) -> tuple[Tensor, Tensor, float]:
    """What one gain for all axes but ``count`` of a tied final norm costs; the model is then as it was.

    Args:
        model (PreTrainedModel): Of a rotatable family.
        own (Tensor): Gain in use of its final norm, float64 [hidden]; the model's own copy may be rounded.
        mean_squares (Tensor): Mean square of the final norm's normalised input, [hidden].
        count (int): Axes that keep their own gains.
        batches (Sequence[Tensor]): To measure the loss on, [batch, tokens] each.

    Returns:
        tuple[Tensor, Tensor, float]: These axes, int64; the gain in use, float64 [hidden]; the loss with it.
    """
    fixed = odd_axes(own, mean_squares, count)
    gain = common_gain(own, fixed)
    set_final_gain(model, gain)
    loss = held_out_loss(model, batches)
    set_final_gain(model, own)
    return fixed, gain, loss


def least_common_gain(
    model: PreTrainedModel, own: Tensor, mean_squares: Tensor, count: int, batches: Sequence[Tensor], before: float
) -> tuple[Tensor, Tensor, float]:
    """As :func:`try_common_gain`, with ``count`` doubled until the loss is next to what it was ``before``."""
    while True:
        tried = try_common_gain(model, own, mean_squares, count, batches)
        if tried[-1] - before <= LARGEST_RAISE or count == len(mean_squares):
            return tried
        count = min(2 * count, len(mean_squares))


def check_logits(rotated: Tensor, source: Tensor, stored: torch.dtype, where: str) -> float:
    """Compares logits of both models.

    Args:
        rotated (Tensor): [batch, tokens, vocabulary].
        source (Tensor): The same of the source.
        stored (torch.dtype): Type of the rotated weights in their files.
        where (str): The rotated folder, for the message.

    Returns:
        float: Largest absolute difference.

    Raises:
        ValueError: If they differ by more than rounding explains.
    """
    difference = (rotated.double() - source.double()).abs()
    largest = difference.max().item()
    if stored in (torch.bfloat16, torch.float16):
        what, got = 'root mean square, of that of the logits', _rms(difference) / max(_rms(source.double()), 1e-12)
    else:
        what, got = 'largest, of the largest logit', largest / max(1.0, source.abs().max().item())
    if not got <= TOLERANCE[stored]:
        raise ValueError(
            f"{where}: logits differ from the source's by {got:.3g} ({what}), allowed is "
            f'{TOLERANCE[stored]:.3g}; nothing was written. Please report this source.'
        )
    return largest


def check_raise(before: float, after: float, fixed: int, hidden: int) -> None:
    """Refuses a common gain for the tied final norm that costs too much.

    Raises:
        ValueError: Saying how many fixed axes to try.
    """
    if not after - before <= LARGEST_RAISE:
        raise ValueError(
            f'with {fixed} fixed axes and one gain for all others, the final norm of the tied source costs '
            f'{after - before:.4f} nats before any cut, allowed is {LARGEST_RAISE}. More fixed axes cost less: try '
            f'--fixed-axes {min(hidden, max(2 * fixed, 16))}; or --untie, which gives the LM head weights of its own.'
        )


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, batches: Sequence[Tensor]) -> float:
    """Mean next-token cross-entropy in nats, every token counting the same."""
    sums: list[float] = []
    device = stream_device(model, stream_parts(model.config))
    for ids in batches:
        ids = ids.to(device)
        sums += sequence_losses(model(input_ids=ids, use_cache=False).logits, ids)
    return math.fsum(sums) / sum(ids.numel() - len(ids) for ids in batches)


def probe_logits(model: PreTrainedModel, batches: list[Tensor]) -> Tensor:
    """Logits on the beginning of the first batch."""
    ids = batches[0]
    rows = max(1, PROBE // ids.shape[1])
    return exact_logits(model, ids[:rows, :PROBE])


def _rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()
