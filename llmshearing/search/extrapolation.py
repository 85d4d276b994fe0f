"""Where a candidate will be after a real run, from the few steps it was trained: the budget law, one curve at a time.

With one source and one size, the law of :mod:`~llmshearing.scaling.post_training` is a power of the tokens above a
floor. The interval is the jackknife over the curve's points. Nothing here makes few steps tell much about many tokens:
the factor of the extrapolation is always given beside the number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import numpy as np

from llmshearing.scaling.curves import Curve
from llmshearing.scaling.intervals import extrapolation_factor, jackknife_interval
from llmshearing.scaling.post_training import PostTrainingLaw, check_runs, fit_post_training

__all__ = ['extrapolate']

CONSTANTS_OF_A_CURVE = 3  # floor, factor and power


def extrapolate(
    curve: Sequence[dict], source_parameters: int, parameters: int, source_loss: float, tokens: int
) -> dict | None:
    """The mean loss over texts after so many tokens, as ``source_loss`` is a mean over texts.

    The curve is one of :func:`~llmshearing.search.training.train_candidate`.

    Returns:
        dict | None: ``loss``, ``low`` and ``high`` (90 %; None without enough points), ``factor``: how many times
        beyond the curve's end ``tokens`` lies. None for a curve that the law does not fit: one that rises.
    """
    seen = np.array([point['tokens'] for point in curve], dtype=np.float64)
    losses = np.array([mean(point['losses'].values()) for point in curve])
    rate = 1 - parameters / source_parameters
    run = Curve(float(source_parameters), rate, source_loss, seen, losses, 'candidate')
    try:
        check_runs([run])
    except ValueError:
        return None

    def at_the_end(law: PostTrainingLaw) -> float:
        return float(law.predict(source_parameters, rate, source_loss, tokens))

    law = fit_post_training([run])
    loss = at_the_end(law)
    without = [replace(run, tokens=np.delete(seen, i), losses=np.delete(losses, i)) for i in range(len(seen))]
    refits = np.array([at_the_end(fit_post_training([fewer], near=law)) for fewer in without])
    interval = jackknife_interval(loss, refits, len(seen) - CONSTANTS_OF_A_CURVE)
    low, high = interval or (None, None)
    return {'loss': loss, 'low': low, 'high': high, 'factor': extrapolation_factor(tokens, seen)}
