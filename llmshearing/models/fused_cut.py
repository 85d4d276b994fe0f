"""The cut of a matrix on a GPU: one kernel each way, instead of an index, a product and a rounding pass each.

The formulas are those of :mod:`llmshearing.models.cutting`, which computes them with PyTorch's own operators elsewhere.
Products are taken in float32 in the same order and rounded once, so that both give the same bits; sums over rows and
columns go block by block in a fixed order, so that a repeated step gives the same bits too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ['cut', 'uncut']

BLOCK_ROWS, BLOCK_COLUMNS = 32, 256
# Kept counts change from step to step; a kernel for every alignment of them would be compiled again and again.
_ANY = ['rows', 'columns', 'row_scale', 'column_scale', 'n_rows']


@triton.jit
def _positions(rows, columns, n_rows, n_columns, stride, IS_ROWS: tl.constexpr, IS_COLUMNS: tl.constexpr,
               BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):  # fmt: skip
    """Rows and columns of this block in the cut matrix, which of them exist, and their places in the full one."""
    r = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    full_r, full_c = r.to(tl.int64), c.to(tl.int64)
    if IS_ROWS:
        full_r = tl.load(rows + r, mask=r < n_rows, other=0)
    if IS_COLUMNS:
        full_c = tl.load(columns + c, mask=c < n_columns, other=0)
    exists = (r < n_rows)[:, None] & (c < n_columns)[None, :]
    return r, c, exists, full_r[:, None] * stride + full_c[None, :]


@triton.jit(do_not_specialize=_ANY)
def _cut(weight, rows, columns, row_scale, column_scale, out, n_rows, n_columns, stride,
         IS_ROWS: tl.constexpr, IS_COLUMNS: tl.constexpr, IS_ROW_SCALE: tl.constexpr, IS_COLUMN_SCALE: tl.constexpr,
         BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):  # fmt: skip
    r, c, exists, place = _positions(
        rows, columns, n_rows, n_columns, stride, IS_ROWS, IS_COLUMNS, BLOCK_ROWS, BLOCK_COLUMNS
    )
    value = tl.load(weight + place, mask=exists, other=0.0)
    if IS_ROW_SCALE:
        value = value.to(tl.float32) * tl.load(row_scale + r, mask=r < n_rows, other=0.0)[:, None]
    if IS_COLUMN_SCALE:
        value = value.to(tl.float32) * tl.load(column_scale + c, mask=c < n_columns, other=0.0)[None, :]
    tl.store(out + r.to(tl.int64)[:, None] * n_columns + c[None, :], value.to(out.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=_ANY)
def _uncut(grad, weight, rows, columns, row_scale, column_scale, grad_weight, row_parts, column_parts,
           n_rows, n_columns, stride,
           IS_ROWS: tl.constexpr, IS_COLUMNS: tl.constexpr, IS_ROW_SCALE: tl.constexpr, IS_COLUMN_SCALE: tl.constexpr,
           FOR_WEIGHT: tl.constexpr, FOR_ROWS: tl.constexpr, FOR_COLUMNS: tl.constexpr,
           BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):  # fmt: skip
    r, c, exists, place = _positions(
        rows, columns, n_rows, n_columns, stride, IS_ROWS, IS_COLUMNS, BLOCK_ROWS, BLOCK_COLUMNS
    )
    g = tl.load(grad + r.to(tl.int64)[:, None] * n_columns + c[None, :], mask=exists, other=0.0).to(tl.float32)
    by_row, by_column = g, g
    if IS_ROW_SCALE:
        by_row = g * tl.load(row_scale + r, mask=r < n_rows, other=0.0)[:, None]
    if IS_COLUMN_SCALE:
        factor = tl.load(column_scale + c, mask=c < n_columns, other=0.0)[None, :]
        by_column = g * factor
    if FOR_WEIGHT:
        value = by_row
        if IS_COLUMN_SCALE:
            value = by_row * factor
        tl.store(grad_weight + place, value.to(grad_weight.dtype.element_ty), mask=exists)
    if FOR_ROWS or FOR_COLUMNS:
        w = tl.load(weight + place, mask=exists, other=0.0).to(tl.float32)
        if FOR_ROWS:
            part = tl.program_id(1).to(tl.int64) * n_rows + r
            tl.store(row_parts + part, tl.sum(by_column * w, 1), mask=r < n_rows)
        if FOR_COLUMNS:
            part = tl.program_id(0).to(tl.int64) * n_columns + c
            tl.store(column_parts + part, tl.sum(by_row * w, 0), mask=c < n_columns)


def _sizes(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> tuple[int, int, tuple[int, int]]:
    n_rows = weight.shape[0] if rows is None else len(rows)
    n_columns = weight.shape[1] if columns is None else len(columns)
    return n_rows, n_columns, (triton.cdiv(n_rows, BLOCK_ROWS), triton.cdiv(n_columns, BLOCK_COLUMNS))


def _given(weight: Tensor, *optional: Tensor | None) -> tuple[list[Tensor], dict[str, bool]]:
    """The optional tensors, with ``weight`` in the place of those that are None and not looked at, and which are."""
    names = ('IS_ROWS', 'IS_COLUMNS', 'IS_ROW_SCALE', 'IS_COLUMN_SCALE')
    return (
        [weight if tensor is None else tensor.contiguous() for tensor in optional],
        {name: tensor is not None for name, tensor in zip(names, optional)},
    )


def cut(
    weight: Tensor, rows: Tensor | None, columns: Tensor | None, row_scale: Tensor | None, column_scale: Tensor | None
) -> Tensor:
    """Kept rows and columns of a matrix, scaled; see :func:`llmshearing.models.cutting.cut_weight`."""
    n_rows, n_columns, grid = _sizes(weight, rows, columns)
    out = weight.new_empty(n_rows, n_columns)
    if out.numel():
        tensors, flags = _given(weight, rows, columns, row_scale, column_scale)
        _cut[grid](
            weight,
            *tensors,
            out,
            n_rows,
            n_columns,
            weight.stride(0),
            **flags,
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_COLUMNS=BLOCK_COLUMNS,
        )
    return out


def uncut(
    grad: Tensor,
    weight: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of weight, row scale and column scale from that of the cut matrix; None where ``needs`` has no need."""
    n_rows, n_columns, grid = _sizes(weight, rows, columns)
    for_weight, for_rows, for_columns = needs
    is_whole = rows is None and columns is None
    grad_weight = (torch.empty_like if is_whole else torch.zeros_like)(weight) if for_weight else None
    row_parts = torch.empty(grid[1], n_rows, device=weight.device) if for_rows else None
    column_parts = torch.empty(grid[0], n_columns, device=weight.device) if for_columns else None
    if n_rows and n_columns:
        tensors, flags = _given(weight, rows, columns, row_scale, column_scale)
        outputs = [weight if tensor is None else tensor for tensor in (grad_weight, row_parts, column_parts)]
        _uncut[grid](
            grad.contiguous(),
            weight,
            *tensors,
            *outputs,
            n_rows,
            n_columns,
            weight.stride(0),
            **flags,
            FOR_WEIGHT=for_weight,
            FOR_ROWS=for_rows,
            FOR_COLUMNS=for_columns,
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_COLUMNS=BLOCK_COLUMNS,
        )
    sums = (None if parts is None else parts.sum(0) for parts in (row_parts, column_parts))
    return (grad_weight, *sums)
