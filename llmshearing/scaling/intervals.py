"""How far a prediction can be trusted: how many times outside the measured range it lies, and an interval.

The interval is the jackknife over whole measurements (models, or runs): fit again without each in turn, and take the
spread of these predictions for the standard error. The decision against simply giving their range: in simulations with
known truth the range held the truth in 44 to 60 % of the cases, the jackknife interval at a nominal 90 % in 87 to 98 %.
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

__all__ = ['CONFIDENCE', 'extrapolation_factor', 'jackknife_interval']

CONFIDENCE = 0.9


def extrapolation_factor(value: float, measured: np.ndarray) -> float:
    """How many times ``value`` lies outside the range of ``measured`` (any shape, positive); 1 inside."""
    return float(max(value / np.max(measured), np.min(measured) / value, 1.0))


def jackknife_interval(prediction: float, left_out: np.ndarray, freedom: int) -> tuple[float, float] | None:
    """Interval around a prediction from predictions with one measurement left out each time.

    Args:
        prediction (float): From all measurements.
        left_out (np.ndarray): [measurements] predictions, each without one measurement.
        freedom (int): Degrees of freedom of the spread, for Student's t.

    Returns:
        tuple[float, float] | None: (low, high) at :data:`CONFIDENCE`, not below 0; None where fewer than two
        predictions or no freedom leave no spread to judge by.
    """
    count = len(left_out)
    if count < 2 or freedom < 1:
        return None
    error = np.sqrt((count - 1) / count * np.sum((left_out - np.mean(left_out)) ** 2))
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2) * error)
    return max(prediction - half, 0.0), prediction + half
