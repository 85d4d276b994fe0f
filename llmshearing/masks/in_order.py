"""Compensation of a cut that is made at once: every projection that stays is fitted to the source, in running order.

The first layers of a cut model lose a little, and what later layers read is off by that already. So a projection is
fitted to give what it gave in the source *from what the cut model gives it*. With x what it reads in the source, y what
it reads in the cut model once every projection before it was fitted, W its weight, K the inputs that stay, and sums
over the tokens of calibration batches,

    W[:, K] += (W S_xy - W[:, K] S_yy) (S_yy + lambda I)^-1,    S_xy = sum of x y^T,    S_yy = sum of y y^T

which is the ridge regression of ``W x`` on y that stays near the weights there are. Where y is x without some inputs,
it is the update of :mod:`~llmshearing.masks.compensation`.

The last projection of a layer that writes to the residual stream is fitted to the stream itself: to all that the cut
model's stream lacks behind the layer, and behind the layers after it that go. So it takes over what these added, the
idea of ReplaceMe (arXiv 2505.02819). The one before the MLP is fitted to what the stream lacks where the MLP's norm
reads it. Where a norm stands between a projection and the stream, it is fitted to its own output.

Both models run side by side, layer by layer, on the same weights: the source's layer runs uncut before a weight of it
changes. Beside the weights, two streams are held and what one layer reads. Routed experts, each of which sees few
tokens, and an LM head that is the embedding stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.func import functional_call

from llmshearing.masks.compensation import TOKENS, keep_embedding_size, rescale
from llmshearing.masks.energies import relative_squares
from llmshearing.masks.scores import Calibration
from llmshearing.models.cutting import CutPlan
from llmshearing.models.module_cut import ModuleCut
from llmshearing.models.roles import Family, Linear, Norm

__all__ = ['compensate_in_order']

RIDGE = 1 / 2048  # of the mean square of the inputs that stay, times their number; the tokens' number has no say
ROWS = 8_192  # of a weight that are changed at a time


def compensate_in_order(
    calibration: Calibration,
    masks: Mapping[str, Tensor],
    precision: Callable[[], AbstractContextManager] = nullcontext,
    layer_done: Callable[[], object] = lambda: None,
    entered: Callable[[], object] = lambda: None,
) -> None:
    """Changes the weights so that the model computes under ``masks`` what it computes without them, as far as it can.

    Args:
        calibration (Calibration): The model, in evaluation mode, and the batches to look at. Micro-batches after the
            first :data:`~llmshearing.masks.compensation.TOKENS` tokens are passed over.
        masks (Mapping[str, Tensor]): Zeros and ones by axis; none are set afterwards.
        precision (Callable): Gives the context to run layers in. Default: none.
        layer_done (Callable): Called after every layer. Default: nothing.
        entered (Callable): Called when the whole source has run, once. Default: nothing.
    """
    cutter = calibration.cutter
    with torch.no_grad(), precision():
        sides = _SideBySide(calibration, masks)
        entered()
        kept = masks['layer'].tolist() if 'layer' in masks else [1.0] * cutter.shape.num_hidden_layers
        for layer, mask in enumerate(kept):
            if mask:
                end = next((after for after in range(layer + 1, len(kept)) if kept[after]), len(kept))
                sides.fit_layer(layer, range(layer + 1, end))
            elif not any(kept[:layer]):
                sides.run_source([layer])  # no layer is left before it
            layer_done()
        if not cutter.model.config.tie_word_embeddings:
            sides.fit_head()
        cutter.set_masks(None)
        if 'hidden' in masks:
            keep_embedding_size(cutter, int(masks['hidden'].count_nonzero()))


class _Enough(Exception):
    """A layer has run as far as it is needed."""


@dataclasses.dataclass
class _Seen:
    """What a layer did on every micro-batch."""

    read: dict[str, list[Tensor]]  # by projection, [batch, tokens, inputs]
    middle: list[Tensor] = dataclasses.field(default_factory=list)  # what the norm in the middle read
    after: list[Tensor] = dataclasses.field(default_factory=list)  # the stream behind the layer


@dataclasses.dataclass
class _Stream:
    """The residual stream of one micro-batch in both models, and what layers are called with beside it."""

    source: Tensor  # [batch, tokens, hidden]
    cut: Tensor  # [batch, tokens, kept]
    calls: list[tuple[tuple, dict[str, Any]]]  # by layer


class _SideBySide:
    """The source and the cut model, which share their weights, each as far as layers were run."""

    def __init__(self, calibration: Calibration, masks: Mapping[str, Tensor]):
        self.cutter, self.masks, self.reduce = calibration.cutter, masks, calibration.reduce
        self.family: Family = self.cutter.family
        self.model: nn.Module = self.cutter.model
        # What Granite multiplies all outputs by before they are added.
        self.multiplier = float(getattr(self.cutter.model.config, 'residual_multiplier', 1.0))
        self.is_sharded = any(isinstance(parameter, DTensor) for parameter in self.model.parameters())
        self.hidden = None
        if 'hidden' in masks:
            self.hidden = torch.nonzero(masks['hidden']).flatten().to(calibration.device)
        self.streams = self._enter(calibration)

    def fit_layer(self, layer: int, gone: Sequence[int]) -> None:
        """Fits the projections of a layer that stays, and runs both models up to the next that does.

        Args:
            layer (int): Number of the layer, up to which both models have been run.
            gone (Sequence[int]): Layers right after it that go.
        """
        norm, inner, last = _writers(self.family, layer)
        self.cutter.set_masks(self.masks, constant=True)
        cuts = self._cuts(layer)
        groups = self._groups(layer, [name for name, cut in cuts.items() if isinstance(cut.role, Linear)])
        self.cutter.set_masks(None)
        norms = [(name, cut.role, cut.rows) for name, cut in cuts.items() if isinstance(cut.role, Norm)]
        before = self._run(layer, 'source', [*(names[0] for names in groups), *(name for name, *_ in norms)], norm)
        if before.middle and before.middle[0] is self.streams[0].source:  # attention and MLP run side by side
            inner = None
        for stream, after in zip(self.streams, before.after):
            stream.source = after
        self.run_source(gone)
        for name, role, rows in norms:
            self._rescale(layer, name, role, rows, before.read[name])
        self.cutter.set_masks(self.masks, constant=True)
        for names in groups:
            until = None if last in names else norm if inner in names else names[0]
            now, lacking = self._run(layer, 'cut', names[:1], norm, until), None
            if last in names:
                lacking = [self._kept(stream.source) - cut for stream, cut in zip(self.streams, now.after)]
            elif inner in names:
                lacking = [self._kept(source) - cut for source, cut in zip(before.middle, now.middle)]
            modules = {f'{self.family.layer_path(layer)}.{name}': cuts[name] for name in names}
            self._fit(modules, before.read[names[0]], now.read[names[0]], lacking)
        for stream, after in zip(self.streams, self._run(layer, 'cut').after):
            stream.cut = after

    def run_source(self, layers: Sequence[int]) -> None:
        """Runs layers that go in the source; the cut model has none of them."""
        self.cutter.set_masks(None)
        for layer in layers:
            for stream, after in zip(self.streams, self._run(layer, 'source').after):
                stream.source = after

    def fit_head(self) -> None:
        """Fits the LM head, when all layers have been run."""
        norm, path = self.model.get_submodule(self.family.final_norm_path), self.family.head
        whole = {name: _whole(parameter) for name, parameter in norm.named_parameters()}  # FSDP2 gathers for layers
        self.cutter.set_masks(None)
        before = [functional_call(norm, whole, stream.source) for stream in self.streams]
        self.cutter.set_masks(self.masks, constant=True)
        now = [functional_call(norm, whole, stream.cut) for stream in self.streams]
        cut = dict(self._plan().cuts())[path]
        assert isinstance(cut, ModuleCut)
        self._fit({path: cut}, before, now, None)

    def _enter(self, calibration: Calibration) -> list[_Stream]:
        """The streams before the first layer."""
        self.cutter.set_masks(None)
        streams: list[_Stream] = []
        tokens = 0

        def see(layer: int, module: nn.Module, args: tuple, options: dict[str, Any]) -> None:
            options = {name: value for name, value in options.items() if not name.startswith('past_key_value')}
            if layer == 0:
                source = args[0] if args else options['hidden_states']
                streams.append(_Stream(source, self._kept(source), []))
            options.pop('hidden_states', None)
            streams[-1].calls.append((args[1:], options))

        with ExitStack() as hooks:
            for layer in range(self.cutter.shape.num_hidden_layers):
                module = self.model.get_submodule(self.family.layer_path(layer))
                hooks.enter_context(module.register_forward_pre_hook(partial(see, layer), with_kwargs=True))
            for part, _ in calibration.passes():
                if tokens < TOKENS:
                    calibration.loss_of(part)
                    tokens += part['input_ids'].numel()
        return streams

    def _run(
        self, layer: int, model: str, names: Sequence[str] = (), norm: str | None = None, until: str | None = None
    ) -> _Seen:
        """Runs a layer of ``'source'`` or ``'cut'``, whose masks must be set, on every stream, and changes nothing.

        Args:
            layer (int): Its number.
            model (str): Which stream it reads.
            names (Sequence[str]): Projections of the layer whose inputs are wanted.
            norm (str | None): The norm whose inputs are wanted.
            until (str | None): What comes after this projection or norm has begun is not needed, and is left out
                where that is possible: FSDP2 waits for the end of a layer.
        """
        module, seen = self.model.get_submodule(self.family.layer_path(layer)), _Seen({name: [] for name in names})
        until = None if self.is_sharded else until

        def keep(name: str, into: list[Tensor], module: nn.Module, args: tuple) -> None:
            into.append(args[0])
            if name == until:
                raise _Enough

        with ExitStack() as hooks:
            for name, into in [*seen.read.items(), *([] if norm is None else [(norm, seen.middle)])]:
                watched = module.get_submodule(name)
                hooks.enter_context(watched.register_forward_pre_hook(partial(keep, name, into)))
            for stream in self.streams:
                args, options = stream.calls[layer]
                with suppress(_Enough):
                    out = module(getattr(stream, model), *args, **options)
                    seen.after.append(out[0] if isinstance(out, tuple) else out)
        return seen

    def _plan(self) -> CutPlan:
        assert self.cutter.plan is not None
        return self.cutter.plan

    def _cuts(self, layer: int) -> dict[str, ModuleCut]:
        """The cut of each module of a layer that may be changed, by its path inside the layer."""
        start = f'{self.family.layer_path(layer)}.'
        found = {}
        for path, cut in self._plan().cuts():
            role = cut.role
            if not path.startswith(start) or not isinstance(cut, ModuleCut):
                continue
            of_heads = isinstance(role, Norm) and role.dim not in (None, 'hidden') and cut.rows is not None
            if of_heads or isinstance(role, Linear) and role.expert is None:
                found[path.removeprefix(start)] = cut
        return found

    def _groups(self, layer: int, names: Collection[str]) -> list[list[str]]:
        """Projections of the cut model in running order; those that read one tensor are together."""
        module, groups, last = self.model.get_submodule(self.family.layer_path(layer)), [], [None]

        def see(name: str, module: nn.Module, args: tuple) -> None:
            if last[0] is not args[0]:
                groups.append([])
            groups[-1].append(name)
            last[0] = args[0]

        with ExitStack() as hooks:
            for name in names:
                hooks.enter_context(module.get_submodule(name).register_forward_pre_hook(partial(see, name)))
            args, options = self.streams[0].calls[layer]
            module(self.streams[0].cut, *args, **options)
        return groups

    def _kept(self, stream: Tensor) -> Tensor:
        return stream if self.hidden is None else stream.index_select(-1, self.hidden)

    def _fit(
        self,
        modules: Mapping[str, ModuleCut],
        source: Sequence[Tensor],
        cut: Sequence[Tensor],
        lacking: Sequence[Tensor] | None,
    ) -> None:
        """Changes the weights of projections that read one tensor.

        Args:
            modules (Mapping[str, ModuleCut]): Their cuts by module path.
            source (Sequence[Tensor]): What they read in the source, [batch, tokens, inputs].
            cut (Sequence[Tensor]): What they read in the cut model, [batch, tokens, inputs that stay].
            lacking (Sequence[Tensor] | None): What their output is to be more than now, [batch, tokens, outputs that
                stay]; None to give what they gave in the source.
        """
        squares = self._products(cut, cut)
        others = self._products(source if lacking is None else lacking, cut)
        stiff = squares.double()
        # Of a projection that reads nothing but zeros nothing is left to change.
        stiff.diagonal().add_(RIDGE * len(stiff) * stiff.diagonal().mean().clamp(min=1e-30))
        factor = torch.linalg.cholesky(stiff)
        for path, own in modules.items():
            weight = self.model.get_parameter(f'{path}.weight')
            full = _whole(weight)
            rows = torch.arange(len(full), device=full.device) if own.rows is None else own.rows
            columns = torch.arange(full.shape[1], device=full.device) if own.columns is None else own.columns
            for places in torch.arange(len(rows), device=full.device).split(ROWS):
                part = rows[places]
                whole = full.index_select(0, part).float()
                left = whole.index_select(1, columns)
                if lacking is None:
                    residual = whole @ others - left @ squares
                else:
                    residual = others[places] / self.multiplier
                change = torch.cholesky_solve(residual.double().T, factor).T
                full[part[:, None], columns] = (left + change).to(full.dtype)
            if isinstance(weight, DTensor):
                weight.copy_(distribute_tensor(full, weight.device_mesh, weight.placements))

    def _rescale(self, layer: int, name: str, norm: Norm, rows: Tensor | None, source: Sequence[Tensor]) -> None:
        """Makes the gain of a norm over heads smaller or larger by what the root mean square of those that stay is."""
        total = torch.zeros(source[0].shape[-1], device=source[0].device)
        for each in source:
            total += relative_squares(each.flatten(0, -2).float(), self.family.subtracts_mean).sum(0)
        self.reduce(total)
        gain = self.model.get_parameter(f'{self.family.layer_path(layer)}.{name}.weight')
        rescale(gain, (total[rows].mean() / total.mean()).sqrt(), norm.offset)

    def _products(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Sum over all tokens of ``l r^T``, float32 [left, right], averaged over ranks."""
        total = left[0].new_zeros(left[0].shape[-1], right[0].shape[-1], dtype=torch.float32)
        with torch.autocast(total.device.type, enabled=False):
            for each, other in zip(left, right):
                total += each.flatten(0, -2).float().T @ other.flatten(0, -2).float()
        self.reduce(total)
        return total


def _whole(parameter: Tensor) -> Tensor:
    """A parameter in one piece: itself, or gathered from all ranks."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _writers(family: Family, layer: int) -> tuple[str | None, str | None, str | None]:
    """Where a layer's projections write to the stream, by paths inside the layer.

    Returns:
        tuple[str | None, str | None, str | None]: The norm that reads the stream in the middle of the layer for the
            MLP, the projection that writes before it, and the one that writes last. Each is None where there is none:
            where norms stand between projections and the stream, where one norm is read by both, and for the last one
            in mixtures of experts.
    """
    roles = dict(family.roles(layer))
    norm = next((p for p, role in roles.items() if isinstance(role, Norm) and role.reads and role.feeds == 'mlp'), None)
    writers = [p for p, role in roles.items() if isinstance(role, Linear) and role.writes and role.expert is None]
    of_mlp = [path for path in writers if path.startswith(f'{family.mlp}.')]
    before = [path for path in writers if path not in of_mlp]
    last = of_mlp[0] if len(of_mlp) == 1 and not family.has_experts else None
    return norm, before[0] if norm is not None and len(before) == 1 else None, last
