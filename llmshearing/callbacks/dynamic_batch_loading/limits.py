"""What the weights of every rule must keep: nothing starved, and nothing beyond its bounds."""

from __future__ import annotations

import numpy as np

__all__ = ['bound', 'smooth']


def smooth(weights: np.ndarray, smoothing: float, prior: np.ndarray) -> np.ndarray:
    """(1 - c) * w + c / k with c = ``smoothing``: keeps the k domains alive whose first weight, ``prior``, is not 0."""
    return (1 - smoothing) * weights + np.where(prior > 0, smoothing / np.count_nonzero(prior), 0.0)


def bound(weights: np.ndarray, floor: np.ndarray | float, ceiling: np.ndarray | float) -> np.ndarray:
    """The weights between ``floor`` and ``ceiling`` that keep the given ratios wherever neither binds.

    That is clip(s * weights, floor, ceiling) with the one s that makes it sum to 1.

    Args:
        weights (np.ndarray): float64 [domains], positive.
        floor (np.ndarray | float): Least weight, one for all or one per domain.
        ceiling (np.ndarray | float): Greatest weight, likewise.

    Returns:
        np.ndarray: float64 [domains] that sum to 1.

    Raises:
        ValueError: If no weights that sum to 1 fit between floor and ceiling.
    """
    low, high = np.broadcast_to(floor, weights.shape), np.broadcast_to(ceiling, weights.shape)
    if low.sum() > 1 + 1e-9 or high.sum() < 1 - 1e-9 or (low > high).any():
        raise ValueError(
            f'No weights of {len(weights)} domains sum to 1 between floor {floor} and ceiling {ceiling}. '
            f'Lower the floor or raise the ceiling.'
        )
    scaled = weights / weights.sum()
    if (scaled >= low).all() and (scaled <= high).all():
        return scaled
    # The sum grows with s and is linear between the values of s at which a domain meets a bound.
    positive = np.maximum(scaled, 1e-300)
    meets = np.unique(np.concatenate([low / positive, high / positive]))
    sums = np.array([np.clip(s * positive, low, high).sum() for s in meets])
    after = min(int(np.searchsorted(sums, 1.0)), len(meets) - 1)
    before = max(after - 1, 0)
    rise = sums[after] - sums[before]
    part = (1.0 - sums[before]) / rise if rise > 0 else 0.0
    return np.clip((meets[before] + part * (meets[after] - meets[before])) * positive, low, high)
