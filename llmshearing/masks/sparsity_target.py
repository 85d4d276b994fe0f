"""A target that names no shape, only how much goes: ``target: {sparsity: 0.6}`` (the way of CoFi, Xia et al. 2022).

Every layer then ends with widths of its own. Such a model trains and evaluates under its masks, but no stock Hugging
Face config describes it, so it does not export; it is here to measure what uniformity costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from llmshearing.masks.axes import AxisPlan
from llmshearing.models.shapes import ModelShape
from llmshearing.models.units import AXES, mask_shapes
from llmshearing.utils.checks import is_number

__all__ = ['NOT_EXPORTABLE', 'SparsityTarget', 'plan_open_axes', 'read_sparsity_target']

NOT_EXPORTABLE = (
    'a run whose target is a sparsity leaves layers of different widths, which no stock Hugging Face config describes, '
    'so it cannot be exported. Evaluate it within its run, or name a shape, a fraction or a budget as target.'
)


@dataclasses.dataclass(frozen=True)
class SparsityTarget:
    """How much of the layers' parameters to remove, and where.

    Attributes:
        sparsity (float): Fraction of the decoder layers' projection weights to remove.
        axes (tuple[str, ...]): Axes with masks.
    """

    sparsity: float
    axes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The values by name."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """How much goes, in words."""
        return f"{self.sparsity:.1%} of the layers' parameters removed"


def read_sparsity_target(target: Mapping[str, Any], source: ModelShape) -> SparsityTarget | None:
    """The sparsity target that ``target`` names, or None if it names a shape.

    Args:
        target (Mapping[str, Any]): ``sparsity``, a number above 0 and below 1, and perhaps ``axes``, a list of
            :data:`~llmshearing.models.units.AXES` to put masks on (default: all that the source has).
        source (ModelShape): Shape of the source.

    Raises:
        ValueError: Names every problem.
    """
    if 'sparsity' not in target:
        return None
    # Experts are not among them: their masks would come and go, and with them the tokens that the router sends.
    possible = tuple(axis for axis in AXES if axis != 'expert' and (axis != 'kv_group' or source.group_size > 1))
    problems = [
        f'{key!r} cannot stand beside sparsity, which leaves the shape to training; possible: axes.'
        for key in target
        if key not in ('sparsity', 'axes')
    ]
    sparsity = target['sparsity']
    if not is_number(sparsity) or not 0 < sparsity < 1:
        problems.append(f'sparsity={sparsity!r}: must be a number above 0 and below 1.')
    axes = target.get('axes', possible)
    if isinstance(axes, str) or not axes or any(axis not in possible for axis in axes):
        problems.append(f'axes={axes!r}: must be a list of one or more of {", ".join(possible)}.')
    if problems:
        raise ValueError(
            '\n'.join([f'The target {dict(target)} is not possible:', *(f'  - {problem}' for problem in problems)])
        )
    return SparsityTarget(float(sparsity), tuple(axis for axis in AXES if axis in axes))


def plan_open_axes(source: ModelShape, target: SparsityTarget) -> dict[str, AxisPlan]:
    """The axes with masks; how many units stay in a row is left open."""
    shapes = mask_shapes(source)
    units = {axis: shape[-1] for axis, shape in shapes.items()}
    units['intermediate'] = source.intermediate_size  # in a mixture, of one expert
    return {axis: AxisPlan(axis, shapes[axis], units[axis], keep=None) for axis in target.axes}
