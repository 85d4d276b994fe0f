"""Importance of units from a few calibration batches:
the order masks start in, or the whole decision of a one-shot pruner.

| method | axes | score of a unit |
|---|---|---|
| `taylor` | all | mean abs(d loss / d mask), masks at one: weight x gradient over all it couples (arXiv 2305.11627) |
| `magnitude` | all | root mean square (RMS) of all weights that would go with the unit |
| `activation` | all but layers | RMS of what it carries: norm outputs, o and down inputs (Minitron, arXiv 2407.14679) |
| `block_importance` | layers | 1 - cosine of the residual stream before and after it (ShortGPT, arXiv 2403.03853) |
| `perplexity` | layers | loss without the layer, minus the loss with it (Shortened LLaMA, arXiv 2402.02834) |
| `random` | all | nothing; a baseline |

All but `magnitude` run the model on calibration batches and average over ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from composer.core.data_spec import default_split_batch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmshearing.masks.axes import AxisPlan
from llmshearing.models.cutting import DIMENSIONS
from llmshearing.models.families import Linear, Norm
from llmshearing.models.shapes import ModelShape
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from llmshearing.models.units import AXES, LayerUnits, mask_shapes

__all__ = ['Calibration', 'METHODS', 'importance', 'method_by_axis']

IGNORED_LABEL = -100  # of PyTorch's cross-entropy
WIDTH_AXES = ('hidden', 'head', 'kv_group', 'intermediate')


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What scores are computed from.

    Attributes:
        model (ShearedCausalLM): The source, not wrapped by DDP.
        batches (Sequence[Any]): Batches on the model's device; the same number on every rank.
        precision (Callable): Makes the context a forward pass runs in.
        reduce (Callable): Averages a tensor over ranks, in place.
        seed (int): For ``random``.
        microbatch_size (int | None): Sequences that a backward pass takes at once; None for whole batches.
    """

    model: ShearedCausalLM
    batches: Sequence[Any]
    precision: Callable[[], AbstractContextManager]
    reduce: Callable[[Tensor], None]
    seed: int
    microbatch_size: int | None = None

    def loss(self, batch: Any) -> Tensor:
        """Mean loss over the labels of a batch under the masks that are set."""
        with self.precision():
            return self.model.loss(self.model(batch), batch)

    def losses(self) -> Iterator[Tensor]:
        """Loss of every batch."""
        return map(self.loss, self.batches)

    def backward(self, batch: Any) -> None:
        """Backward pass of a batch, in micro-batches whose gradients add up to that of its mean loss."""
        size = self.microbatch_size
        parts = [batch] if size is None else default_split_batch(batch, size)
        # The first label of a sequence has no prediction.
        labels = torch.stack([(part['labels'][:, 1:] != IGNORED_LABEL).sum() for part in parts])
        for part, share in zip(parts, labels / labels.sum()):
            (self.loss(part) * share).backward()


def method_by_axis(scores: str | Mapping[str, str], plans: Mapping[str, AxisPlan]) -> dict[str, str]:
    """Which method scores which pruned axis.

    Args:
        scores (str | Mapping[str, str]): One method for all axes, or a method by axis. A method for widths alone or for
            layers alone, given for all, leaves the other axes to ``taylor``.
        plans (Mapping[str, AxisPlan]): The pruned axes.

    Raises:
        ValueError: For an unknown method or axis, or a method that does not apply to its axis.
    """
    chosen = dict.fromkeys(plans, scores) if isinstance(scores, str) else {**dict.fromkeys(plans, 'taylor'), **scores}
    result = {}
    for axis, method in chosen.items():
        if method not in METHODS:
            raise ValueError(f'scores: unknown method {method!r}; choose one of {", ".join(METHODS)}.')
        if axis not in AXES:
            raise ValueError(f'scores: unknown axis {axis!r}; possible: {", ".join(AXES)}.')
        if axis not in METHODS[method][1]:
            if not isinstance(scores, str):
                raise ValueError(
                    f'scores: {method} does not apply to {axis}; it applies to {", ".join(METHODS[method][1])}.'
                )
            method = 'taylor'
        if axis in plans:
            result[axis] = method
    return result


def importance(methods: Mapping[str, str], calibration: Calibration) -> dict[str, Tensor]:
    """Scores by axis, mask-shaped, float32 on CPU; the model is left without masks and gradients.

    Args:
        methods (Mapping[str, str]): Method by axis, from :func:`method_by_axis`.
        calibration (Calibration): Model and batches.
    """
    scores = {}
    for method in dict.fromkeys(methods.values()):
        axes = [axis for axis in methods if methods[axis] == method]
        scores.update(METHODS[method][0](calibration, axes))
    calibration.model.cutter.set_masks(None)
    calibration.model.zero_grad(set_to_none=True)
    return {axis: scores[axis].float().cpu() for axis in methods}


def _ones(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    shapes = mask_shapes(calibration.model.cutter.shape)
    return {axis: torch.ones(shapes[axis]) for axis in axes}


def taylor(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    cutter, total = calibration.model.cutter, None
    for batch in calibration.batches:
        cutter.set_masks(_ones(calibration, axes))
        calibration.backward(batch)
        gradients = cutter.mask_gradients(reduce=calibration.reduce)
        calibration.model.zero_grad(set_to_none=True)
        total = {axis: g.abs() + (total[axis] if total else 0) for axis, g in gradients.items()}
    return {axis: value / len(calibration.batches) for axis, value in total.items()}


def magnitude(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    cutter, model = calibration.model.cutter, calibration.model.model
    shape, family = cutter.shape, cutter.family
    shapes = mask_shapes(shape)
    squares = {axis: torch.zeros(shapes[axis]) for axis in axes}
    counts = {axis: torch.zeros(shapes[axis]) for axis in axes}
    for path, role, layer in family.modules(shape.num_hidden_layers):
        weight = model.get_submodule(path).weight.detach()
        weight = (weight.full_tensor() if isinstance(weight, DTensor) else weight).float().cpu().square()
        sides = (role.rows, role.columns) if isinstance(role, Linear) else (role.axis,)
        if 'layer' in axes and layer is not None:
            squares['layer'][layer] += weight.sum()
            counts['layer'][layer] += weight.numel()
        for side, dimension in enumerate(sides):
            along = weight.movedim(side, 0).flatten(1).sum(1) if weight.dim() > 1 else weight
            each = weight.numel() / len(along)
            if 'hidden' in axes and dimension == 'hidden':
                squares['hidden'] += along
                counts['hidden'] += each
            for axis in set(axes) - {'layer', 'hidden'}:
                index = _positions(axis, dimension, shape)
                if index is not None:
                    squares[axis][layer] += along[index].sum(1)
                    counts[axis][layer] += index.shape[1] * each
    return {axis: (squares[axis] / counts[axis].clamp(min=1)).sqrt() for axis in axes}


@lru_cache(maxsize=64)
def _positions(axis: str, dimension: str | None, shape: ModelShape) -> Tensor | None:
    """Positions along a dimension that go with each unit of an axis, int64 [units, positions]; None where none do."""
    if dimension not in DIMENSIONS:
        return None
    rows = []
    for unit in range(mask_shapes(shape)[axis][1]):
        kept = {'heads': None, 'kv_heads': None, 'intermediate': None}
        if axis == 'kv_group':
            kept.update(kv_heads=torch.tensor([unit]), heads=unit * shape.group_size + torch.arange(shape.group_size))
        else:
            kept['heads' if axis == 'head' else axis] = torch.tensor([unit])
        index = DIMENSIONS[dimension](LayerUnits(group_size=shape.group_size, padded=None, **kept), shape)
        if index is None or (axis != 'intermediate') == (dimension in ('intermediate', 'gate_up')):
            return None
        rows.append(index)
    # A query head takes no row of fused keys and values with it: those stay with their group.
    if axis == 'head' and dimension == 'query_key_value':
        rows = [row[: shape.head_dim] for row in rows]
    return torch.stack(rows)


@contextmanager
def _hooks(handles: list) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def activation(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    cutter, model = calibration.model.cutter, calibration.model.model
    shape, family = cutter.shape, cutter.family
    device = next(model.parameters()).device
    shapes = {axis: mask_shapes(shape)[axis] for axis in axes}
    squares = {axis: torch.zeros(size, device=device) for axis, size in shapes.items()}

    def add(axis: str, place: Any, x: Tensor, units: int) -> None:
        squares[axis][place] += x.detach().float().square().reshape(-1, units, x.shape[-1] // units).mean((0, 2))

    def carried(axis: str, layer: int, units: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        add(axis, layer, inputs[0], units)

    handles = []
    for path, role, layer in family.modules(shape.num_hidden_layers):
        module: nn.Module = model.get_submodule(path)
        if isinstance(role, Norm) and role.reads and 'hidden' in axes:
            handles.append(
                module.register_forward_hook(lambda m, args, out: add('hidden', ..., out, shape.hidden_size))
            )
        for axis, dimension, units in (
            ('head', 'query', shape.num_attention_heads),
            ('kv_group', 'query', shape.num_key_value_heads),
            ('intermediate', 'intermediate', shape.intermediate_size),
        ):
            if axis in axes and isinstance(role, Linear) and role.columns == dimension:
                handles.append(module.register_forward_pre_hook(partial(carried, axis, layer, units)))
    cutter.set_masks(None)
    with _hooks(handles), torch.no_grad():
        for _ in calibration.losses():
            pass
    for value in squares.values():
        calibration.reduce(value)
    return {axis: (value / len(calibration.batches)).sqrt() for axis, value in squares.items()}


def block_importance(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    cutter, model = calibration.model.cutter, calibration.model.model
    layers = model.get_submodule(cutter.family.decoder).layers
    change = torch.zeros(len(layers), device=next(model.parameters()).device)

    def hook(index: int):
        def compare(module, args, kwargs, out):
            before = args[0] if args else kwargs['hidden_states']
            after = out[0] if isinstance(out, tuple) else out
            change[index] += (1 - torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)).mean()

        return compare

    handles = [layer.register_forward_hook(hook(index), with_kwargs=True) for index, layer in enumerate(layers)]
    cutter.set_masks(None)
    with _hooks(handles), torch.no_grad():
        for _ in calibration.losses():
            pass
    calibration.reduce(change)
    return {'layer': change / len(calibration.batches)}


def perplexity(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    cutter = calibration.model.cutter
    losses = torch.zeros(cutter.shape.num_hidden_layers + 1, device=next(calibration.model.parameters()).device)
    with torch.no_grad():
        for layer in range(len(losses)):
            mask = torch.ones(cutter.shape.num_hidden_layers)
            mask[layer : layer + 1] = 0  # past the last layer: nothing removed
            cutter.set_masks({'layer': mask})
            losses[layer] = sum(calibration.losses()) / len(calibration.batches)
    calibration.reduce(losses)
    return {'layer': losses[:-1] - losses[-1]}


def chance(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(calibration.seed)
    shapes = mask_shapes(calibration.model.cutter.shape)
    return {axis: torch.rand(shapes[axis], generator=generator) for axis in axes}


# method: (function, axes it applies to)
METHODS: dict[str, tuple[Callable[[Calibration, Sequence[str]], dict[str, Tensor]], tuple[str, ...]]] = {
    'taylor': (taylor, AXES),
    'magnitude': (magnitude, AXES),
    'activation': (activation, WIDTH_AXES),
    'block_importance': (block_importance, ('layer',)),
    'perplexity': (perplexity, ('layer',)),
    'random': (chance, AXES),
}
