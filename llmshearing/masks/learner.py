"""What a way of learning masks offers, and the registry of all ways: the one place that knows them by name.

A learner holds one number or more per unit and makes masks of them. The algorithm asks it for the masks of each batch,
gives it their gradients back, and asks for masks without noise when it evaluates and at the end. Whoever has another
way registers a class with these methods, in Python (``mask_learners('mine')(MyMasks)``) or by an entry point of the
group ``llmshearing_mask_learners``, and names it in ``mask_learning``. The second is found by commands as well, such as
``llmshearing export`` of a checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import catalogue
from torch import Tensor

from llmshearing.masks.axes import AxisPlan
from llmshearing.masks.constraints import Constraint
from llmshearing.utils.checks import check_one_of, of_another_package

__all__ = [
    'LEARNER_KEYS',
    'LearnerSettings',
    'MaskLearner',
    'build_learner',
    'check_saved',
    'count_hard',
    'learner_class',
    'mask_learners',
]

# Keys of targeted_pruning that concern some learners only.
LEARNER_KEYS = (
    'warmup',
    'freeze_masks_after',
    'follow_schedule',
    'start_sparsity',
    'fade',
    'learning_rate',
    'multiplier_learning_rate',
    'multiplier_damping',
)
mask_learners = catalogue.create('llmshearing', 'mask_learners', entry_points=True)


@dataclasses.dataclass(kw_only=True)
class LearnerSettings:
    """What learners may be told; each takes what concerns it.

    Attributes:
        start_sparsity (float): Fraction removed that the warm-up starts from, of an axis that loses less in the end
            its final fraction. Default: ``0.0``.
        fade (float): With ``progressive``, the share of the warm-up during which the mask of a unit that goes falls
            from one to zero; 0 removes it at once. Default: ``0.0``.
        learning_rate (float): With ``lagrangian``, AdamW learning rate of the masks. Default: ``1.0``, as in the paper.
        multiplier_learning_rate (float): AdamW learning rate of the multipliers, which ascend. Default: ``1.0``.
        multiplier_damping (float): How strongly lambda answers to the change of the gap between expected and target
            sparsity, which keeps the counts from overshooting; 0 is the paper's rule. Default: ``20.0``.
        seed (int): Seeds the start and the noise. Default: ``17``.
    """

    start_sparsity: float = 0.0
    fade: float = 0.0
    learning_rate: float = 1.0
    multiplier_learning_rate: float = 1.0
    multiplier_damping: float = 20.0
    seed: int = 17


class MaskLearner(Protocol):
    """A way of learning masks. Tensors by axis have the shape of the axis's mask and lie on the CPU, in float32.

    Every rank holds a learner of its own and gives it the same numbers, so whatever is drawn must depend on the seed
    and the batch alone.

    Attributes:
        needs_scores (bool): Nothing but the scores at the start tells its units apart.
        follows_warmup (bool): Its masks move with the warm-up; otherwise they are the target's from the start.
        removes_for_good (bool): Its masks are one until a unit goes for good, so weights can compensate for it.
        finds_widths (bool): It can meet constraints that leave every row a number of units of its own.
        reads (tuple[str, ...]): What of :data:`LEARNER_KEYS` has a say; a run is warned of others that it sets. A
            class without the attribute is not asked.
        plans (dict[str, AxisPlan]): The pruned axes.
    """

    needs_scores: ClassVar[bool]
    follows_warmup: ClassVar[bool]
    removes_for_good: ClassVar[bool]
    finds_widths: ClassVar[bool]
    reads: ClassVar[tuple[str, ...]]
    plans: dict[str, AxisPlan]

    def __init__(
        self, plans: Mapping[str, AxisPlan], settings: LearnerSettings, constraints: Sequence[Constraint] | None = None
    ):
        """A learner at its start.

        Args:
            plans (Mapping[str, AxisPlan]): Axes to prune.
            settings (LearnerSettings): The run's.
            constraints (Sequence[Constraint] | None): What the expected counts must meet. Default: the target of every
                axis; others are given only where ``finds_widths``.
        """
        ...

    @classmethod
    def restore(cls, plans: Mapping[str, AxisPlan], state: Mapping[str, Any]) -> MaskLearner:
        """A learner to read masks of: all that :meth:`state_dict` says of them, without what training on would need.

        Raises:
            ValueError: If the state does not belong to these axes.
        """
        learner = cls(plans, LearnerSettings())
        learner.load_state_dict(state)
        return learner

    def start_from(self, scores: Mapping[str, Tensor]) -> None:
        """Takes importances of units as the start; axes may be left out, and higher is more important."""
        ...

    def draw(self, batch: int, progress: float) -> dict[str, Tensor]:
        """Masks of a batch by axis, values in [0, 1].

        Args:
            batch (int): Number of the batch since the run began.
            progress (float): Elapsed share of the warm-up, 0 and up.
        """
        ...

    def update(self, gradients: Mapping[str, Tensor], progress: float, rate: float) -> dict[str, float]:
        """Learns from one batch.

        Args:
            gradients (Mapping[str, Tensor]): d loss / d mask by axis, averaged over ranks.
            progress (float): Elapsed share of the warm-up.
            rate (float): Factor on learning rates (the schedule's, 0 to 1).

        Returns:
            dict[str, float]: Metrics to log.
        """
        ...

    def expected_kept(self) -> dict[str, Tensor]:
        """What each unit counts for in expected counts: P(z > 0) where masks are drawn. Default: the mask itself."""
        return self.deterministic('expected')

    def hard_counts(self) -> dict[str, list[int]]:
        """Masks above one half, without noise, in each row. Default: as many as :meth:`expected_kept` has."""
        return count_hard(self.plans, self.expected_kept())

    def scores(self) -> dict[str, Tensor]:
        """What decides which units stay; higher ones do."""
        ...

    def deterministic(self, counts: str) -> dict[str, Tensor]:
        """Masks without noise.

        Args:
            counts (str): ``'expected'``: each row keeps what it is expected to keep by now; ``'target'``: exactly the
                target's number of units.
        """
        ...

    def mask_tensors(self) -> dict[str, Tensor]:
        """The numbers that masks are made of, themselves and not copies, under names that all ranks share.

        Default: :meth:`scores`.
        """
        return self.scores()

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, from which :meth:`load_state_dict` goes on exactly."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: If the state does not belong to these axes.
        """
        ...


def learner_class(name: str) -> type[MaskLearner]:
    """The registered class of a way of learning masks.

    Raises:
        ValueError: If there is none of that name; names those there are.
    """
    check_one_of('mask_learning', name, mask_learners.get_all(), of_another_package('learner', 'mask_learners'))
    return mask_learners.get(name)


def build_learner(
    name: str, plans: Mapping[str, AxisPlan], settings: LearnerSettings, constraints: Sequence[Constraint] | None = None
) -> MaskLearner:
    """A learner at its start; arguments as in :class:`MaskLearner`.

    Raises:
        ValueError: If there is none of that name, or it cannot prune one of the axes.
    """
    learner = learner_class(name)
    if 'expert' in plans and not learner.removes_for_good:
        raise ValueError(
            f'mask_learning: {name} does not prune experts: they would come and go from batch to batch, and with them '
            'the tokens that the router sends. Use progressive or one_shot, or leave out num_experts.'
        )
    return learner(plans, settings, constraints)


def count_hard(plans: Mapping[str, AxisPlan], masks: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Masks above one half in each row."""
    return {axis: (plan.rows(masks[axis]) > 0.5).sum(1).tolist() for axis, plan in plans.items()}


def check_saved(plans: Mapping[str, AxisPlan], saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of saved tensors of every axis.

    Raises:
        ValueError: If one is missing or of another shape; names the axis and both shapes.
    """
    for axis, plan in plans.items():
        if axis not in saved or tuple(saved[axis].shape) != plan.mask_shape:
            got = f'shape {tuple(saved[axis].shape)}' if axis in saved else 'none'
            raise ValueError(f"the checkpoint's {axis} mask: got {got}, expected shape {plan.mask_shape}.")
    return {axis: saved[axis].clone() for axis in plans}
