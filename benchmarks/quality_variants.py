"""Ways of pruning that arms of ``quality.py`` compare with, and that the package does not offer.

Each changes one decision of ``targeted_pruning`` and nothing else, so that the decision can be measured: what learned
masks do with less noise, with noise of its own for every micro-batch, with constraints on the gates that are open
instead of the expected ones, with another shape of the schedule; a cut that looks at no weight at all; and experts that
go averaged into those that stay.
"""

from __future__ import annotations

import math
from typing import Any
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from composer.core import Event, State
from composer.loggers import Logger
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.masks.constraints import AxisConstraint
from llmshearing.masks.hard_concrete import STRETCH_HIGH, STRETCH_LOW, TEMPERATURE, probability_kept
from llmshearing.masks.lagrangian import LagrangianMasks

__all__ = ['VARIANTS']


class Truncation(TargetedPruning):
    """Keeps the first units of every width and evenly spaced layers, whatever they do."""

    def _prepare(self, state: State) -> None:
        super()._prepare(state)
        scores = {}
        for axis, plan in self.plans.items():
            order = torch.arange(plan.units, 0, -1.0)
            if axis == 'layer':
                order = torch.zeros(plan.units)
                order[torch.linspace(0, plan.units - 1, plan.keep).round().long()] = 1.0
            scores[axis] = order.expand(torch.Size(plan.mask_shape).numel() // plan.units, -1).reshape(plan.mask_shape)
        self.learner.start_from(scores)
        self.frozen_masks = self.learner.deterministic('target')  # before the run scores anything


class _OwnLearner(TargetedPruning):
    """Learned masks by another class than :class:`LagrangianMasks`."""

    learner_class: type[LagrangianMasks]

    def _prepare(self, state: State) -> None:
        super()._prepare(state)
        self.learner = self.learner_class(self.plans, self.settings)


class _ScaledNoise(LagrangianMasks):
    """Gates drawn with logistic noise of another size."""

    def noise(self, progress: float) -> float:
        """The size at an elapsed share of the warm-up, 1 being the gate's own."""
        raise NotImplementedError

    def draw(self, batch: int, progress: float) -> dict[str, Tensor]:
        generator, scale = torch.Generator().manual_seed(1000003 * self.seed + batch), self.noise(progress)
        self._gates = {}
        for axis, log_alpha in self.log_alpha.items():
            noise = torch.logit(torch.rand(log_alpha.shape, generator=generator), 1e-6)
            open_share = torch.sigmoid((noise * scale + log_alpha) / TEMPERATURE)
            self._gates[axis] = (open_share * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0.0, 1.0)
        return {axis: gate.detach() for axis, gate in self._gates.items()}


class _HalfNoise(_ScaledNoise):
    def noise(self, progress: float) -> float:
        return 0.5


class _FadingNoise(_ScaledNoise):
    """From its own size at the end of the warm-up to none at three times the warm-up."""

    def noise(self, progress: float) -> float:
        return min(max((3.0 - progress) / 2.0, 0.0), 1.0)


class HalfNoise(_OwnLearner):
    learner_class = _HalfNoise


class FadingNoise(_OwnLearner):
    learner_class = _FadingNoise


class _OpenGates(AxisConstraint):
    """Constrains the gates that are open without noise; their gradient is that of the expected ones."""

    def sparsity(self, kept: Mapping[str, Tensor]) -> Tensor:
        expected = super().sparsity(kept)
        is_open = (kept[self.plan.axis] > probability_kept(torch.zeros(()))).float()
        return expected + (1 - self.plan.rows(is_open).mean(1) - expected).detach()


class HardCounts(TargetedPruning):
    """The multipliers steer the number of gates above one half, which is what the finished model counts."""

    def _prepare(self, state: State) -> None:
        super()._prepare(state)
        self.learner.constraints = [_OpenGates(plan) for plan in self.plans.values()]


class _SeveralDraws(LagrangianMasks):
    """Collects one draw and its gradient per micro-batch; the update is over all of them."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.earlier: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def set_aside(self, gradients: dict[str, Tensor]) -> None:
        self.earlier.append((self._gates, gradients))

    def update(self, gradients: Mapping[str, Tensor], progress: float, rate: float) -> dict[str, float]:
        draws = [*self.earlier, (self._gates, gradients)]
        self.earlier = []
        self._gates = {axis: torch.stack([gates[axis] for gates, _ in draws]) for axis in self.plans}
        return super().update({a: torch.stack([values[a] for _, values in draws]) for a in self.plans}, progress, rate)


class NoisePerMicrobatch(_OwnLearner):
    """Every micro-batch draws gates of its own, as ranks would that do not share theirs."""

    learner_class = _SeveralDraws

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BEFORE_FORWARD or super().match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        cutter = state.model.cutter
        if event == Event.BEFORE_TRAIN_BATCH:
            self._is_first = True
        if event != Event.BEFORE_FORWARD:
            return super().apply(event, state, logger)
        if self._is_first or self.frozen_masks is not None:
            self._is_first = False
            return None
        self.learner.set_aside(cutter.mask_gradients())
        number = state.timestamp.batch.value + 1_000_000 * len(self.learner.earlier)
        cutter.set_masks(self.learner.draw(number, 0.0), self.settings.multiple_of)
        return None


class _ShapedSchedule(TargetedPruning):
    """The target's course over the warm-up is a curve instead of a straight line."""

    @staticmethod
    def shape(progress: float) -> float:
        raise NotImplementedError

    def _prepare(self, state: State) -> None:
        super()._prepare(state)
        draw, update = self.learner.draw, self.learner.update
        self.learner.draw = lambda batch, progress: draw(batch, self.shape(min(progress, 1.0)))
        self.learner.update = lambda gradients, progress, rate: update(gradients, self.shape(min(progress, 1.0)), rate)


class CubicSchedule(_ShapedSchedule):
    """Fast at first, slow at the end: 1 - (1 - t)^3 (Zhu and Gupta 2017)."""

    @staticmethod
    def shape(progress: float) -> float:
        return 1 - (1 - progress) ** 3


class LateSchedule(_ShapedSchedule):
    """Slow at first: t^2."""

    @staticmethod
    def shape(progress: float) -> float:
        return progress**2


class DepthFirst(TargetedPruning):
    """Layers go in the first half of the warm-up, widths in the second. For masks that do not fade."""

    def _prepare(self, state: State) -> None:
        super()._prepare(state)
        learner, plans, draw = self.learner, self.learner.plans, self.learner.draw

        def draw_in_turn(batch: int, progress: float) -> dict[str, Tensor]:
            layers = {axis: plan for axis, plan in plans.items() if axis == 'layer'}
            widths = {axis: plan for axis, plan in plans.items() if axis != 'layer'}
            for learner.plans, elapsed in ((layers, 2 * progress), (widths, 2 * progress - 1)):
                learner.progress = -math.inf  # each has a course of its own
                draw(batch, min(max(elapsed, 0.0), 1.0))
            learner.plans, learner.progress = plans, progress
            return learner.current_masks()

        learner.draw = draw_in_turn


class KeptScores(TargetedPruning):
    """Units go in the order of their scores at the start; gradients on the way do not count."""

    def _prepare(self, state: State) -> None:
        super()._prepare(state)
        self.learner.decay = 1.0


class GradientsOfHiddenDimensions(TargetedPruning):
    """Gradients on the way count for hidden dimensions as they do for other units."""

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        super().apply(event, state, logger)
        if event == Event.FIT_START:
            self.learner.hidden_is_settled = False


class AllLayersAtOnce(TargetedPruning):
    """Heads and KV groups go in all layers when the schedule has come to the next whole one."""

    def _prepare(self, state: State) -> None:
        super()._prepare(state)
        self.learner.layer_by_layer = False


class MergedExperts(TargetedPruning):
    """Experts that go are averaged, by their scores, into the one that stays whose router's row is most like theirs.

    Inner dimensions are paired first by their weights. It is written for the experts of transformers 5.
    """

    untouched = 0.0
    """Of the experts that stay, how many of the best take nothing over."""

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        super().apply(event, state, logger)
        if event == Event.FIT_START:
            cutter, masks, scores = state.model.cutter, self.final_masks()['expert'], self.learner.scores()['expert']
            for layer, (kept, weights) in enumerate(zip(masks, scores)):
                path = f'{cutter.family.decoder}.layers.{layer}.{cutter.family.mlp}'
                self._merge(cutter.model.get_submodule(path), kept != 0, weights)

    @torch.no_grad()
    def _merge(self, block: torch.nn.Module, kept: Tensor, weights: Tensor) -> None:
        best_first = weights.argsort(descending=True)
        stays = best_first[kept[best_first]]
        stays, goes = stays[round(self.untouched * len(stays)) :], torch.nonzero(~kept).flatten()
        rows = F.normalize(block.gate.weight, dim=1)
        nearest = stays[(rows[goes] @ rows[stays].T).argmax(1)]
        gate_up, down = block.experts.gate_up_proj, block.experts.down_proj
        size = down.shape[2]
        # Of every expert all weights of an inner dimension: [inner, 3 x hidden].
        units = torch.cat([gate_up[:, :size], gate_up[:, size:], down.transpose(1, 2)], 2)
        for expert in nearest.unique():
            total, mean = weights[expert].clone(), weights[expert] * units[expert]
            for other in goes[nearest == expert]:
                alike = F.normalize(units[expert], dim=1) @ F.normalize(units[other], dim=1).T
                _, order = linear_sum_assignment(alike.numpy(), maximize=True)
                total, mean = total + weights[other], mean + weights[other] * units[other][order]
            gates, ups, downs = (mean / total).chunk(3, dim=1)
            gate_up[expert], down[expert] = torch.cat([gates, ups]), downs.T


class PartlyMergedExperts(MergedExperts):
    """The better half of those that stay is left as it is."""

    untouched = 0.5


VARIANTS: dict[str, type[TargetedPruning]] = {
    'as it is': TargetedPruning,
    'truncation': Truncation,
    'half noise': HalfNoise,
    'fading noise': FadingNoise,
    'hard counts': HardCounts,
    'noise per micro-batch': NoisePerMicrobatch,
    'cubic schedule': CubicSchedule,
    'late schedule': LateSchedule,
    'depth first': DepthFirst,
    'kept scores': KeptScores,
    'gradients of hidden dimensions': GradientsOfHiddenDimensions,
    'all layers at once': AllLayersAtOnce,
    'merged experts': MergedExperts,
    'partly merged experts': PartlyMergedExperts,
}
