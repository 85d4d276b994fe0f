"""Counts of every pruned axis beside its target, and which axes learning has not brought there by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from llmshearing.masks.axes import AxisPlan

__all__ = ['AxisReport', 'axis_reports', 'unconverged']


@dataclasses.dataclass(frozen=True)
class AxisReport:
    """Counts of one axis, per row.

    Attributes:
        axis (str): Name of the axis.
        units (int): Units per row in the source.
        target (int | None): Units per row in the target; None where that is left to training.
        expected (float): Expected kept units, mean over rows.
        expected_min (float): Of the row that expects fewest.
        expected_max (float): Of the row that expects most.
        hard (float): Gates above one half, mean over rows.
    """

    axis: str
    units: int
    target: int | None
    expected: float
    expected_min: float
    expected_max: float
    hard: float

    def describe(self) -> str:
        """The counts in one line."""
        return (
            f'{self.axis}: target {self.target} of {self.units}, expected {self.expected:.2f} '
            f'(rows {self.expected_min:.2f} to {self.expected_max:.2f}), above one half {self.hard:.2f}'
        )


def axis_reports(
    plans: Mapping[str, AxisPlan], expected: Mapping[str, Tensor], hard: Mapping[str, Sequence[int]]
) -> list[AxisReport]:
    """Counts of all axes.

    Args:
        plans (Mapping[str, AxisPlan]): The pruned axes.
        expected (Mapping[str, Tensor]): What each unit counts for, mask-shaped; see
            :meth:`~llmshearing.masks.learner.MaskLearner.expected_kept`.
        hard (Mapping[str, Sequence[int]]): Gates above one half in each row.
    """
    reports = []
    for axis, plan in plans.items():
        counts = plan.rows(expected[axis]).sum(1)
        reports.append(
            AxisReport(
                axis=axis,
                units=plan.units,
                target=plan.keep,
                expected=counts.mean().item(),
                expected_min=counts.min().item(),
                expected_max=counts.max().item(),
                hard=sum(hard[axis]) / len(hard[axis]),
            )
        )
    return reports


def unconverged(reports: Sequence[AxisReport], tolerance: float) -> list[AxisReport]:
    """Axes whose mean expected count is further from the target than ``tolerance`` x target (at least half a unit)."""
    return [r for r in reports if r.target is not None and abs(r.expected - r.target) > max(tolerance * r.target, 0.5)]
