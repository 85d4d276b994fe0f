"""``one_shot``: the target's best-scored units from the first batch on. Nothing is learned but the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from llmshearing.masks.axes import AxisPlan, finalize_masks
from llmshearing.masks.constraints import Constraint
from llmshearing.masks.learner import LearnerSettings, MaskLearner, check_saved, mask_learners
from llmshearing.masks.progressive import random_order

__all__ = ['OneShotMasks']


@mask_learners('one_shot')
class OneShotMasks(MaskLearner):
    """Masks that are the target's from the start.

    Args:
        plans (Mapping[str, AxisPlan]): Axes to prune.
        settings (LearnerSettings): The seed, which orders the units until they are scored.
        constraints (Sequence[Constraint] | None): Not looked at; the target of every axis is met.
    """

    needs_scores: ClassVar[bool] = True
    follows_warmup: ClassVar[bool] = False
    removes_for_good: ClassVar[bool] = True
    finds_widths: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, plans: Mapping[str, AxisPlan], settings: LearnerSettings, constraints: Sequence[Constraint] | None = None
    ):
        self.plans = dict(plans)
        self.importance = random_order(plans, settings.seed)

    def start_from(self, scores: Mapping[str, Tensor]) -> None:
        self.importance |= {axis: value.float().clone() for axis, value in scores.items()}

    def draw(self, batch: int, progress: float) -> dict[str, Tensor]:
        return self.deterministic('target')

    def update(self, gradients: Mapping[str, Tensor], progress: float, rate: float) -> dict[str, float]:
        return {}

    def scores(self) -> dict[str, Tensor]:
        return dict(self.importance)

    def deterministic(self, counts: str) -> dict[str, Tensor]:
        """Ones for the target's number of best-scored units, whatever ``counts`` asks for."""
        return finalize_masks(self.plans, self.importance)

    def state_dict(self) -> dict[str, Any]:
        return {'importance': {axis: value.clone() for axis, value in self.importance.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.importance = check_saved(self.plans, state.get('importance', {}))
