"""The scoring methods of this package.

| method | axes | score of a unit |
|---|---|---|
| `taylor` | all | mean abs(d loss / d mask), masks at one: weight x gradient over all it couples (arXiv 2305.11627) |
| `magnitude` | all | root mean square (RMS) of all weights that would go with the unit |
| `activation` | all others | RMS of what it carries: norm outputs, o and down inputs (Minitron, arXiv 2407.14679) |
| `block_importance` | layers | 1 - cosine of the residual stream before and after it (ShortGPT, arXiv 2403.03853) |
| `perplexity` | layers | loss without the layer, minus the loss with it (Shortened LLaMA, arXiv 2402.02834) |
| `position` | all | the first units stay: for hidden dimensions of a source rotated to a learned subspace |
| `random` | all | nothing; a baseline |
| `reap`, `frequency` | experts | :mod:`~llmshearing.masks.expert_scores` |

All but `magnitude`, `position` and `random` run the model on calibration batches. The mean of ``taylor`` is over
batches, that of the others over sequences or labels, so none depends on how a batch is spread over ranks and micro-
batches. Hidden dimensions carry what norms give attention, MLPs and the LM head; where no norm stands before an
attention or MLP (OLMo 2), its input instead, each token relative to its mean square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from llmshearing.masks.energies import relative_squares
from llmshearing.masks.expert_scores import add_expert_magnitudes, frequency, inner_activation, reap, squared
from llmshearing.masks.scores import Calibration, ScoringMethod, count_labels, scoring_methods
from llmshearing.models.dimensions import DIMENSIONS
from llmshearing.models.roles import Experts, Family, Linear, Norm, PerUnit, Whole, expert_of
from llmshearing.models.shapes import ModelShape
from llmshearing.models.units import AXES, LayerUnits, mask_shapes

__all__ = ['activation', 'block_importance', 'magnitude', 'perplexity', 'position', 'random', 'taylor']

WIDTH_AXES = tuple(axis for axis in AXES if axis not in ('layer', 'expert'))


def taylor(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    """Mean absolute derivative of a batch's loss by the masks."""
    cutter, total = calibration.cutter, dict[str, Tensor]()
    shapes = mask_shapes(cutter.shape)
    for batch in calibration.batches:
        cutter.set_masks({axis: torch.ones(shapes[axis]) for axis in axes})
        calibration.backward(batch)
        gradients = cutter.mask_gradients(reduce=calibration.reduce)
        cutter.model.zero_grad(set_to_none=True)
        total = {axis: g.abs() + total.get(axis, 0) for axis, g in gradients.items()}
    return {axis: value / len(calibration.batches) for axis, value in total.items()}


def magnitude(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    """Root mean square of the weights that go with a unit."""
    cutter, model = calibration.cutter, calibration.cutter.model
    shape, family = cutter.shape, cutter.family
    shapes = mask_shapes(shape)
    squares = {axis: torch.zeros(shapes[axis]) for axis in axes}
    counts = {axis: torch.zeros(shapes[axis]) for axis in axes}
    for path, role, layer in family.modules(shape.num_hidden_layers):
        if isinstance(role, (Whole, PerUnit, Experts)) or expert_of(role) is not None:
            continue
        weight = squared(model.get_parameter(f'{path}.weight'))
        sides = (role.rows, role.columns) if isinstance(role, Linear) else (role.dim,)
        if 'layer' in axes and layer is not None:
            squares['layer'][layer] += weight.sum()
            counts['layer'][layer] += weight.numel()
        for side, dimension in enumerate(sides):
            along = weight.movedim(side, 0).flatten(1).sum(1) if weight.dim() > 1 else weight
            each = weight.numel() / len(along)
            if 'hidden' in axes and dimension is not None and DIMENSIONS[dimension].is_of_stream:
                squares['hidden'] += along.view(-1, shape.hidden_size).sum(0)
                counts['hidden'] += each * len(along) / shape.hidden_size
            for axis in set(axes) - {'layer', 'hidden'}:
                index = _positions(axis, dimension, shape)
                if index is not None:
                    squares[axis][layer] += along[index].sum(1)
                    counts[axis][layer] += index.shape[1] * each
    if shape.num_experts:
        add_expert_magnitudes(calibration, squares, counts)
    return {axis: (squares[axis] / counts[axis].clamp(min=1)).sqrt() for axis in axes}


@lru_cache(maxsize=64)
def _positions(axis: str, dimension: str | None, shape: ModelShape) -> Tensor | None:
    """Positions along a dimension that go with each unit of an axis, int64 [units, positions]; None where none do."""
    if dimension is None or DIMENSIONS[dimension].is_of_stream:
        return None
    rows = []
    for unit in range(mask_shapes(shape)[axis][1]):
        kept: dict[str, Tensor | None] = {'heads': None, 'kv_heads': None, 'intermediate': None}
        if axis == 'kv_group':
            kept.update(kv_heads=torch.tensor([unit]), heads=unit * shape.group_size + torch.arange(shape.group_size))
        else:
            kept[{'head': 'heads', 'expert': 'experts'}.get(axis, axis)] = torch.tensor([unit])
        index = DIMENSIONS[dimension].positions(LayerUnits(group_size=shape.group_size, padded=None, **kept), shape)
        if index is None or (axis != 'intermediate') == (dimension in ('intermediate', 'gate_up')):
            return None
        rows.append(index)
    # A query head takes no row of fused keys and values with it: those stay with their group.
    if axis == 'head' and dimension == 'query_key_value':
        rows = [row[: shape.head_dim] for row in rows]
    return torch.stack(rows)


def activation(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    """Root mean square of what a unit carries."""
    cutter, model = calibration.cutter, calibration.cutter.model
    shape, family = cutter.shape, cutter.family
    shapes = {axis: mask_shapes(shape)[axis] for axis in axes}
    squares = {axis: torch.zeros(size, device=calibration.device) for axis, size in shapes.items()}

    def add(axis: str, place: Any, units: int, share: float, x: Tensor) -> None:
        squares[axis][place] += share * x.float().square().reshape(-1, units, x.shape[-1] // units).mean((0, 2))

    def normed(share: float, x: Tensor, out: Tensor) -> None:
        add('hidden', ..., shape.hidden_size, share, out)

    def read(share: float, x: Tensor, out: Tensor) -> None:
        squares['hidden'].add_(share * relative_squares(x.flatten(0, -2).float(), False).mean(0))

    def carried(axis: str, layer: int | None, units: int, share: float, x: Tensor, out: Tensor) -> None:
        add(axis, layer, units, share, x)

    watched: list[tuple[nn.Module, Callable[[float, Tensor, Tensor], None]]] = []
    for path, role, layer in family.modules(shape.num_hidden_layers):
        module: nn.Module = model.get_submodule(path)
        if isinstance(role, Norm) and role.reads and 'hidden' in axes:
            watched.append((module, normed))
        for axis, dimension, units in (
            ('head', 'query', shape.num_attention_heads),
            ('kv_group', 'query', shape.num_key_value_heads),
            ('intermediate', 'intermediate', shape.intermediate_size),
        ):
            if axis in axes and isinstance(role, Linear) and role.columns == dimension and expert_of(role) is None:
                watched.append((module, partial(carried, axis, layer, units)))
    if 'hidden' in axes:
        watched += [(model.get_submodule(path), read) for path in _bare_readers(family, shape.num_hidden_layers)]
    calibration.watch(watched)
    scores = {axis: calibration.average(value).sqrt() for axis, value in squares.items()}
    if shape.num_experts and 'intermediate' in axes:
        scores['intermediate'] = inner_activation(calibration)
    return scores


def _bare_readers(family: Family, num_hidden_layers: int) -> list[str]:
    """Of each attention and MLP that no norm feeds, one projection, which reads the stream as it is."""
    readers: dict[tuple[int, str], str] = {}
    for layer in range(num_hidden_layers):
        fed = {role.feeds for _, role in family.roles(layer) if isinstance(role, Norm) and role.reads}
        for path, role in family.roles(layer):
            what = 'mlp' if path.startswith(f'{family.mlp}.') else 'attention'
            if (
                isinstance(role, Linear)
                and role.columns == 'hidden'
                and expert_of(role) is None
                and not fed & {what, None}
            ):
                readers.setdefault((layer, what), f'{family.layer_path(layer)}.{path}')
    return list(readers.values())


def block_importance(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    """How far a layer turns the residual stream."""
    cutter, model = calibration.cutter, calibration.cutter.model
    layers = list(model.get_submodule(f'{cutter.family.decoder}.layers').children())
    change = torch.zeros(len(layers), device=calibration.device)

    def compare(index: int, share: float, before: Tensor, after: Tensor) -> None:
        cosine = torch.cosine_similarity(before.float(), after.float(), dim=-1)
        change[index] += share * (1 - cosine).mean()

    calibration.watch((layer, partial(compare, index)) for index, layer in enumerate(layers))
    return {'layer': calibration.average(change)}


def perplexity(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    """What the mean loss over all labels gains by a layer."""
    cutter, layers = calibration.cutter, calibration.cutter.shape.num_hidden_layers
    sums = torch.zeros(layers + 1, 2, device=calibration.device)  # of losses, and of labels
    with torch.no_grad():
        for layer in range(layers + 1):
            mask = torch.ones(layers)
            mask[layer : layer + 1] = 0  # past the last layer: nothing removed
            cutter.set_masks({'layer': mask})
            for part, _ in calibration.passes():
                labels = count_labels(part)
                sums[layer] += torch.stack([calibration.loss_of(part).float() * labels, labels])
    losses, labels = calibration.average(sums).unbind(1)
    return {'layer': losses[:-1] / labels[:-1] - losses[-1] / labels[-1]}


def position(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    """The number of units from this one to the last."""
    shapes = mask_shapes(calibration.cutter.shape)
    return {axis: torch.arange(shapes[axis][-1], 0.0, -1.0).repeat(*shapes[axis][:-1], 1) for axis in axes}


def random(calibration: Calibration, axes: Sequence[str]) -> dict[str, Tensor]:
    """Numbers that the seed decides."""
    generator = torch.Generator().manual_seed(calibration.seed)
    shapes = mask_shapes(calibration.cutter.shape)
    return {axis: torch.rand(shapes[axis], generator=generator) for axis in axes}


for _method, _axes in (
    (taylor, AXES),
    (magnitude, AXES),
    (activation, WIDTH_AXES),
    (block_importance, ('layer',)),
    (perplexity, ('layer',)),
    (position, AXES),
    (random, AXES),
    (reap, ('expert',)),
    (frequency, ('expert',)),
):
    scoring_methods(_method.__name__, func=ScoringMethod(_method, _axes, needs_gradients=_method is taylor))
