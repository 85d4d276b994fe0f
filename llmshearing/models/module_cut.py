"""The cut of one module: which rows and columns of its weight stay, and what scales them.

    weight[rows][:, columns] * row_scale[:, None] * column_scale[None, :]

Scaling is done in float32 and rounded once to the weight's dtype. Which scales a module has is said in
:mod:`~llmshearing.models.cutting`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmshearing.models.roles import Linear, Norm, PerUnit, Whole

__all__ = ['ModuleCut', 'cut_weight', 'product_of']


def cut_weight(
    weight: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
) -> Tensor:
    """Kept rows and columns of a matrix, scaled; differentiable in the weight and both scales.

    Args:
        weight (Tensor): [out, in].
        rows (Tensor | None): int64 [kept out]; None keeps all.
        columns (Tensor | None): int64 [kept in]; None keeps all.
        row_scale (Tensor | None): float32 [kept out].
        column_scale (Tensor | None): float32 [kept in].

    Returns:
        Tensor: [kept out, kept in], in the weight's dtype; the weight itself where nothing is cut or scaled.
    """
    if rows is None and columns is None and row_scale is None and column_scale is None:
        return weight
    return _CutWeight.apply(weight, rows, columns, row_scale, column_scale)


def _select(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    if rows is not None:
        weight = weight.index_select(0, rows)
    return weight if columns is None else weight.index_select(1, columns)


class _CutWeight(torch.autograd.Function):
    """Autograd of :func:`cut_weight`, written out so that nothing but the full weight is kept for the backward pass.

    Composed from indexing and products, autograd would keep two more copies of every cut weight and its backward would
    add into zero-filled buffers, which on a CPU costs as much as the matrix product it belongs to.
    """

    @staticmethod
    def forward(ctx, weight, rows, columns, row_scale, column_scale):
        ctx.save_for_backward(weight, rows, columns, row_scale, column_scale)
        out = _select(weight, rows, columns)
        return out if row_scale is None and column_scale is None else _scaled(out, row_scale, column_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, rows, columns, row_scale, column_scale = ctx.saved_tensors
        needs_weight, _, _, needs_row, needs_column = ctx.needs_input_grad
        grad_row = grad_column = grad_weight = None
        if needs_row or needs_column:
            product = grad.float() * _select(weight, rows, columns)
            if needs_row:
                grad_row = product.sum(1) if column_scale is None else product @ column_scale
            if needs_column:
                grad_column = product.sum(0) if row_scale is None else row_scale @ product
        if needs_weight:
            grad_weight = _scaled(grad, row_scale, column_scale)
            if columns is not None:
                wide = grad_weight.new_zeros(grad_weight.shape[0], weight.shape[1])
                grad_weight = wide.index_copy_(1, columns, grad_weight)
            if rows is not None:
                grad_weight = grad_weight.new_zeros(weight.shape).index_copy_(0, rows, grad_weight)
        return grad_weight, None, None, grad_row, grad_column


def _scaled(matrix: Tensor, row_scale: Tensor | None, column_scale: Tensor | None) -> Tensor:
    dtype = matrix.dtype
    if row_scale is None:
        return matrix if column_scale is None else (matrix * column_scale).to(dtype)
    scaled = matrix * row_scale[:, None]
    if column_scale is not None:
        scaled.mul_(column_scale)  # in place: a second buffer of this size costs more than the product
    return scaled.to(dtype)


@dataclasses.dataclass(frozen=True)
class ModuleCut:
    """The cut of one module.

    Attributes:
        role (Linear | Norm | Whole | PerUnit): What the module is.
        rows (Tensor | None): Kept positions along the rows (Linear) or the dimension (Norm).
        columns (Tensor | None): Kept positions along the columns (Linear).
        row_scale (Tensor | None): float32 [kept rows].
        column_scale (Tensor | None): float32 [kept columns].
        real (Tensor | None): For a norm over padded heads: positions within ``rows`` that are not padding.
        gain (Tensor | None): For a norm over hidden dimensions: float32 scalar that its gain, and not its bias, is
            multiplied by.
    """

    role: Linear | Norm | Whole | PerUnit
    rows: Tensor | None = None
    columns: Tensor | None = None
    row_scale: Tensor | None = None
    column_scale: Tensor | None = None
    real: Tensor | None = None
    gain: Tensor | None = None

    def parameters(self, full: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The cut parameters of the module, from its full ones (``weight`` and perhaps ``bias``)."""
        if isinstance(self.role, Whole):
            return {name: tensor for name, tensor in full.items() if tensor is not None}
        if isinstance(self.role, PerUnit):
            return {name: self._vector(tensor, None) for name, tensor in full.items() if tensor is not None}
        weight, bias = full['weight'], full.get('bias')
        if weight is None:
            raise ValueError('a module without a weight cannot be cut.')
        if isinstance(self.role, Linear):
            cut = {'weight': cut_weight(weight, self.rows, self.columns, self.row_scale, self.column_scale)}
        else:
            cut = {'weight': self._vector(weight, product_of(self.row_scale, self.gain), self.role.offset)}
        if bias is not None:
            cut['bias'] = self._vector(bias, self.row_scale)
        return cut

    def _vector(self, vector: Tensor, scale: Tensor | None, offset: float = 0.0) -> Tensor:
        if self.rows is not None:
            vector = vector.index_select(0, self.rows)
        return vector if scale is None else ((vector + offset) * scale - offset).to(vector.dtype)


def product_of(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The product of two scales, where None is one."""
    if first is None or second is None:
        return second if first is None else first
    return first * second
