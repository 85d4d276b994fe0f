"""The P2 law: loss after pruning as a function of the post-training tokens (arXiv 2411.10272).

    L(N0, D, rho, L0) = L0 + (1/rho)^gamma * (1/N0)^delta * (N_C / N0^alpha + D_C / D^beta + E)

N0 parameters before pruning, D post-training tokens, rho the fraction of parameters removed, L0 the source model's loss
on the same evaluation data. For given exponents N_C, D_C and E enter linearly, so only the four exponents are searched.

Two decisions. What the runs cannot say is not invented: with a single size (or a single rate) the law holds for that
size (rate) only, and a prediction elsewhere is an error. And E may be negative only if some measured loss lies below
its source's loss, because then post-training data evidently teach something new; otherwise the floor of the law is the
source.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llmshearing.scaling.curves import Curve
from llmshearing.scaling.fields import refuse_repeated
from llmshearing.scaling.intervals import extrapolation_factor
from llmshearing.scaling.separable import fit_separable

__all__ = ['CONSTANTS', 'NOISE_TOLERANCE', 'PostTrainingLaw', 'check_runs', 'fit_post_training']

CONSTANTS = ('N_C', 'D_C', 'E', 'alpha', 'beta', 'gamma', 'delta')
# A loss this much above the lowest earlier one of its curve (more in long curves) is a mistake, below it noise.
NOISE_TOLERANCE = 0.03
# A curve that rises by less than this from end to end is flat within noise.
_FLAT = 0.02
# Sizes or rates that differ by less than this count as one.
_SAME = 0.02
# Correlation of log sizes and log rates beyond which they are one thing.
_TOGETHER = 0.98


class _Exponent(NamedTuple):
    """How an exponent is searched; ``prior`` is (centre, weight): it stays there if the runs say nothing about it."""

    bounds: tuple[float, float]
    starts: tuple[float, ...]
    prior: tuple[float, float]


_EXPONENTS = {
    'gamma': _Exponent((-6.0, 6.0), (-2.0, -1.0, 0.0, 1.0), (-1.0, 1e-4)),
    'delta': _Exponent((-2.0, 2.0), (-0.3, 0.0, 0.3), (0.0, 1e-3)),
    'alpha': _Exponent((0.01, 3.0), (0.1, 0.4), (0.3, 1e-3)),
    'beta': _Exponent((0.01, 3.0), (0.1, 0.25, 0.5, 0.9), (0.4, 1e-4)),
}
_FIXED = {'bounds': (-1e-12, 1e-12), 'starts': (0.0,)}


@dataclass(frozen=True)
class PostTrainingLaw:
    """The seven constants of the P2 law in raw units (parameters, tokens, nats), and where the runs were.

    Args:
        constants (dict[str, float]): The values of :data:`CONSTANTS`.
        params_before (tuple[float, float]): (smallest, largest) N0 of the runs.
        pruning_rate (tuple[float, float]): (smallest, largest) rho of the runs.
        tokens (tuple[float, float]): (fewest, most) D of the runs.
        single_size (bool): Whether the runs have one size only, so that the law says nothing about another.
        single_rate (bool): Whether the runs have one pruning rate only.
        pairs (tuple[tuple[float, float], ...]): (N0, rho) of each run.
    """

    constants: dict[str, float]
    params_before: tuple[float, float]
    pruning_rate: tuple[float, float]
    tokens: tuple[float, float]
    single_size: bool
    single_rate: bool
    pairs: tuple[tuple[float, float], ...] = ()

    def _scale(self, params_before: float, pruning_rate: float) -> float:
        return pruning_rate ** -self.constants['gamma'] * params_before ** -self.constants['delta']

    def predict(
        self, params_before: float, pruning_rate: float, source_loss: float, tokens: float | np.ndarray
    ) -> np.ndarray:
        """Loss in nats after ``tokens`` (a number or an array) of post-training."""
        excess = self.constants['D_C'] * np.asarray(tokens, dtype=np.float64) ** -self.constants['beta']
        return self.floor(params_before, pruning_rate, source_loss) + self._scale(params_before, pruning_rate) * excess

    def floor(self, params_before: float, pruning_rate: float, source_loss: float) -> float:
        """The loss that no number of tokens gets below."""
        constant = self.constants['N_C'] * params_before ** -self.constants['alpha'] + self.constants['E']
        return source_loss + self._scale(params_before, pruning_rate) * constant

    def recoverable(self, params_before: float, pruning_rate: float, tokens: float) -> float:
        """The part of the loss, in nats, that tokens beyond ``tokens`` would still remove in the limit."""
        return self._scale(params_before, pruning_rate) * self.constants['D_C'] * tokens ** -self.constants['beta']

    def extrapolation(self, params_before: float, pruning_rate: float, tokens: float) -> dict[str, float]:
        """How many times each quantity lies outside the runs' range (1 inside), and the largest as ``factor``.

        Raises:
            ValueError: Another size (rate) is asked for, and all runs had the same.
        """
        asked = {'params_before': params_before, 'pruning_rate': pruning_rate, 'tokens': tokens}
        for name, single in (('params_before', self.single_size), ('pruning_rate', self.single_rate)):
            low, high = getattr(self, name)
            if single and not low / (1 + _SAME) <= asked[name] <= high * (1 + _SAME):
                raise ValueError(
                    f'{name} {asked[name]:g}: all runs had {low:g}, so the law says nothing about another; fit '
                    f'it to runs with different values'
                )
        factors = {name: extrapolation_factor(value, np.array(getattr(self, name))) for name, value in asked.items()}
        return {**factors, 'factor': max(factors.values())}

    def outside_pairs(self, params_before: float, pruning_rate: float) -> float:
        """How many times a size with a rate lies beside those that the runs had together, and between; 1 among them.

        The distance, in logs, from the convex hull of the runs' pairs: the widest gap seen from any direction.
        """
        if not self.pairs:  # a law that was written before they were
            return 1.0
        angles = np.linspace(0, 2 * math.pi, 720, endpoint=False)
        directions = np.stack([np.cos(angles), np.sin(angles)])
        asked, had = np.log([params_before, pruning_rate]) @ directions, np.log(self.pairs) @ directions
        return math.exp(max(0.0, float((asked - had.max(0)).max())))


def check_runs(runs: Sequence[Curve]) -> list[str]:
    """Checks that a law can be fitted, before any fit.

    Returns:
        list[str]: Notes: what the runs cannot say, and small rises of the loss that are taken for noise.

    Raises:
        ValueError: A run that is given twice, too few points or token counts, or a loss that rises along a curve beyond
            :data:`NOISE_TOLERANCE`.
    """
    labels = [run.origin or run.name for run in runs]
    refuse_repeated([run.origin or i for i, run in enumerate(runs)], labels, 'run')
    curves = [(run.params_before, run.pruning_rate, *run.tokens.tolist(), *run.losses.tolist()) for run in runs]
    refuse_repeated(curves, labels, 'run')
    notes = [note for run in runs for note in _curve_notes(run)]
    sizes, rates = _distinct([run.params_before for run in runs]), _distinct([run.pruning_rate for run in runs])
    tokens = np.unique(np.concatenate([run.tokens for run in runs]))
    points, needed = sum(len(run.tokens) for run in runs), 3 + 2 * (sizes > 1) + (sizes > 2) + (rates > 1)
    if points < needed or len(tokens) < 3:
        raise ValueError(
            f'too few points: got {points} with {len(tokens)} different token counts, need at least '
            f'{needed} with three for {sizes} sizes and {rates} rates; add curves, or points to them'
        )
    if sizes == 1:
        notes.append('1 size before pruning: the law holds for this size only')
    if sizes == 2:
        notes.append(
            '2 sizes before pruning: two cannot tell the two size exponents apart, so predictions for other sizes rest '
            'on a prior; three sizes would settle it'
        )
    if rates == 1:
        notes.append('one pruning rate: the law holds for this rate only')
    pairs = np.unique(np.log([(run.params_before, run.pruning_rate) for run in runs]), axis=0)
    if sizes > 1 and rates > 1 and abs(np.corrcoef(pairs.T)[0, 1]) > _TOGETHER:
        notes.append(
            'sizes and pruning rates vary together in these runs: the law cannot tell what either does alone, and '
            'holds only for pairs like theirs; a run of one of these sizes at the rate of another would settle it'
        )
    return notes


def _curve_notes(run: Curve) -> list[str]:
    """Notes on the rises of one curve that are taken for noise; raises for larger ones, and for a curve that rises."""
    lowest = np.minimum.accumulate(run.losses)
    rise = run.losses[1:] / lowest[:-1] - 1
    if not len(rise):
        return []
    # The largest of n noisy values lies the further from the rest the more there are.
    if rise.max() > NOISE_TOLERANCE * math.sqrt(max(1.0, math.log(len(run.tokens)))):
        i = int(rise.argmax()) + 1
        raise ValueError(
            f'{run.name}: the loss rises to {run.losses[i]:g} at {run.tokens[i]:g} tokens after '
            f'{lowest[i - 1]:g} before: not monotone; use evaluation losses, and one curve per run'
        )
    log_tokens = np.log(run.tokens)
    trend = np.polyfit(log_tokens, run.losses, 1)[0] * np.ptp(log_tokens) / run.losses.mean()
    if trend > _FLAT or (len(rise) > 1 and np.all(np.diff(run.losses) >= 0)):
        raise ValueError(
            f'{run.name}: the loss rises with the tokens (first {run.losses[0]:g}, last '
            f'{run.losses[-1]:g}): not monotone; a curve of post-training must fall'
        )
    notes = []
    if trend > 0:
        notes.append(f'{run.name}: the loss does not fall with the tokens; taken for noise around a flat curve')
    if rise.max() > 0:
        notes.append(f'{run.name}: the loss rises by up to {100 * rise.max():.2f} % between points; taken for noise')
    return notes


def _distinct(values: Sequence[float]) -> int:
    ordered = np.sort(values)
    return 1 + int(np.sum(ordered[1:] > ordered[:-1] * (1 + _SAME)))


def fit_post_training(runs: Sequence[Curve], near: PostTrainingLaw | None = None) -> PostTrainingLaw:
    """Fits the P2 law to all points of all runs, in log space, from a grid of starts.

    Args:
        runs (Sequence[Curve]): Curves that have passed :func:`check_runs`.
        near (PostTrainingLaw | None): Start from this law only, for quick refits to subsets of its runs.
    """
    counts = [len(run.tokens) for run in runs]
    size, rate, source = (
        np.repeat([getattr(run, field) for run in runs], counts)
        for field in ('params_before', 'pruning_rate', 'source_loss')
    )
    tokens, losses = (np.concatenate([getattr(run, field) for run in runs]) for field in ('tokens', 'losses'))
    n, d = (float(np.exp(np.mean(np.log(values)))) for values in (size, tokens))
    x, y, log_rate = np.log(size / n), np.log(tokens / d), np.log(rate)
    single_size = near.single_size if near else _distinct([run.params_before for run in runs]) == 1
    single_rate = near.single_rate if near else _distinct([run.pruning_rate for run in runs]) == 1

    def basis(exponents: np.ndarray) -> np.ndarray:
        gamma, delta, alpha, beta = exponents
        columns = [np.exp(-beta * y), np.ones_like(y)] + ([] if single_size else [np.exp(-alpha * x)])
        return np.exp(-gamma * log_rate - delta * x)[:, None] * np.stack(columns, axis=1)

    below_source = bool(np.any(losses < source))
    search = dict(_EXPONENTS)
    if single_rate:
        search['gamma'] = search['gamma']._replace(**_FIXED)
    if single_size:
        search['delta'] = search['delta']._replace(**_FIXED)
        search['alpha'] = search['alpha']._replace(starts=search['alpha'].prior[:1])
    starts = list(itertools.product(*(exponent.starts for exponent in search.values())))
    if near is not None:
        starts = [tuple(near.constants[name] for name in search)]
    fit = fit_separable(
        basis,
        losses,
        starts,
        [exponent.bounds for exponent in search.values()],
        [False, below_source] + ([] if single_size else [False]),
        offset=source,
        priors=[exponent.prior for exponent in search.values()],
    )
    gamma, delta, alpha, beta = map(float, fit.exponents)
    data, constant, *rest = map(float, fit.coefficients)
    per_size = n**delta
    constants = {
        'N_C': rest[0] * per_size * n**alpha if rest else 0.0,
        'D_C': data * per_size * d**beta,
        'E': constant * per_size,
        'alpha': alpha,
        'beta': beta,
        'gamma': gamma,
        'delta': delta,
    }
    ranges = ((float(values.min()), float(values.max())) for values in (size, rate, tokens))
    pairs = tuple((run.params_before, run.pruning_rate) for run in runs)
    return PostTrainingLaw(constants, *ranges, single_size=single_size, single_rate=single_rate, pairs=pairs)
