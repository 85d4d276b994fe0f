"""What the residual stream looks like where it is read: second moments of the normalised stream, batch by batch.

Norms do not read x but ``x_hat = x / rms(x)``; only the directions that x_hat fills matter to what follows. Normalised,
every token of every layer counts the same. Moments of x itself are ruled by the last layers and by a few massive
activations (Sun et al. 2024, arXiv 2402.17762), which costs 0.4 to 0.9 nats where others did it so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from llmshearing.data.mds import check_ids
from llmshearing.rotation.stream import StreamParts, stream_parts

__all__ = ['StreamMoments', 'norm_epsilon', 'stream_device', 'stream_mean_squares', 'stream_moments']

Batch = Tensor | Mapping[str, Tensor]


@dataclasses.dataclass
class StreamMoments:
    """Sums over tokens, so that batches and ranks add up.

    Attributes:
        covariance (Tensor): Outer products of x_hat, summed over tokens and reading norms, float64 [hidden, hidden].
        squares (Tensor): Squares of x_hat, summed over tokens, float64 [reading norms, hidden].
        tokens (int): Tokens seen.
    """

    covariance: Tensor
    squares: Tensor
    tokens: int = 0

    @classmethod
    def zeros(cls, norms: int, hidden_size: int, device: torch.device | str = 'cpu') -> StreamMoments:
        """Of no token yet."""
        return cls(
            torch.zeros(hidden_size, hidden_size, dtype=torch.float64, device=device),
            torch.zeros(norms, hidden_size, dtype=torch.float64, device=device),
        )

    def mean_squares(self) -> Tensor:
        """Mean square of x_hat per reading norm and dimension, float64 [reading norms, hidden]."""
        return self.squares / max(self.tokens, 1)

    def add(self, other: StreamMoments) -> None:
        """Adds those of other tokens in place."""
        self.covariance += other.covariance.to(self.covariance)
        self.squares += other.squares.to(self.squares)
        self.tokens += other.tokens

    def over_ranks(self) -> StreamMoments:
        """The sums over all ranks. A collective."""
        if not distributed.is_initialized():
            return self
        tokens = torch.tensor([self.tokens], dtype=torch.int64, device=self.squares.device)
        moments = StreamMoments(self.covariance.clone(), self.squares.clone())
        for tensor in (moments.covariance, moments.squares, tokens):
            distributed.all_reduce(tensor)
        moments.tokens = int(tokens.item())
        return moments


@torch.no_grad()
def stream_moments(model: PreTrainedModel, batches: Iterable[Batch]) -> StreamMoments:
    """Second moments of the normalised stream at all reading norms.

    Args:
        model (PreTrainedModel): A causal language model of a rotatable family, in evaluation mode.
        batches (Iterable[Tensor | Mapping]): Token ids [batch, tokens], or mappings with ``input_ids`` and perhaps
            ``attention_mask``; positions that it masks are left out.

    Raises:
        ValueError: For a family that cannot be rotated, or token ids that the model does not have.
    """
    parts = stream_parts(model.config)
    moments = StreamMoments.zeros(len(parts.norms), parts.hidden_size, stream_device(model, parts))

    def see(norm: int, rows: Tensor) -> None:
        rows = rows.double()
        moments.squares[norm] += rows.square().sum(0)
        moments.covariance += rows.T @ rows

    moments.tokens = _observe(model, batches, see)
    return moments


@torch.no_grad()
def stream_mean_squares(model: PreTrainedModel, batches: Iterable[Batch], basis: Tensor | None = None) -> Tensor:
    """Mean squares of the normalised stream per reading norm and hidden dimension.

    The share of energy that a cut to the dimensions K keeps at a norm is ``row[K].sum() / row.sum()``; the norm's gain
    times ``sqrt(d / d' * share)`` gives what is kept the size it had.

    Args:
        model (PreTrainedModel): A causal language model of a rotatable family, in evaluation mode.
        batches (Iterable[Tensor | Mapping]): As for :func:`stream_moments`.
        basis (Tensor | None): Directions, [hidden, dimensions]; default: the coordinates.

    Returns:
        Tensor: float64 [reading norms, hidden or dimensions], norms in the order of the forward pass, the final one
        last. Rows sum to hidden_size where the basis is complete.
    """
    parts = stream_parts(model.config)
    width = parts.hidden_size if basis is None else basis.shape[1]
    squares = torch.zeros(len(parts.norms), width, dtype=torch.float64, device=stream_device(model, parts))

    def see(norm: int, rows: Tensor) -> None:
        rows = rows if basis is None else rows @ basis.to(rows)
        squares[norm] += rows.double().square().sum(0)

    return squares / max(_observe(model, batches, see), 1)


def _observe(model: PreTrainedModel, batches: Iterable[Batch], see: Callable[[int, Tensor], None]) -> int:
    """Calls ``see(norm, x_hat)`` for each reading norm in a forward pass of every batch.

    ``x_hat`` is the norm's normalised input [tokens, hidden], without the tokens that a mask leaves out, in float32 or
    wider. Returns the number of tokens.
    """
    parts, tokens, wanted = stream_parts(model.config), 0, None
    decoder = model.get_submodule(parts.final_norm.path.rpartition('.')[0])  # without the LM head, which nothing needs

    def before(norm: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        x = x if x.dtype == torch.float64 else x.float()
        rows = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm_epsilon(module))).flatten(0, 1)
        see(norm, rows if wanted is None else rows[wanted])

    with ExitStack() as hooks:
        for number, norm in enumerate(parts.norms):
            hooks.enter_context(model.get_submodule(norm.path).register_forward_pre_hook(partial(before, number)))
        for batch in batches:
            ids, mask = _unpacked(batch, model, parts)
            wanted = None if mask is None else mask.flatten().bool()
            decoder(input_ids=ids, attention_mask=mask, use_cache=False)
            tokens += ids.numel() if wanted is None else int(wanted.sum().item())
    return tokens


def norm_epsilon(norm: nn.Module) -> float:
    """What an RMSNorm of transformers adds to the mean square under its root."""
    return getattr(norm, 'variance_epsilon', None) or getattr(norm, 'eps', None) or 0.0


def stream_device(model: PreTrainedModel, parts: StreamParts) -> torch.device:
    """Where the model computes: where its final norm is. Of a paged model other weights are nowhere."""
    return model.get_parameter(f'{parts.final_norm.path}.weight').device


def _unpacked(batch: Batch, model: PreTrainedModel, parts: StreamParts) -> tuple[Tensor, Tensor | None]:
    ids, mask = (batch, None) if isinstance(batch, Tensor) else (batch['input_ids'], batch.get('attention_mask'))
    vocabulary = model.get_input_embeddings().get_parameter('weight').shape[0]
    check_ids('a batch', ids, vocabulary)
    device = stream_device(model, parts)
    return ids.to(device), None if mask is None else mask.to(device)
