"""Orthogonal bases of the residual stream: columns of Q are directions, in the order in which they should be kept.

All are made from one covariance of the normalised stream (:mod:`llmshearing.rotation.moments`), in float64 on the CPU,
with signs that do not depend on the machine: the largest component of every direction is positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    'NO_AXES',
    'by_energy',
    'completed_basis',
    'energies',
    'fixed_positions',
    'principal_basis',
    'principal_within',
]


NO_AXES = torch.empty(0, dtype=torch.int64)


def principal_basis(covariance: Tensor, fixed: Tensor = NO_AXES) -> Tensor:
    """Principal directions by falling energy; fixed axes take their place among them unrotated.

    Args:
        covariance (Tensor): Symmetric, float64 [hidden, hidden].
        fixed (Tensor): Axes that stay axes, int64, for tied embeddings. The other directions have nothing of them.
            Default: none.

    Returns:
        Tensor: Q, float64 [hidden, hidden], orthogonal.

    Raises:
        ValueError: If the covariance is not square, not finite, or all zero.
    """
    covariance = _checked(covariance)
    axes = torch.eye(len(covariance), dtype=torch.float64)
    fixed = fixed.cpu()
    free = torch.ones(len(covariance), dtype=torch.bool)
    free[fixed] = False
    basis = torch.cat([principal_within(covariance, axes[:, free]), axes[:, fixed]], 1)
    return by_energy(basis, covariance)


def principal_within(covariance: Tensor, space: Tensor) -> Tensor:
    """Principal directions inside a subspace, by falling energy.

    Args:
        covariance (Tensor): Symmetric, float64 [hidden, hidden].
        space (Tensor): Orthonormal columns, float64 [hidden, dimensions].

    Returns:
        Tensor: Orthonormal columns that span the same subspace, float64 [hidden, dimensions].
    """
    if space.shape[1] == 0:
        return space
    inside = space.T @ covariance @ space
    vectors = torch.linalg.eigh((inside + inside.T) / 2).eigenvectors.flip(1)
    return _signed(space @ vectors)


def completed_basis(subspace: Tensor, covariance: Tensor, fixed: Tensor = NO_AXES) -> Tensor:
    """A learned subspace as an orthogonal Q: first its own principal directions, then those of the complement.

    Args:
        subspace (Tensor): Orthonormal columns, [hidden, kept]. Fixed axes lie wholly inside or wholly outside it.
        covariance (Tensor): Symmetric, float64 [hidden, hidden].
        fixed (Tensor): Axes that stay axes, int64. Default: none.

    Returns:
        Tensor: Q, float64 [hidden, hidden]; its leading ``kept`` columns span ``subspace``.

    Raises:
        ValueError: If a fixed axis is neither inside nor outside.
    """
    covariance = _checked(covariance)
    hidden, kept = subspace.shape
    subspace = subspace.double().cpu()
    fixed = fixed.cpu()
    inside = subspace[fixed].square().sum(1)
    if ((inside > 1e-6) & (inside < 1 - 1e-6)).any():
        raise ValueError('a fixed axis is partly inside the subspace; learn the subspace of the other axes only.')
    axes = torch.eye(hidden, dtype=torch.float64)
    within, without = axes[:, fixed[inside > 0.5]], axes[:, fixed[inside <= 0.5]]
    free = axes.clone()
    free[fixed] = 0
    left, _, _ = torch.linalg.svd(free @ subspace, full_matrices=False)
    learned = left[:, : kept - within.shape[1]]
    rest = axes[:, torch.ones(hidden, dtype=torch.bool).index_fill(0, fixed, False)]
    outside = rest - learned @ (learned.T @ rest)
    left, _, _ = torch.linalg.svd(outside, full_matrices=False)
    outside = left[:, : hidden - kept - without.shape[1]]
    outside[fixed] = 0
    learned[fixed] = 0
    leading = by_energy(torch.cat([principal_within(covariance, learned), within], 1), covariance)
    trailing = by_energy(torch.cat([principal_within(covariance, outside), without], 1), covariance)
    return torch.cat([leading, trailing], 1)


def energies(basis: Tensor, covariance: Tensor) -> Tensor:
    """Energy of the stream along each direction, ``diag(Q^T C Q)``, float64 [directions]."""
    covariance = covariance.double().cpu()
    return ((covariance @ basis) * basis).sum(0)


def by_energy(basis: Tensor, covariance: Tensor) -> Tensor:
    """Directions, float64 [hidden, directions], by falling energy (:func:`energies`)."""
    order = energies(basis, covariance).sort(descending=True, stable=True).indices
    return basis[:, order]


def fixed_positions(basis: Tensor, fixed: Tensor) -> Tensor:
    """Where the fixed axes stand among the directions, int64 in the order of ``fixed``."""
    return basis[fixed].abs().argmax(1)


def _signed(vectors: Tensor) -> Tensor:
    largest = vectors.abs().argmax(0, keepdim=True)
    return vectors * vectors.gather(0, largest).sign()


def _checked(covariance: Tensor) -> Tensor:
    covariance = covariance.double().cpu()
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f'a covariance is square, got {list(covariance.shape)}.')
    if not covariance.isfinite().all():
        raise ValueError(
            'the covariance is not finite; the model or the data are damaged, or float16 overflowed: '
            'save the model in bfloat16 or float32, and take that.'
        )
    if not covariance.diagonal().any():
        raise ValueError('the covariance is zero: no token was seen; give more data.')
    return covariance
