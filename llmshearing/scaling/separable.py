"""One solver for both scaling laws: least squares where most constants enter linearly.

The laws of this package have the form ``loss = offset + basis(exponents) @ coefficients``. Fitting all constants at
once from one start is fragile: with parameters around 1e9 a coefficient such as A spans many powers of ten. The
decision here: callers measure sizes relative to their geometric mean, so that every constant is of order one; for
given exponents the coefficients are solved exactly (non-negative least squares), so that only the exponents need
starting points; a grid of starts is tried, and the best few are refined jointly in log space. Residuals are logarithms
of predicted over measured loss, i.e. relative errors, with the squared or the Huber loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, nnls

__all__ = ['SeparableFit', 'fit_separable']

# A prediction may pass zero while the solver searches; its logarithm is cut here.
_SMALLEST_RATIO = 1e-6
_REWEIGHTINGS = 4
_REFINED = 4  # starts whose fits are refined jointly, the best
# Coefficients are of order one; the search leaves those on their bound at rounding errors.
_ZERO = 1e-12


@dataclass(frozen=True)
class SeparableFit:
    """Result of :func:`fit_separable`.

    Args:
        exponents (np.ndarray): [exponents] best values inside the bounds.
        coefficients (np.ndarray): [coefficients] best values, in the units of the basis.
        residuals (np.ndarray): [points] log(predicted / measured).
        cost (float): The minimised objective (half the sum of squares, or its Huber form, priors included).
    """

    exponents: np.ndarray
    coefficients: np.ndarray
    residuals: np.ndarray
    cost: float


def _log_residuals(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Relative error of each prediction as log(predicted / measured). Arrays [points], measured positive."""
    return np.log(np.maximum(predicted / measured, _SMALLEST_RATIO))


def _huber_residuals(residuals: np.ndarray, huber: float | None) -> np.ndarray:
    """Residuals whose squares are twice the Huber loss of the given ones."""
    if huber is None:
        return residuals
    size = np.abs(residuals)
    return np.sign(residuals) * np.sqrt(np.where(size <= huber, size**2, huber * (2 * size - huber)))


def _solve_linear(columns: np.ndarray, wanted: np.ndarray, free_sign: np.ndarray, huber: float | None) -> np.ndarray:
    """Coefficients of ``columns @ c = wanted`` (both already relative to the measured loss), c >= 0 unless free."""
    signed = np.concatenate([columns, -columns[:, free_sign]], axis=1)

    def solve(weights: np.ndarray) -> np.ndarray:
        # The triangular factor makes the cost of the active-set search independent of the number of points.
        q, r = np.linalg.qr(signed * weights[:, None])
        return nnls(r, q.T @ (wanted * weights), maxiter=100 * signed.shape[1])[0]

    split = solve(np.ones(len(wanted)))
    for _ in range(_REWEIGHTINGS if huber is not None else 0):
        error = np.abs(signed @ split - wanted)
        split = solve(np.sqrt(np.minimum(1.0, huber / np.maximum(error, 1e-12))))
    coefficients = split[: columns.shape[1]].copy()
    coefficients[free_sign] -= split[columns.shape[1] :]
    return coefficients


def fit_separable(
    basis: Callable[[np.ndarray], np.ndarray],
    measured: np.ndarray,
    starts: Sequence[Sequence[float]],
    bounds: Sequence[tuple[float, float]],
    free_sign: Sequence[bool],
    offset: np.ndarray | float = 0.0,
    huber: float | None = None,
    priors: Sequence[tuple[float, float]] | None = None,
) -> SeparableFit:
    """Fits ``measured = offset + basis(exponents) @ coefficients`` in relative error.

    Args:
        basis (Callable[[np.ndarray], np.ndarray]): Maps exponents [exponents] to a matrix [points, coefficients] of
            order-one columns.
        measured (np.ndarray): [points] measured losses, positive.
        starts (Sequence[Sequence[float]]): Starting exponents; all are tried with exactly solved coefficients, the best
            are refined.
        bounds (Sequence[tuple[float, float]]): Lower and upper bound of each exponent.
        free_sign (Sequence[bool]): For each coefficient, whether it may be negative.
        offset (np.ndarray | float): [points] or a number, a part of the loss that is known.
        huber (float | None): Residual beyond which the loss grows linearly; None for plain least squares.
        priors (Sequence[tuple[float, float]] | None): (centre, weight) per exponent: adds ``weight * (exponent -
            centre)`` to the residuals, so that a direction the data say nothing about stays at the centre. A weight of
            0 means no prior.

    Returns:
        SeparableFit: the best refined fit.
    """
    measured = np.asarray(measured, dtype=np.float64)
    offset = np.broadcast_to(np.asarray(offset, dtype=np.float64), measured.shape)
    free = np.asarray(free_sign, dtype=bool)
    centre, weight = np.array(priors if priors is not None else [(0.0, 0.0)] * len(bounds)).T
    lower, upper = np.array(bounds, dtype=np.float64).T
    wanted = (measured - offset) / measured

    def stacked(exponents: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        residuals = _log_residuals(offset + basis(exponents) @ coefficients, measured)
        return np.concatenate([_huber_residuals(residuals, huber), weight * (exponents - centre)])

    def solved(exponents: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        coefficients = _solve_linear(basis(exponents) / measured[:, None], wanted, free, huber)
        return 0.5 * float(np.sum(stacked(exponents, coefficients) ** 2)), exponents, coefficients

    trials = [solved(np.clip(np.asarray(start, dtype=np.float64), lower, upper)) for start in starts]
    trials.sort(key=lambda trial: trial[0])
    n = len(bounds)
    lowest = np.concatenate([lower, np.where(free, -np.inf, 0.0)])
    highest = np.concatenate([upper, np.full(len(free), np.inf)])
    found = trials[:1]
    for _, exponents, coefficients in trials[:_REFINED]:
        solution = least_squares(
            lambda unknowns: stacked(unknowns[:n], unknowns[n:]),
            np.concatenate([exponents, coefficients]),
            bounds=(lowest, highest),
            x_scale='jac',
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
            max_nfev=400,
        )
        # The search stays strictly inside its bounds; solving the coefficients again lets one of them be exactly 0.
        found += [(float(solution.cost), solution.x[:n], solution.x[n:]), solved(solution.x[:n])]
    cost, exponents, coefficients = min(found, key=lambda trial: trial[0])
    coefficients = np.where(np.abs(coefficients) < _ZERO, 0.0, coefficients)
    residuals = _log_residuals(offset + basis(exponents) @ coefficients, measured)
    return SeparableFit(exponents, coefficients, residuals, cost)
