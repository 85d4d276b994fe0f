"""What the residual stream looks like where it is read: second moments of the normalised stream, batch by batch.

Norms do not read x but ``x_hat = x / rms(x)``; only the directions that x_hat fills matter to what follows. Normalised,
every token of every layer counts the same. Moments of x itself are ruled by the last layers and by a few massive
activations (Sun et al. 2024, arXiv 2402.17762), which costs 0.4 to 0.9 nats where others did it so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmshearing.data.mds import foreign_id
from llmshearing.rotation.stream import StreamParts, stream_parts

__all__ = ['StreamMoments', 'stream_device', 'stream_mean_squares', 'stream_moments']


@dataclasses.dataclass
class StreamMoments:
    """Sums over tokens, so that batches add up.

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


@torch.no_grad()
def stream_moments(
    model: PreTrainedModel, batches: Iterable[Tensor], moments: StreamMoments | None = None
) -> StreamMoments:
    """Second moments of the normalised stream at all reading norms.

    Args:
        model (PreTrainedModel): A causal language model of a rotatable family, in evaluation mode.
        batches (Iterable[Tensor]): Token ids [batch, tokens].
        moments (StreamMoments | None): Of earlier batches; added to in place.

    Raises:
        ValueError: For a family that cannot be rotated, or token ids that the model does not have.
    """
    parts = stream_parts(model.config)
    if moments is None:
        moments = StreamMoments.zeros(len(parts.norms), parts.hidden_size, stream_device(model, parts))

    def see(norm: int, rows: Tensor) -> None:
        rows = rows.double()
        moments.squares[norm] += rows.square().sum(0)
        moments.covariance += rows.T @ rows

    moments.tokens += _observe(model, batches, see)
    return moments


@torch.no_grad()
def stream_mean_squares(model: PreTrainedModel, batches: Iterable[Tensor], basis: Tensor | None = None) -> Tensor:
    """Mean squares of the normalised stream per reading norm and hidden dimension.

    The share of energy that a cut to the dimensions K keeps at a norm is ``row[K].sum() / row.sum()``; the norm's gain
    times ``sqrt(d / d' * share)`` gives what is kept the size it had.

    Args:
        model (PreTrainedModel): A causal language model of a rotatable family, in evaluation mode.
        batches (Iterable[Tensor]): As for :func:`stream_moments`.
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

    tokens = _observe(model, batches, see)
    return squares / max(tokens, 1)


def _observe(model: PreTrainedModel, batches: Iterable[Tensor], see: Callable[[int, Tensor], None]) -> int:
    """Calls ``see(norm, x_hat)`` for each reading norm in a forward pass of every batch; returns the number of tokens.

    ``x_hat`` is the norm's normalised input [tokens, hidden], in float32 or wider.
    """
    parts, tokens = stream_parts(model.config), 0
    vocabulary = model.get_input_embeddings().get_parameter('weight').shape[0]
    decoder = model.get_submodule(parts.final_norm.path.rpartition('.')[0])  # without the LM head, which nothing needs
    epsilon = float(getattr(model.config, 'rms_norm_eps', getattr(model.config, 'norm_eps', 0.0)))

    def before(norm: int, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        x = x if x.dtype == torch.float64 else x.float()
        see(norm, (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)).flatten(0, 1))

    with ExitStack() as hooks:
        for number, norm in enumerate(parts.norms):
            hooks.enter_context(model.get_submodule(norm.path).register_forward_pre_hook(partial(before, number)))
        for ids in batches:
            wrong = foreign_id(ids, vocabulary)
            if wrong is not None:
                raise ValueError(
                    f'token {wrong} is outside the vocabulary of {vocabulary}; the data were prepared with another '
                    'tokenizer: prepare them with the one of this model.'
                )
            decoder(input_ids=ids.to(stream_device(model, parts)), use_cache=False)
            tokens += ids.numel()
    return tokens


def stream_device(model: PreTrainedModel, parts: StreamParts) -> torch.device:
    """Where the model computes: where its final norm is. Of a paged model other weights are nowhere."""
    return model.get_parameter(f'{parts.final_norm.path}.weight').device
