"""A subspace learned by the language-model loss: which kept directions cost least, with all weights frozen.

The cut model's weights are ``E U``, ``W U`` and ``U^T W`` for U [hidden, kept] with orthonormal columns, so the
gradient of its loss reaches U through every weight at once. Only the subspace matters, so the gradient's part inside
it is projected out; a step moves U by about 2 % of its length (the gradient's running mean over the root mean square of
that mean's norm, one number, so that no coordinate is treated apart), and the polar factor brings it back to
orthonormal columns. Batches of 1,280 tokens agree so little that the mean is a third as long as a gradient.
Gains are those that the cut itself makes (:mod:`~llmshearing.models.gains`): a factor learned beside U that no cut
applies costs 0.04 to 0.16 nats on small models.

With tied embeddings the fixed axes among the kept ones stay, and U is learned among the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from transformers import PreTrainedModel

from llmshearing.rotation.basis import NO_AXES
from llmshearing.rotation.channels import Channels
from llmshearing.rotation.folding import folded_gains
from llmshearing.rotation.stream import StreamParts, stream_parts

__all__ = ['SubspaceLearner', 'cut_loss', 'cut_parameters', 'folded_parameters', 'polar_factor']

LossOf = Callable[[Tensor], Tensor]  # of a subspace
STEP = 0.02  # change of U in a step, as a fraction of its length
DECAY = 0.9  # of the running means


@torch.no_grad()
def folded_parameters(model: PreTrainedModel, final_gain: Tensor | None = None) -> dict[str, Tensor]:
    """All parameters of a model with the gains folded, not yet rotated; norms hold one number in use, [hidden].

    Args:
        model (PreTrainedModel): Of a rotatable family; not changed.
        final_gain (Tensor | None): Gain of the final norm where the LM head stays tied, [hidden]; it is not folded.

    Returns:
        dict[str, Tensor]: By parameter name, the LM head's included; gains as they are in use, without offset.
    """
    parts = stream_parts(model.config)
    state = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    for norm in parts.norms:
        weight = state[f'{norm.path}.weight']
        if norm == parts.final_norm and final_gain is not None:
            state[f'{norm.path}.weight'] = final_gain.to(weight)
            continue
        scale, gain = folded_gains(norm, state.__getitem__)
        for name in (f'{reader}.weight' for reader in norm.readers):
            state[name] = state[name] * (gain / scale).to(state[name])
        state[f'{norm.path}.weight'] = torch.full_like(weight, scale)
    for channels in parts.channels:
        order = channels.order(lambda path: state[f'{path}.weight'])
        for name, path, kind in _along(channels, state):
            state[name] = channels.taken(path, kind, state[name], order, len(order))
    return state


def _along(channels: Channels, state: Mapping[str, Tensor]) -> list[tuple[str, str, str]]:
    """Name, module path and kind of the parameters of a mixer that run along its channels."""
    names = [(f'{path}.{kind}', path, kind) for path in channels.sides for kind in ('weight', 'bias')]
    return [each for each in names if each[0] in state]


def cut_parameters(
    parts: StreamParts, folded: Mapping[str, Tensor], subspace: Tensor, factors: Tensor
) -> dict[str, Tensor]:
    """Parameters of the model cut to a subspace, differentiable in the subspace.

    Args:
        parts (StreamParts): Parts of the source.
        folded (Mapping[str, Tensor]): :func:`folded_parameters`.
        subspace (Tensor): U, orthonormal columns, [hidden, kept].
        factors (Tensor): What each reading norm's gain is multiplied by, [reading norms].
    """
    readers, writers = {parts.embedding, *parts.norm_of}, set(parts.writers)
    norms = {norm.path: number for number, norm in enumerate(parts.norms)}
    mixed = subspace.square().T
    result = {}
    for name, tensor in folded.items():
        path, _, kind = name.rpartition('.')
        cast = subspace.to(tensor.dtype)
        if path in readers and kind == 'weight':
            tensor = tensor @ cast
            if path == parts.embedding and parts.scales_embedding:  # the cut model uses the root of its own width
                tensor = tensor * math.sqrt(subspace.shape[1] / subspace.shape[0])
        elif path in writers:
            tensor = cast.T @ tensor
        elif path in norms:
            norm = parts.norms[norms[path]]
            tensor = (mixed @ tensor.to(mixed.dtype) * factors[norms[path]] - norm.offset).to(tensor.dtype)
        result[name] = tensor
    leading = torch.arange(subspace.shape[1])
    for channels in parts.channels:
        for name, path, kind in _along(channels, result):
            result[name] = channels.taken(path, kind, result[name], leading, parts.hidden_size)
    return result


def cut_loss(model: PreTrainedModel, parameters: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats of ``model`` computing with other parameters.

    Args:
        model (PreTrainedModel): The source.
        parameters (Mapping[str, Tensor]): :func:`cut_parameters`.
        ids (Tensor): Token ids [batch, tokens].
    """
    output = functional_call(model, dict(parameters), (), {'input_ids': ids, 'use_cache': False}, tie_weights=False)
    return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def polar_factor(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, ``M (M^T M)^(-1/2)``, in float64."""
    matrix = matrix.double()
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    return matrix @ (vectors * values.rsqrt()) @ vectors.T


@dataclasses.dataclass
class SubspaceLearner:
    """U and what its steps remember; plain tensors, so that learning can go on where it was stopped.

    Attributes:
        free (Tensor): The learned columns in source coordinates, float64 [hidden, learned].
        axes (Tensor): Kept fixed axes as columns, float64 [hidden, fixed kept].
        space (Tensor): Orthonormal columns in which ``free`` may move, float64 [hidden, dimensions].
        momentum (Tensor): Running mean of the projected gradient, float64 [hidden, learned].
        square (float): Running mean of its squared norm, that of the momentum.
        steps (int): Steps made.
    """

    free: Tensor
    axes: Tensor
    space: Tensor
    momentum: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))
    square: float = 0.0
    steps: int = 0

    @classmethod
    def start(cls, basis: Tensor, kept: int, fixed: Tensor = NO_AXES) -> SubspaceLearner:
        """Begins at the leading directions of a basis.

        Args:
            basis (Tensor): Q, float64 [hidden, hidden].
            kept (int): Directions to keep.
            fixed (Tensor): Axes of Q that stay axes, int64. Default: none.

        Raises:
            ValueError: If ``kept`` is not between 1 and hidden - 1.
        """
        hidden = basis.shape[0]
        if not 0 < kept < hidden:
            raise ValueError(f'a subspace of {kept} dimensions of {hidden}; expected 1 to {hidden - 1}.')
        basis = basis.double()
        is_axis = basis[fixed.to(basis.device)].abs().sum(0) > 0.5
        leading = torch.arange(hidden, device=basis.device) < kept
        free = basis[:, leading & ~is_axis]
        return cls(free, basis[:, leading & is_axis], basis[:, ~is_axis], momentum=torch.zeros_like(free))

    def subspace(self) -> Tensor:
        """U, float64 [hidden, kept]."""
        return torch.cat([self.free, self.axes], 1)

    def step(self, loss_of: LossOf, size: float = 1.0) -> float:
        """One step down the loss.

        Args:
            loss_of (Callable): Loss of a subspace, float32 [hidden, kept].
            size (float): Fraction of :data:`STEP` to make, for a schedule.

        Returns:
            float: The loss before the step.

        Raises:
            ValueError: If the loss or its gradient is not finite.
        """
        free = self.free.float().requires_grad_()
        loss = loss_of(torch.cat([free, self.axes.float()], 1))
        (gradient,) = torch.autograd.grad(loss, free)
        if not (loss.isfinite() and gradient.isfinite().all()):
            raise ValueError(
                f'the loss of the cut model is {loss.item()}, or its gradient is not finite, after '
                f'{self.steps} steps; the model or the data are damaged.'
            )
        self._move(gradient.double().contiguous(), size)
        return loss.item()

    def _move(self, gradient: Tensor, size: float) -> None:
        self.steps += 1
        begun = 1 - DECAY**self.steps  # all means began at zero
        self.momentum = DECAY * self._projected(self.momentum) + (1 - DECAY) * self._projected(gradient)
        direction = self.momentum / begun
        self.square = DECAY * self.square + (1 - DECAY) * direction.square().sum().item()
        if self.square > 0:
            length = size * STEP * math.sqrt(self.free.shape[1])
            self.free = polar_factor(self.free - length / math.sqrt(self.square / begun) * direction)

    def _projected(self, direction: Tensor) -> Tensor:
        """The part that changes the subspace, within the space in which it may move."""
        direction = self.space @ (self.space.T @ direction)
        return direction - self.free @ (self.free.T @ direction)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What is saved, by name."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            yield field.name, value.cpu() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str = 'cpu') -> SubspaceLearner:
        """The learner that :meth:`tensors` was called on."""
        matrices = ('free', 'axes', 'space', 'momentum')
        names = [field.name for field in dataclasses.fields(cls)]
        values = {name: tensors[name].to(device) if name in matrices else tensors[name].item() for name in names}
        return cls(**{**values, 'steps': int(values['steps'])})
