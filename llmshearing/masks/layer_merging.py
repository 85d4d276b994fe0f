"""Layers that go: what they added to the residual stream is taken over by the MLP of the last layer before that stays.

A run of layers i + 1 ... j adds ``r`` to the stream that layer i leaves. The MLP of layer i can be made to add what its
intermediate dimensions ``x`` tell of it: with C the ridge regression of ``r`` on ``x`` over the tokens of a batch,

    down_proj.weight += C,    C = S_rx (S_xx + lambda I)^-1,    S = sums of r x^T and x x^T

It is the idea of ReplaceMe (arXiv 2505.02819), which regresses on the *output* of that MLP; its inside is wider than
the stream and tells more. Where the first layers go there is no MLP before them, and they go without; so do all layers
of families whose MLPs write to the stream through a norm, and of mixtures of experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from llmshearing.models.cuttable import Cutter
from llmshearing.models.roles import Family, Linear

__all__ = ['LayerMerging', 'find_gaps', 'mlp_writer', 'solve_ridge']


def find_gaps(kept: Sequence[bool]) -> list[tuple[int, int]]:
    """Runs of layers that go after one that stays: the layer that stays, and the last of those that go."""
    stays, gaps = None, {}
    for layer, is_kept in enumerate(kept):
        if is_kept:
            stays = layer
        elif stays is not None:
            gaps[stays] = layer
    return list(gaps.items())


def mlp_writer(family: Family, layer: int) -> str | None:
    """Module path within a layer of the projection by which its MLP writes to the stream; None where none does so."""
    for path, role in family.roles(layer):
        if isinstance(role, Linear) and role.writes and role.columns == 'intermediate' and role.expert is None:
            return None if family.has_experts else path
    return None


def solve_ridge(squares: Tensor, products: Tensor, ridge: float, tokens: int) -> Tensor:
    """(S_xx + lambda I)^-1 S_xr, float64 [inputs, outputs], of sums over so many tokens; changes ``squares``.

    Lambda is ``ridge`` of the mean square of the inputs, times their number per token.
    """
    squares.diagonal().add_(ridge * len(squares) / tokens * squares.diagonal().mean())
    return torch.cholesky_solve(products, torch.linalg.cholesky(squares))


@dataclasses.dataclass
class _Gap:
    """Sums over the tokens of one run of layers that go."""

    writer: str
    inside: Tensor | None = None  # [tokens, intermediate], of the pass in progress
    stream: Tensor | None = None  # [tokens, hidden]
    squares: Tensor | None = None  # [intermediate, intermediate]
    products: Tensor | None = None  # [intermediate, hidden]
    tokens: int = 0


class LayerMerging:
    """Watches what layers that will go add to the stream during one batch; :meth:`apply` then changes the weights.

    Args:
        cutter (Cutter): Of a model none of whose units are gone yet.
        layers (Tensor): Coming mask of the layers, zeros and ones [layers].
        tokens (int): Tokens per rank to look at; later ones of the batch are passed over.
        paths (Container[str] | None): Modules whose weights may change. Default: all.

    Attributes:
        is_forward (bool): A forward pass of the model is in progress; to be set by whoever watches for that.
    """

    def __init__(self, cutter: Cutter, layers: Tensor, tokens: int, paths: Container[str] | None = None):
        self.is_forward = False
        self._model, self._tokens = cutter.model, tokens
        self._gaps, self._handles = [], []
        # What Granite multiplies all outputs by before they are added.
        self._multiplier = float(getattr(cutter.model.config, 'residual_multiplier', 1.0))
        for stays, last in find_gaps([value != 0 for value in layers.tolist()]):
            writer = mlp_writer(cutter.family, stays)
            before, after = cutter.family.layer_path(stays), cutter.family.layer_path(last)
            if writer is None or not (paths is None or f'{before}.{writer}' in paths):
                continue
            gap = _Gap(f'{before}.{writer}')
            self._gaps.append(gap)
            self._handles += [
                self._model.get_submodule(gap.writer).register_forward_pre_hook(partial(self._see_inside, gap)),
                self._model.get_submodule(before).register_forward_hook(partial(self._see_stream, gap)),
                self._model.get_submodule(after).register_forward_hook(partial(self._see_sum, gap)),
            ]

    def stop(self) -> None:
        """Stops watching."""
        for handle in self._handles:
            handle.remove()

    def apply(self, ridge: float, reduce: Callable[[Tensor], None], ranks: int) -> None:
        """Changes the weights for the layers' absence.

        Args:
            ridge (float): Of the mean square of the MLP's inside, times its width per token.
            reduce (Callable): Averages a tensor over ranks, in place; a collective.
            ranks (int): How many ranks there are.
        """
        for gap in self._gaps:
            if gap.squares is None or gap.products is None:
                continue
            reduce(gap.squares)
            reduce(gap.products)
            shares = solve_ridge(gap.squares.double(), gap.products.double(), ridge, gap.tokens * ranks)
            weight = self._model.get_parameter(f'{gap.writer}.weight')
            change = (shares / self._multiplier).T.to(weight.dtype)
            if isinstance(weight, DTensor):
                change = distribute_tensor(change.contiguous(), weight.device_mesh, weight.placements)
            weight.add_(change)

    def _see_inside(self, gap: _Gap, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.is_forward and gap.tokens < self._tokens:
            gap.inside = self._rows(gap, inputs[0])

    def _see_stream(self, gap: _Gap, module: nn.Module, inputs: Any, out: Any) -> None:
        if gap.inside is not None:
            gap.stream = self._rows(gap, out)

    def _see_sum(self, gap: _Gap, module: nn.Module, inputs: Any, out: Any) -> None:
        if gap.inside is None or gap.stream is None:
            return
        x, added = gap.inside, self._rows(gap, out) - gap.stream
        with torch.autocast(x.device.type, enabled=False):
            gap.squares = x.T @ x + (0 if gap.squares is None else gap.squares)
            gap.products = x.T @ added + (0 if gap.products is None else gap.products)
        gap.tokens += len(x)
        gap.inside = gap.stream = None

    def _rows(self, gap: _Gap, out: Any) -> Tensor:
        """float32 [tokens, width] of what a module was given or gave, up to the tokens that are wanted."""
        x = (out[0] if isinstance(out, tuple) else out).detach()
        return x.reshape(-1, x.shape[-1])[: self._tokens - gap.tokens].float()
