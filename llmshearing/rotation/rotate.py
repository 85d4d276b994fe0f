"""A model in another basis of its residual stream: one tensor in, one tensor out, and the same function.

Readers, embedding and LM head become ``W diag(g) / s Q``, writers ``Q^T W`` and ``Q^T b``, every reading norm one gain
s (:mod:`llmshearing.rotation.folding`); inner channels of some mixers change places
(:mod:`llmshearing.rotation.channels`); everything else stays. Products are made in float64, a block of rows at a time,
and rounded once to the stored type: rotating in bfloat16 would cost as much as the rotation gains. What is stored in
half precision is multiplied in float32 on a CPU: that takes 0.6 of the time (by hand), and its rounding is a
ten-thousandth of what follows. (GPUs may round products in float32 to TensorFloat-32.) s is rounded first and
the readers are divided by what was stored, so its rounding costs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmshearing.rotation.folding import ROWS, folded_gains
from llmshearing.rotation.stream import ReadingNorm, StreamParts, stream_parts

__all__ = ['Rotation', 'rotate_model', 'rotated_tensors']

Get = Callable[[str], Tensor]


@dataclasses.dataclass(frozen=True)
class Rotation:
    """What is done to a model's residual stream.

    Attributes:
        basis (Tensor): Q, float64 [hidden, hidden]; the new stream is ``x Q``.
        final_gain (Tensor | None): Gain of the final norm by source coordinate where the LM head stays tied, float64
            [hidden]: its own on the fixed axes, one number on all others, which alone Q mixes. None where it is folded.
    """

    basis: Tensor
    final_gain: Tensor | None = None


def _times_basis(weight: Tensor, basis: Tensor, gain: Tensor | None = None) -> Tensor:
    """``weight diag(gain) basis`` in the weight's dtype, computed on the basis' device.

    Args:
        weight (Tensor): [out, hidden].
        basis (Tensor): float64 [hidden, directions].
        gain (Tensor | None): float64 [hidden].
    """
    matrix = basis if gain is None else gain.to(basis)[:, None] * basis
    matrix = matrix.to(torch.float32 if weight.dtype.itemsize == 2 and basis.device.type == 'cpu' else torch.float64)
    out = torch.empty(weight.shape[0], basis.shape[1], dtype=weight.dtype, device=weight.device)
    for start in range(0, len(weight), ROWS):
        out[start : start + ROWS] = (weight[start : start + ROWS].to(matrix) @ matrix).to(weight)
    return out


def rotated_tensors(
    parts: StreamParts,
    rotation: Rotation,
    names: Iterable[str],
    get: Get,
    dtype: torch.dtype | None = None,
    device: torch.device | str = 'cpu',
) -> Iterator[tuple[str, Tensor]]:
    """Yields (parameter name, tensor) of the rotated model, in the order of ``names``.

    Args:
        parts (StreamParts): Parts of the source. A tied source gives ``final_gain`` a value in ``rotation``, or is
            untied: then the head's tensor is made from the embedding's, and ``names`` has the head's name.
        rotation (Rotation): What to do.
        names (Iterable[str]): Parameters to write.
        get (Callable): Source parameter by name; read when it is its turn and not kept.
        dtype (torch.dtype | None): Of the written tensors; default: each one's own.
        device (torch.device | str): Where products are computed.

    Raises:
        ValueError: If a parameter holds NaN or infinity; names it.
    """
    rotating = _Rotating(parts, rotation, get, dtype, device)
    for name in names:
        yield name, rotating.rotated(name)


class _Rotating:
    """A rotation in progress; gains of norms and orders of channels are found once. Arguments as above."""

    def __init__(
        self, parts: StreamParts, rotation: Rotation, get: Get, dtype: torch.dtype | None, device: torch.device | str
    ):
        self.rotation, self.get, self.dtype, self.device = rotation, get, dtype, device
        self.basis = rotation.basis.to(device, torch.float64)
        self.norms, self.norm_of = {norm.path: norm for norm in parts.norms}, parts.norm_of
        self.writers, self.channels_of = set(parts.writers), parts.channels_of
        self.final_norm = parts.final_norm
        # A tied head is turned as the embedding is, and the final norm keeps its gain.
        self.turned = {parts.embedding} if rotation.final_gain is None else {parts.embedding, parts.head}
        self._gains: dict[str, tuple[float, Tensor]] = {}
        self._orders: dict[int, Tensor] = {}

    def rotated(self, name: str) -> Tensor:
        """One parameter of the rotated model."""
        path, _, kind = name.rpartition('.')
        tensor = self._checked(name)
        if path in self.channels_of:
            tensor = self._with_channels_in_order(path, kind, tensor)
        target = self.dtype or tensor.dtype
        if path in self.turned:
            tensor = _times_basis(_widened(tensor, target), self.basis)
        elif path in self.norm_of and kind == 'weight':
            scale, gain = self._gain_of(self.norm_of[path])
            tensor = _times_basis(_widened(tensor, target), self.basis, gain / scale)
        elif path in self.writers and kind == 'bias':
            tensor = self.basis.T @ tensor.to(self.device, torch.float64)
        elif path in self.writers:
            tensor = _times_basis(_widened(tensor.T, target), self.basis).T
        elif path in self.norms:
            tensor = self._norm_weight(self.norms[path], tensor)
        return tensor.to('cpu' if self.device != 'cpu' else tensor.device, target).contiguous()

    def _checked(self, name: str) -> Tensor:
        tensor = self.get(name)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f'{name} of the source holds NaN or infinity; a rotation would spread it over the whole tensor. '
                'Take a sound source.'
            )
        return tensor

    def _gain_of(self, norm: ReadingNorm) -> tuple[float, Tensor]:
        """What a norm keeps, as it will be stored, and what is folded."""
        if norm.path not in self._gains:
            scale, gain = folded_gains(norm, self._checked)
            kept_as = self.dtype or self.get(f'{norm.path}.weight').dtype
            stored = torch.tensor(scale - norm.offset, dtype=torch.float64).to(kept_as)
            self._gains[norm.path] = stored.double().item() + norm.offset, gain
        return self._gains[norm.path]

    def _norm_weight(self, norm: ReadingNorm, weight: Tensor) -> Tensor:
        basis, gain = self.rotation.basis, self.rotation.final_gain
        if gain is not None and norm == self.final_norm:
            return basis.double().square().T @ gain.to(basis) - norm.offset
        return torch.full(weight.shape, self._gain_of(norm)[0] - norm.offset, dtype=torch.float64, device=weight.device)

    def _with_channels_in_order(self, path: str, kind: str, tensor: Tensor) -> Tensor:
        channels = self.channels_of[path]
        if id(channels) not in self._orders:
            self._orders[id(channels)] = channels.order(self._folded_weight)
        order = self._orders[id(channels)]
        return channels.taken(path, kind, tensor, order, len(order))

    def _folded_weight(self, path: str) -> Tensor:
        weight = self.get(f'{path}.weight')
        return weight * self._gain_of(self.norm_of[path])[1].to(weight) if path in self.norm_of else weight


def _widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the type that its product is to be rounded to, where that is wider than its own."""
    return tensor if tensor.dtype.itemsize >= dtype.itemsize else tensor.to(dtype)


@torch.no_grad()
def rotate_model(model: PreTrainedModel, rotation: Rotation) -> PreTrainedModel:
    """Rotates a model in place, in its own dtype.

    A tied head stays tied if the rotation has a ``final_gain`` and is untied otherwise.

    Raises:
        ValueError: As :func:`~llmshearing.rotation.stream.stream_parts`, and for NaN or infinity.
    """
    parts = stream_parts(model.config)
    if parts.tied and rotation.final_gain is None:
        model.config.tie_word_embeddings = False
        module = model.get_submodule(parts.head)
        module.weight = torch.nn.Parameter(module.get_parameter('weight').detach().clone())
    # Read while they are written: a norm and its readers are looked at before the first of them changes.
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    device = next(iter(parameters.values())).device
    for name, tensor in rotated_tensors(parts, rotation, list(parameters), parameters.__getitem__, device=device):
        parameters[name].copy_(tensor)
    return model
