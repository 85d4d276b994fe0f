"""Distributionally robust weights: the worst mixture near a base, without references that must be known beforehand.

With gaps g = loss - reference of k domains and a base mixture p, the weights of the next round are (arXiv 2411.14055)

    q = argmax sum_i q_i g_i   with   1/2 sum_i p_i (q_i / p_i - 1)^2 <= rho,   q_i >= FLOOR p_i,   sum_i q_i = 1

that is q_i = p_i (FLOOR + (1 - FLOOR) u_i) with u_i proportional to max(g_i - eta, 0). One number, eta, is left, and
the ball fixes it: over the domains above eta, of total base P, mean gap m and variance V (both weighted by p),
(m - eta)^2 = V / (P (1 + 2 rho') - 1) with rho' = rho / (1 - FLOOR)^2. So eta is found by going through the domains in
the order of their gaps, without a search. Unlike ``sheared``, the weights do not multiply up from round to round: they
depend on the losses of this round and on p.

The base follows the weights slowly from ``AVERAGE_FROM`` of the run on: p <- (1 - AVERAGE) p + AVERAGE q, never below
half nor above twice the first mixture.

References are the user's, or predicted: from ``PREDICT_FROM`` of the run on, a law A n^-a + E in the samples n is
fitted to each domain's losses (Huber loss, several starts), and its value at the run's end is the reference, never
above the last loss. Before that the weights stay. Where every loss is below its reference, all references shrink by
tenths until one is not. Differences from the paper: the maximum is exact, and losses are those of the evaluation.
"""

from __future__ import annotations

import math

import numpy as np

from llmshearing.callbacks.dynamic_batch_loading.limits import bound
from llmshearing.callbacks.dynamic_batch_loading.round import Memory, Round

__all__ = ['add_point', 'dro_weights', 'predict_references', 'shrink_references', 'worst_mixture']

FLOOR = 0.2
PREDICT_FROM, AVERAGE_FROM = 0.1, 0.2
AVERAGE = 0.1
MOST_POINTS = 64
FEWEST_POINTS = 4
HUBER = 1e-3
SHRINK = 0.9
SAME = 1e-12
"""Gaps that differ by less, in nats, are equal."""


def dro_weights(now: Round, memory: Memory, rho: float = 0.05) -> tuple[np.ndarray, Memory]:
    """One update.

    Args:
        now (Round): What was measured; references that are NaN are predicted.
        memory (list[float]): What the last update returned; empty at first.
        rho (float): Radius of the ball around the base mixture.

    Returns:
        The weights, float64 [domains], and the memory: the base, and a row of 2 + domains numbers for each of at most
        ``MOST_POINTS`` points of the loss curves.
    """
    losses, references, samples, total, prior = now.losses, now.references, now.samples, now.total, now.prior
    k = len(losses)
    base = np.array(memory[:k]) if memory else prior
    points = add_point(np.array(memory[k:]).reshape(-1, 2 + k), samples, losses)
    if np.isnan(references).any():
        if samples < PREDICT_FROM * total or len(points) < FEWEST_POINTS:
            return base, [*base.tolist(), *points.ravel().tolist()]
        references = np.minimum(predict_references(points, max(samples, total)), losses)
    weights = worst_mixture(losses - shrink_references(losses, references), base, rho)
    if samples >= AVERAGE_FROM * total:
        base = bound((1 - AVERAGE) * base + AVERAGE * weights, prior / 2, np.minimum(2 * prior, 1))
    return weights, [*base.tolist(), *points.ravel().tolist()]


def worst_mixture(gaps: np.ndarray, base: np.ndarray, rho: float) -> np.ndarray:
    """The q of the module's first formula.

    Args:
        gaps (np.ndarray): Loss minus reference, float64 [domains].
        base (np.ndarray): p, float64 [domains], not negative, summing to 1.
        rho (float): Radius of the ball, not negative.

    Returns:
        np.ndarray: float64 [domains], summing to 1. Where all gaps are equal, or ``rho`` is 0, that is the base.
    """
    rho = rho / (1 - FLOOR) ** 2
    order = np.argsort(-gaps, kind='stable')
    order = order[base[order] > 0]
    tilted = np.zeros_like(base)
    for count in range(len(order), 0, -1):
        kept = order[:count]
        share = base[kept].sum()
        mean = base[kept] @ gaps[kept] / share
        variance = base[kept] @ (gaps[kept] - mean) ** 2 / share
        room = share * (1 + 2 * rho) - 1
        if rho == 0 or variance <= SAME**2:  # no way to go, or all on the largest gap and still within the ball
            tilted[kept] = 1 / share
            break
        eta = mean - math.sqrt(variance / room) if room > 0 else math.inf
        if gaps[kept[-1]] >= eta:
            tilted[kept] = (gaps[kept] - eta) / (share * (mean - eta))
            break
    weights = base * (FLOOR + (1 - FLOOR) * tilted)
    return weights / weights.sum()


def shrink_references(losses: np.ndarray, references: np.ndarray) -> np.ndarray:
    """References times the largest power of ``SHRINK`` with which one loss at least is not below its own."""
    ratio = float(np.max(losses / np.maximum(references, 1e-12)))
    if ratio >= 1 or ratio <= 0:
        return references
    return references * SHRINK ** math.ceil(math.log(ratio) / math.log(SHRINK) - 1e-9)


def add_point(points: np.ndarray, samples: int, losses: np.ndarray) -> np.ndarray:
    """The loss curves with one more point.

    Beyond ``MOST_POINTS``, the two neighbours nearest in log samples become their weighted mean.

    Args:
        points (np.ndarray): Rows of rounds averaged, log of samples, losses; float64 [points, 2 + domains].
        samples (int): Samples trained on so far.
        losses (np.ndarray): Losses now, float64 [domains].

    Returns:
        np.ndarray: float64 [at most MOST_POINTS, 2 + domains].
    """
    points = np.concatenate([points, [[1.0, math.log(samples), *losses]]])
    if len(points) > MOST_POINTS:
        # The last point is a round by itself.
        first = int(np.argmin(np.diff(points[:-1, 1])))
        pair = points[first : first + 2]
        merged = np.concatenate([[pair[:, 0].sum()], pair[:, 0] @ pair[:, 1:] / pair[:, 0].sum()])
        points = np.concatenate([points[:first], [merged], points[first + 2 :]])
    return points


def predict_references(points: np.ndarray, total: int) -> np.ndarray:
    """Each domain's loss at the end of the run, by a law A n^-a + E in the samples n.

    Args:
        points (np.ndarray): Curves, as ``add_point`` keeps them; every point counts once.
        total (int): Samples of the whole run.

    Returns:
        np.ndarray: float64 [domains].
    """
    from llmshearing.scaling.reference_loss import fit_bounded  # scipy, which other rules do without

    samples = np.exp(points[:, 1])
    return np.array([float(fit_bounded(samples, curve, huber=HUBER).predict(total)) for curve in points[:, 2:].T])
