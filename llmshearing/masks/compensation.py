"""Compensation while units go a few at a time: what a unit carried is taken over by the units that stay.

A cut that is made at once is compensated in running order instead (:mod:`~llmshearing.masks.in_order`).

A projection that reads ``x`` and loses its inputs G keeps the inputs K. The best it can do without G is to read what K
tells of them: with C the ridge regression of ``x_G`` on ``x_K`` over the tokens of a training batch,

    weight[:, K] += weight[:, G] @ C,    C = S_GK (S_KK + lambda I)^-1,    S = sum of x x^T

which is the optimal brain surgeon's update for a linear layer (Hassibi and Stork 1993; for language models SparseGPT,
arXiv 2301.00774, and ZipLM, arXiv 2302.04089). The ridge is relative to the mean of the diagonal, so that an input that
hardly ever moves gets no large weight, and the stronger the fewer tokens there are. A norm divides by the size of what
is left, so its gain must be multiplied by how much smaller that has become. Where the cut itself does so
(:mod:`~llmshearing.models.gains`) nothing is left to do; norms over heads, and all norms where no energies were
measured, have their weights changed here: exactly for RMSNorm, for LayerNorm as far as the mean stays.

Nothing but weights changes: masks, cut and export are what they were, and nothing is kept between batches, so a resumed
run does the same. Under FSDP2 every rank changes the columns of its own rows. An embedding that is also the LM head
stays as it is, since what helps the one would harm the other; but where a model multiplies embeddings by the root of
its width (Gemma), they are made larger as the width falls, as what layers add stays as large as it was, and the gain
before a head that is the embedding smaller by as much. Routed experts are left as they are, too, each of which
sees few tokens; routers and shared experts are compensated. Nothing reads a layer alone, so layers go without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmshearing.masks.energies import relative_squares
from llmshearing.models.cuttable import Cutter, one_rank
from llmshearing.models.cutting import CutPlan
from llmshearing.models.dimensions import DIMENSIONS
from llmshearing.models.module_cut import ModuleCut
from llmshearing.models.roles import Linear, Norm, PerUnit, Whole, expert_of

__all__ = ['TOKENS', 'Compensation', 'keep_embedding_size', 'regress', 'rescale']

RIDGE = 0.2  # of the mean square of the inputs that stay, times their number per token
TOKENS = 16_384  # watching more costs more than it tells


class Compensation:
    """Watches what projections and norms read during one batch; :meth:`apply` then changes the weights.

    Args:
        cutter (Cutter): Of a model under the masks of the batch, all zero or one.
        axes (Iterable[str]): Axes whose units may go.
        tokens (int): Tokens per rank to look at; later ones of the batch are passed over.
    """

    def __init__(self, cutter: Cutter, axes: Iterable[str], tokens: int = TOKENS):
        self.tokens, self._model, self._cutter = tokens, cutter.model, cutter
        self._sums: dict[str, Tensor] = {}  # over tokens; projection: x x^T; norm: squares, relative to their mean
        self._seen: dict[str, int] = {}
        self._owner: dict[str, str] = {}  # of the tensor that a projection reads: q, k and v share one
        self._last: tuple[Any, str] = (None, '')
        self._is_forward = False  # and not the forward pass of a layer that activation checkpointing runs once more
        if cutter.plan is None or cutter.masks is None:
            raise ValueError('compensation watches a batch under masks: call set_masks first.')
        self._before, self._width = dict(cutter.plan.cuts()), cutter.plan.hidden_count()
        self._inputs = {path: self._present(path, cut) for path, cut in self._watched(set(axes))}
        self._handles = [
            self._model.get_submodule(path).register_forward_pre_hook(partial(self._watch, path))
            for path in self._inputs
        ]
        self._handles += [
            self._model.register_forward_pre_hook(lambda *_: self._begin(True)),
            self._model.register_forward_hook(lambda *_: self._begin(False), always_call=True),
        ]

    def stop(self) -> None:
        """Stops watching."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def apply(self, masks: Mapping[str, Tensor], reduce: Callable[[Tensor], None] = one_rank, ranks: int = 1) -> None:
        """Prepares the weights for masks under which more units are gone.

        Args:
            masks (Mapping[str, Tensor]): Masks of the coming batch by axis, all zero or one.
            reduce (Callable): Averages a tensor over ranks, in place; a collective, called alike on every rank.
                Default: there is one rank.
            ranks (int): How many ranks there are. Default: ``1``.
        """
        device = next(self._model.parameters()).device
        plan = CutPlan(self._cutter.family, self._cutter.shape, masks, device)
        after = dict(plan.cuts())
        for path, total in self._sums.items():
            cut = after.get(path)
            if not isinstance(cut, ModuleCut):
                continue
            places, present = self._inputs[path]
            left, still = self._present(path, cut)
            stays = present & torch.isin(places, left[still])
            goes = present & ~stays
            if not goes.any() or not stays.any():
                continue
            reduce(total)
            role = after[path].role
            if isinstance(role, Linear):
                shares = regress(total, stays, goes, self._seen[path] * ranks)
                self._take_over(path, places[stays], places[goes], shares)
            elif isinstance(role, Norm):
                gain = self._model.get_parameter(f'{path}.weight')
                rescale(gain, (total[stays].mean() / total[present].mean()).sqrt(), role.offset)
        keep_embedding_size(self._cutter, plan.hidden_count(), self._width)

    def _watched(self, axes: set[str]) -> Iterable[tuple[str, ModuleCut]]:
        family = self._cutter.family
        unread = {family.embedding_path}
        if self._model.config.tie_word_embeddings:
            unread.add(family.head)
        if self._cutter.shape.group_size == 1 and 'head' in axes:
            axes.add('kv_group')
        for path, cut in self._before.items():
            if (
                not isinstance(cut, ModuleCut)
                or isinstance(cut.role, (Whole, PerUnit))
                or expert_of(cut.role) is not None
            ):
                continue
            if cut.gain is not None:  # follows by itself
                continue
            dimension = cut.role.columns if isinstance(cut.role, Linear) else cut.role.dim
            if path not in unread and dimension is not None and axes.intersection(DIMENSIONS[dimension].axes):
                yield path, cut

    def _present(self, path: str, cut: ModuleCut) -> tuple[Tensor, Tensor]:
        """Positions of a module's inputs in the source's module, and which of them are more than padding."""
        is_linear = isinstance(cut.role, Linear)
        weight = self._model.get_parameter(f'{path}.weight')
        index = cut.columns if is_linear else cut.rows
        places = torch.arange(weight.shape[-1], device=weight.device) if index is None else index
        present = torch.ones_like(places, dtype=torch.bool)
        if is_linear and cut.column_scale is not None:
            present = cut.column_scale.detach() != 0
        elif not is_linear and cut.real is not None:
            present = torch.zeros_like(present).index_fill(0, cut.real, True)
        return places, present

    def _begin(self, is_forward: bool) -> None:
        self._is_forward, self._last = is_forward, (None, '')

    def _watch(self, path: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not self._is_forward:
            return
        x = inputs[0]
        if isinstance(self._before[path].role, Linear):
            if path not in self._owner:
                self._owner[path] = self._last[1] if self._last[0] is x else path
                self._last = (x, self._owner[path])
            if self._owner[path] == path:
                self._add(path, x, lambda rows: rows.T @ rows)
        else:
            present, is_centred = self._inputs[path][1], self._cutter.family.subtracts_mean
            self._add(path, x, lambda rows: relative_squares(rows, is_centred, present).sum(0))

    def _add(self, path: str, x: Tensor, moment: Callable[[Tensor], Tensor]) -> None:
        wanted = self.tokens - self._seen.get(path, 0)
        if wanted <= 0:
            return
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            rows = x.detach().reshape(-1, x.shape[-1])[:wanted].float()
            self._sums[path] = moment(rows) + self._sums.get(path, 0)
        self._seen[path] = self._seen.get(path, 0) + len(rows)

    def _take_over(self, owner: str, stays: Tensor, goes: Tensor, shares: Tensor) -> None:
        for path in (path for path, first in self._owner.items() if first == owner):
            weight = _local(self._model.get_parameter(f'{path}.weight'))
            change = weight.index_select(1, goes).float() @ shares
            weight.index_add_(1, stays, change.to(weight.dtype))


def keep_embedding_size(cutter: Cutter, kept: int, before: int | None = None) -> None:
    """Changes the weights of a family that multiplies embeddings by the root of its width as the width falls.

    Args:
        cutter (Cutter): Of the model.
        kept (int): Hidden dimensions that stay.
        before (int | None): Hidden dimensions there were. Default: the source's.
    """
    family, model = cutter.family, cutter.model
    factor = math.sqrt((before or cutter.shape.hidden_size) / kept)
    if factor == 1 or not family.scales_embedding:
        return
    _local(model.get_parameter(f'{family.embedding_path}.weight')).mul_(factor)
    if model.config.tie_word_embeddings:
        rescale(model.get_parameter(f'{family.final_norm_path}.weight'), 1 / factor, family.norm_offset)


def regress(products: Tensor, stays: Tensor, goes: Tensor, tokens: int) -> Tensor:
    """Coefficients of the ridge regression of the inputs that go on those that stay.

    Args:
        products (Tensor): float32 [inputs, inputs], a multiple of the sum of x x^T.
        stays (Tensor): bool [inputs].
        goes (Tensor): bool [inputs].
        tokens (int): How many were summed over: the fewer, the stronger the ridge.

    Returns:
        Tensor: float32 [inputs that go, inputs that stay].
    """
    rows = products[stays].double()
    squares = rows[:, stays]
    squares.diagonal().add_(RIDGE * len(squares) / tokens * squares.diagonal().mean())
    return torch.cholesky_solve(rows[:, goes], torch.linalg.cholesky(squares)).T.float()


def rescale(parameter: Tensor, factor: Tensor | float, offset: float) -> None:
    """Multiplies a gain in use, which is the parameter [dimension] with ``offset`` added."""
    gain = _local(parameter)
    gain.copy_((gain.float() + offset) * factor - offset)


def _local(parameter: Tensor) -> Tensor:
    """This rank's rows of a weight, or its entries of a gain."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
