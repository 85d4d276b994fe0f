"""How well a P2 law fits its runs: residuals, and the criterion of the law's paper, the difference of slopes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmshearing.scaling.curves import Curve
from llmshearing.scaling.post_training import PostTrainingLaw

__all__ = ['average_slope_difference', 'fit_report', 'predict_run']


def predict_run(law: PostTrainingLaw, run: Curve) -> np.ndarray:
    """[points] predicted losses along a run's curve."""
    return law.predict(run.params_before, run.pruning_rate, run.source_loss, run.tokens)


def average_slope_difference(tokens: np.ndarray, measured: np.ndarray, predicted: np.ndarray) -> float:
    """How far the predicted curve's slope is from the measured one's: the criterion of the P2 law's paper.

    The mean, over the intervals between consecutive points, of |predicted slope - measured slope|. A law that is right
    about the slope is right about what more tokens buy, even where its level is off.

    Args:
        tokens (np.ndarray): [points] increasing, at least two.
        measured (np.ndarray): [points] losses.
        predicted (np.ndarray): [points] losses.

    Returns:
        float: In nats per billion tokens.
    """
    if len(tokens) < 2:
        raise ValueError(f'a slope needs at least two points, got {len(tokens)}')
    return float(np.mean(np.abs(np.diff(predicted - measured) / (np.diff(tokens) / 1e9))))


def fit_report(law: PostTrainingLaw, runs: Sequence[Curve]) -> dict:
    """Residuals and average slope difference of a law, per run and over all.

    Returns:
        dict: ``rms_residual`` and ``worst_residual`` (relative), ``average_slope_difference`` and, to compare it with,
        ``average_slope`` of the measured curves (nats per billion tokens; None where no run has two points), and
        ``runs``.
    """
    rows, residuals = [], []
    for run in runs:
        predicted = predict_run(law, run)
        residual = predicted / run.losses - 1
        residuals.append(residual)
        row = {
            'name': run.name,
            'points': len(run.tokens),
            'worst_residual': float(np.abs(residual).max()),
            'average_slope_difference': None,
            'average_slope': None,
        }
        if len(run.tokens) > 1:
            row['average_slope_difference'] = average_slope_difference(run.tokens, run.losses, predicted)
            row['average_slope'] = average_slope_difference(run.tokens, run.losses, np.zeros_like(predicted))
        rows.append(row)
    everything = np.concatenate(residuals)
    curves = [row for row in rows if row['average_slope'] is not None]

    def mean(field: str) -> float | None:
        return float(np.mean([row[field] for row in curves])) if curves else None

    return {
        'rms_residual': float(np.sqrt(np.mean(everything**2))),
        'worst_residual': float(np.abs(everything).max()),
        'average_slope_difference': mean('average_slope_difference'),
        'average_slope': mean('average_slope'),
        'runs': rows,
    }
