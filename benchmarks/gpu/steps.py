"""The kinds of steps that are measured: dense, with masks on weights and on activations, on the way and with noise."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch
from prune_step import all_ones, mask_activations, target_masks
from torch import Tensor, nn

from benchmarks.gpu.pairs import Setting
from llmshearing.masks.axes import plan_axes
from llmshearing.masks.hard_concrete import sample_gate
from llmshearing.models.cuttable import Cutter
from llmshearing.models.shapes import ModelShape

__all__ = ['COMPILED', 'COURSE', 'MAIN', 'ON_THE_WAY', 'PRUNING', 'WITH_NOISE', 'Kind', 'noisy_masks']

PRUNING = {'all kept': 'pruning, all kept', 'target': 'pruning, at target'}
COURSE = (0.25, 0.5, 0.75)
DRAWS = 6  # masks of the noise that a step takes in turn
LIKELY, UNLIKELY = 2.5, -4.2  # log alpha of gates that are open, and closed, in most draws


def run_step(model: nn.Module, ids: Tensor) -> None:
    """Forward and backward of one micro-batch."""
    model.zero_grad(set_to_none=True)
    model(input_ids=ids, labels=ids).loss.backward()


def dense(setting: Setting, of_target: bool = False, compiled: bool = False) -> Callable[[], None]:
    model, ids = setting.model(of_target), setting.ids
    if compiled:
        model.compile()
    return lambda: run_step(model, ids)


def activations(setting: Setting) -> Callable[[], None]:
    """The usual way to mask; it computes everything, whatever the masks are."""
    model, ids = setting.model(), setting.ids
    masks = {axis: mask.to(setting.device, torch.bfloat16) for axis, mask in all_ones(setting.shapes[0]).items()}
    mask_activations(model, masks)
    return lambda: run_step(model, ids)


def pruning(setting: Setting, masks: list[dict[str, Tensor]], multiple_of: int = 1, compiled: bool = False):
    """A step that takes the given masks in turn."""
    model, ids = setting.model(), setting.ids
    cutter, turn = Cutter(model), itertools.cycle(masks)
    if compiled:
        model.compile()

    def step() -> None:
        cutter.set_masks(next(turn), multiple_of)
        run_step(model, ids)
        cutter.mask_gradients()

    return step


def noisy_masks(source: ModelShape, target: ModelShape, fixed: tuple[str, ...] = ('layer',)) -> list[dict[str, Tensor]]:
    """Draws of gates that have learned their target: counts vary from step to step and from layer to layer.

    Args:
        fixed (tuple[str, ...]): Axes that keep exactly the target's units.
    """
    exact, plans = target_masks(source, target), plan_axes(source, target)
    draws = []
    for number in range(DRAWS):
        generator = torch.Generator().manual_seed(number)
        draw = {}
        for axis in plans:
            log_alpha = torch.where(exact[axis] > 0, LIKELY, UNLIKELY)
            draw[axis] = exact[axis] if axis in fixed else sample_gate(log_alpha, generator)
        draws.append(draw)
    return draws


def optimizer_step(setting: Setting) -> Callable[[], None]:
    """AdamW on the source: its cost depends on what is stored, not on masks."""
    model = setting.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=setting.device == 'cuda')
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return lambda: optimizer.step()


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of step.

    Attributes:
        name (str): As in the table.
        build (Callable): Makes the model and returns the step.
        counted (int | None): Whose products its rate counts: 0 the source's, 1 the target's, None: it has no rate.
    """

    name: str
    build: Callable[[Setting], Callable[[], None]]
    counted: int | None


def _at(progress: float) -> Callable[[Setting], Callable[[], None]]:
    return lambda setting: pruning(setting, [target_masks(*setting.shapes, progress)])


def _noisy(multiple_of: int, fixed: tuple[str, ...] = ('layer',)) -> Callable[[Setting], Callable[[], None]]:
    return lambda setting: pruning(setting, noisy_masks(*setting.shapes, fixed), multiple_of)


MAIN = (
    Kind('dense source', dense, 0),
    Kind(PRUNING['all kept'], lambda setting: pruning(setting, [all_ones(setting.shapes[0])]), 0),
    Kind(PRUNING['target'], _at(1.0), 1),
    Kind('target model', lambda setting: dense(setting, of_target=True), 1),
    Kind('activation masking', activations, 0),
)
ON_THE_WAY = tuple(Kind(f'pruning, {share:.0%} of the warm-up', _at(share), None) for share in COURSE)
WITH_NOISE = (
    *(Kind(f'pruning, noisy counts, multiple_of {multiple}', _noisy(multiple), 1) for multiple in (1, 64, 128)),
    Kind('pruning, noisy counts but hidden, multiple_of 64', _noisy(64, ('layer', 'hidden')), 1),
    Kind('optimizer on the source', optimizer_step, None),
)
COMPILED = (
    Kind('target model, compiled', lambda setting: dense(setting, of_target=True, compiled=True), 1),
    Kind(
        'pruning, at target, compiled',
        lambda setting: pruning(setting, [target_masks(*setting.shapes)], compiled=True),
        1,
    ),
)
