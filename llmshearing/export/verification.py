"""After writing, before reporting: the folder must hold and compute what was meant.

A model that is small enough is opened by transformers, strictly, and its logits are compared with the masked model's.
Rounding of the weights is no mistake, and no bound on what it does to logits would find small ones: so each tensor is
held bit for bit against the rounding of what was meant, which then takes its place before logits are computed.
For any size, the written tensors are read back one at a time and compared bit for bit with the cut of the source's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from llmshearing.checkpoints.parameter_shapes import parameter_shapes
from llmshearing.checkpoints.source import read_weights
from llmshearing.export.model_folder import check_finite, open_strictly
from llmshearing.export.probe import Probe, probe_input
from llmshearing.models.stored_names import stored_tensors

__all__ = ['verify_folder', 'verify_tensors']

# Largest difference of any logit, as a fraction of the largest one, in float32.
TOLERANCE = 1e-5
GPU_TOLERANCE = 1e-4  # with sums in another order than the CPU's
# A forward pass in half precision is off by a quarter of the largest logit in single places (SmolLM2-135M in bfloat16),
# so there the logits are compared as a whole: the root mean square of the difference, each position about its mean, as
# a fraction of that of the logits. bfloat16 gives 0.05 there, a wrong head 0.17, a missing layer 0.3; smaller mistakes
# drown in the rounding, and are found by `llmshearing export`, which compares in float32 and every tensor bit for bit.
HALF_PRECISION_TOLERANCE = 0.15


def verify_folder(
    folder: Path, expected: Probe, dtype: torch.dtype, meant: Iterable[tuple[str, Tensor]] | None = None
) -> float:
    """Opens ``folder`` and compares its logits with the masked model's.

    Args:
        folder (Path): The written folder.
        expected (Probe): What the masked model computed.
        dtype (torch.dtype): Precision in which the folder was written.
        meant (Iterable[tuple[str, Tensor]] | None): Its parameters before they were rounded to ``dtype``, by their
            names in memory. Default: ``None``; weights of half precision are then compared as they were rounded.

    Returns:
        float: Largest absolute difference, without that of rounding where ``meant`` is given.

    Raises:
        ValueError: If the folder does not open strictly, holds another tensor or computes something else.
    """
    model = open_strictly(folder)
    if meant is not None:
        _undo_rounding(folder, model, meant, dtype)
    with torch.no_grad():
        logits = model(probe_input(expected.logits.shape[-1], expected.logits.shape[1])).logits.float()
    largest = (logits - expected.logits).abs().max().item()
    if expected.computed_in == torch.float32 and (dtype == torch.float32 or meant is not None):
        what, difference, advice = 'largest difference', largest, ''
        fraction = GPU_TOLERANCE if expected.on_gpu else TOLERANCE
        allowed = fraction * max(1.0, expected.logits.abs().max().item())
    else:
        what, allowed = 'relative root mean square', HALF_PRECISION_TOLERANCE
        difference = (_spread(logits - expected.logits) / _spread(expected.logits)).item()
        advice = ' Whether that is rounding alone, `llmshearing export CHECKPOINT --dtype float32` tells.'
    if not difference <= allowed:
        raise ValueError(
            f'what was written computes logits that differ from the masked model by {difference:.3g} ({what}), '
            f'allowed is {allowed:.3g}.{advice}'
        )
    return largest


def _undo_rounding(folder: Path, model: nn.Module, meant: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """Gives an opened model the parameters that were meant; refuses one whose rounding was not what was opened."""
    held = dict((*model.named_buffers(), *model.named_parameters(remove_duplicate=False)))
    for name, tensor in meant:
        if not torch.equal(held[name], tensor.to(dtype).float()):
            raise ValueError(f'{folder}: {name} was read back with other values than were meant.')
        held[name].detach().copy_(tensor)


def _spread(logits: Tensor) -> Tensor:
    """Root mean square about the mean of each position, which no probability depends on."""
    return (logits - logits.mean(-1, keepdim=True)).square().mean().sqrt()


def verify_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], convert: Callable[[Tensor], Tensor]) -> int:
    """Reads the folder's tensors back, one at a time, and compares them bit for bit with those that were meant.

    Args:
        folder (Path): The written folder, with its config.
        tensors (Iterable[tuple[str, Tensor]]): What was meant, by name.
        convert (Callable): What was done to each of them before it was written.

    Returns:
        int: Number of tensors compared.

    Raises:
        ValueError: Naming a tensor that is missing, extra, of another shape than the folder's config
            says, not finite, or not equal.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    shapes = parameter_shapes(config, in_files=True)
    written = read_weights(folder, config, shapes)
    shapes.check(str(folder), written)
    compared = 0
    for name, tensor in (part for item in tensors for part in stored_tensors(config, *item)):
        if name not in written:
            raise ValueError(f'{folder}: {name} was not written.')
        meant = convert(tensor)
        check_finite(name, tensor, meant)
        if not torch.equal(written[name].read(), meant):
            raise ValueError(f'{folder}: {name} was read back with other values than were written; check the disk.')
        compared += 1
    if compared != len(written):
        raise ValueError(f'{folder}: {len(written)} tensors were written, {compared} were meant.')
    return compared
