"""``lagrangian``: hard concrete gates under constraints, one per axis (Sheared LLaMA, section 3.1) or one on the whole.

The gates are a few hundred thousand numbers, so they live on the CPU in float32 on every rank, with an optimizer of
their own. Each batch draws one set of gates from noise that depends on (seed, batch) alone; all ranks and
micro-batches of a batch share it. So ranks never disagree on which layers run, and the result does not depend on how
many ranks there are.

The multipliers of the paper keep rising while the masks, which have momentum, are already on their way: the counts
overshoot the target and swing. Here lambda ascends on the gap plus ``damping`` times the gap's last change, so it gives
way as soon as the gap closes. ``damping=0`` is the paper's rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmshearing.masks.axes import AxisPlan, keep_largest
from llmshearing.masks.constraints import AxisConstraint, Constraint, penalty, target_sparsity
from llmshearing.masks.hard_concrete import (
    LOG_ALPHA_MAX,
    LOG_ALPHA_MIN,
    deterministic_gate,
    probability_kept,
    sample_gate,
)
from llmshearing.masks.learner import LearnerSettings, MaskLearner, check_saved, count_hard, mask_learners

__all__ = ['LagrangianMasks']

START_LOW, START_HIGH = 4.0, 4.5  # P(z > 0) between 0.996 and 0.998, and no two alike


@mask_learners('lagrangian')
class LagrangianMasks(MaskLearner):
    """Gates and multipliers of all axes.

    Args:
        plans (Mapping[str, AxisPlan]): Axes to prune.
        settings (LearnerSettings): The learning rates, the damping, the start and the seed.
        constraints (Sequence[Constraint] | None): What the expected counts must meet. Default: the
            target of every axis.
    """

    needs_scores: ClassVar[bool] = False
    follows_warmup: ClassVar[bool] = True
    removes_for_good: ClassVar[bool] = False
    finds_widths: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = (
        'warmup',
        'freeze_masks_after',
        'follow_schedule',
        'start_sparsity',
        'learning_rate',
        'multiplier_learning_rate',
        'multiplier_damping',
    )

    def __init__(
        self, plans: Mapping[str, AxisPlan], settings: LearnerSettings, constraints: Sequence[Constraint] | None = None
    ):
        self.constraints = (
            [AxisConstraint(plan) for plan in plans.values()] if constraints is None else list(constraints)
        )
        self.plans, self.start_sparsity, self.seed = dict(plans), settings.start_sparsity, settings.seed
        generator = torch.Generator().manual_seed(settings.seed)
        self.log_alpha = {axis: _start_distinct(plan, generator) for axis, plan in self.plans.items()}
        self.multipliers = {constraint.name: torch.zeros(2, requires_grad=True) for constraint in self.constraints}
        self._base_rates = (settings.learning_rate, settings.multiplier_learning_rate)
        self.optimizer = torch.optim.AdamW(
            [
                {'params': list(self.log_alpha.values()), 'lr': self._base_rates[0]},
                {'params': list(self.multipliers.values()), 'lr': self._base_rates[1], 'maximize': True},
            ],
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )
        self.damping = settings.multiplier_damping
        self.gaps: dict[str, float] = {}
        self._gates: dict[str, Tensor] = {}

    @classmethod
    def restore(cls, plans: Mapping[str, AxisPlan], state: Mapping[str, Any]) -> LagrangianMasks:
        learner = cls(plans, LearnerSettings())
        learner.log_alpha = check_saved(plans, state.get('log_alpha', {}))  # all that masks are made of
        return learner

    def start_from(self, scores: Mapping[str, Tensor]) -> None:
        """Starts the gates in the order of the scores: in each row, the higher the more surely open."""
        with torch.no_grad():
            for axis, value in scores.items():
                plan = self.plans[axis]
                rows = plan.rows(value)
                rank = rows.argsort(dim=1).argsort(dim=1).float()
                # Rows differ by less than a rank, so that no two gates are alike.
                rank += torch.arange(len(rows))[:, None] / (len(rows) + 1)
                self.log_alpha[axis].copy_(
                    (START_LOW + (START_HIGH - START_LOW) * rank / plan.units).view(plan.mask_shape)
                )

    def draw(self, batch: int, progress: float) -> dict[str, Tensor]:
        """The gates of one batch, from noise that depends on the seed and the batch's number alone."""
        del progress
        generator = torch.Generator().manual_seed(_mix_seed(self.seed, batch))
        self._gates = {axis: sample_gate(log_alpha, generator) for axis, log_alpha in self.log_alpha.items()}
        return {axis: gate.detach() for axis, gate in self._gates.items()}

    def update(self, gradients: Mapping[str, Tensor], progress: float, rate: float) -> dict[str, float]:
        """One step of masks and multipliers."""
        self.optimizer.zero_grad(set_to_none=True)
        metrics, total, gaps = {}, torch.zeros(()), {}
        kept = {axis: probability_kept(log_alpha) for axis, log_alpha in self.log_alpha.items()}
        for constraint in self.constraints:
            name, sparsity = constraint.name, constraint.sparsity(kept)
            target = target_sparsity(progress, self.start_sparsity, constraint.final_sparsity)
            value = penalty(sparsity, target, self.multipliers[name][0], self.multipliers[name][1])
            total = total + value
            gaps[name] = sparsity.mean().item() - target
            metrics[f'{name}/penalty'] = value.item()
            metrics[f'{name}/target'] = constraint.logged_target(target)
            metrics[f'{name}/lambda'], metrics[f'{name}/phi'] = self.multipliers[name].tolist()
        losses = [(self._gates[axis] * gradients[axis]).sum() for axis in self.plans]
        (total + sum(losses)).backward()
        for name, gap in gaps.items():
            slope = self.multipliers[name].grad
            assert slope is not None  # of the penalty, just now
            slope[0] += self.damping * (gap - self.gaps.get(name, gap))
        self.gaps = gaps
        for group, base in zip(self.optimizer.param_groups, self._base_rates):
            group['lr'] = base * rate
        self.optimizer.step()
        with torch.no_grad():
            for log_alpha in self.log_alpha.values():
                log_alpha.clamp_(LOG_ALPHA_MIN, LOG_ALPHA_MAX)
        metrics['penalty'] = total.item()
        return metrics

    def expected_kept(self) -> dict[str, Tensor]:
        """P(z > 0) of every unit by axis."""
        return {axis: probability_kept(log_alpha.detach()) for axis, log_alpha in self.log_alpha.items()}

    def scores(self) -> dict[str, Tensor]:
        return {axis: log_alpha.detach() for axis, log_alpha in self.log_alpha.items()}

    def deterministic(self, counts: str) -> dict[str, Tensor]:
        """Gates without noise; ``'expected'``: each row keeps its expected number of units, rounded."""
        masks = {}
        for axis, plan in self.plans.items():
            log_alpha = self.log_alpha[axis].detach()
            keep = None
            if counts == 'expected':
                keep = plan.rows(probability_kept(log_alpha)).sum(1).round().long().clamp(min=1)
            masks[axis] = deterministic_gate(log_alpha) * keep_largest(plan, log_alpha, keep)
        return masks

    def hard_counts(self) -> dict[str, list[int]]:
        return count_hard(self.plans, {axis: deterministic_gate(value) for axis, value in self.scores().items()})

    def state_dict(self) -> dict[str, Any]:
        return {
            'log_alpha': {axis: value.detach().clone() for axis, value in self.log_alpha.items()},
            'multipliers': {name: value.detach().clone() for name, value in self.multipliers.items()},
            'optimizer': self.optimizer.state_dict(),
            'gaps': dict(self.gaps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        log_alpha = check_saved(self.plans, state.get('log_alpha', {}))
        with torch.no_grad():
            for own, loaded in ((self.log_alpha, log_alpha), (self.multipliers, state['multipliers'])):
                for name, value in own.items():
                    value.copy_(loaded[name])
        self.optimizer.load_state_dict(state['optimizer'])
        self.gaps = dict(state['gaps'])


def _start_distinct(plan: AxisPlan, generator: torch.Generator) -> Tensor:
    """Distinct values in random order: with ties, chance at the bound would decide what is pruned."""
    size = torch.Size(plan.mask_shape).numel()
    values = torch.linspace(START_LOW, START_HIGH, size)[torch.randperm(size, generator=generator)]
    return values.view(plan.mask_shape).requires_grad_()


def _mix_seed(seed: int, batch: int) -> int:
    """One generator seed per (seed, batch), in 63 bits (the splitmix64 finaliser)."""
    value = (seed * 0x9E3779B97F4A7C15 + batch) & (2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * factor) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1
