"""The finish: from learned masks to exactly the target's units, and whether learning had got there by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from llmshearing.masks.axes import AxisPlan
from llmshearing.masks.lagrangian import LagrangianMasks
from llmshearing.masks.progressive import ProgressiveMasks

__all__ = ['AxisReport', 'MaskLearner', 'axis_reports', 'unconverged']

MaskLearner = LagrangianMasks | ProgressiveMasks


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
        return (
            f'{self.axis}: target {self.target} of {self.units}, expected {self.expected:.2f} '
            f'(rows {self.expected_min:.2f} to {self.expected_max:.2f}), above one half {self.hard:.2f}'
        )


def axis_reports(
    plans: Mapping[str, AxisPlan], kept: Mapping[str, Tensor], hard: Mapping[str, Sequence[int]]
) -> list[AxisReport]:
    """Counts of all axes.

    Args:
        plans (Mapping[str, AxisPlan]): The pruned axes.
        kept (Mapping[str, Tensor]): P(z > 0) of every unit, mask-shaped.
        hard (Mapping[str, Sequence[int]]): Gates above one half in each row.
    """
    reports = []
    for axis, plan in plans.items():
        expected = plan.rows(kept[axis]).sum(1)
        reports.append(
            AxisReport(
                axis=axis,
                units=plan.units,
                target=plan.keep,
                expected=expected.mean().item(),
                expected_min=expected.min().item(),
                expected_max=expected.max().item(),
                hard=sum(hard[axis]) / len(hard[axis]),
            )
        )
    return reports


def unconverged(reports: Sequence[AxisReport], tolerance: float) -> list[AxisReport]:
    """Axes whose mean expected count is further from the target than ``tolerance`` x target (at least half a unit)."""
    return [r for r in reports if r.target is not None and abs(r.expected - r.target) > max(tolerance * r.target, 0.5)]
