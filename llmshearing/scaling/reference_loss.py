"""Per-domain loss as a law of model size and training tokens: L(N, D) = E + A / N^alpha + B / D^beta.

Sheared LLaMA (arXiv 2310.06694, Appendix B) takes the reference loss of a target size from this law, fitted per domain
to models of one family. Where all were trained on the same number of tokens the data term is a constant inside E.

Two decisions. (1) With exactly three models and equal tokens the law has as many constants as there are points, so it
passes through all three: the exponent is the root of a monotone function and is found whatever its value, even where a
constant leaves the sensible range (alpha or A or E not positive), which is then said. With more models it is the
bounded fit (E, A, B >= 0, exponents from 0.01 to 3) in log space. (2) A law is kept as level and slope at a reference
size instead of E and A: E and A grow without limit as alpha goes to 0, where the law becomes a straight line in log N,
while level and slope stay of order one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import root_scalar

from llmshearing.scaling.points import Points
from llmshearing.scaling.separable import fit_separable

__all__ = [
    'NOISE_TOLERANCE',
    'LossLaw',
    'check_points',
    'constants_needed',
    'fit_bounded',
    'fit_law',
    'interpolate_three',
    'law_notes',
    'tokens_differ',
]

_EXPONENT_BOUNDS = (0.01, 3.0)
# A loss this much above that of a smaller model is taken for a mistake, below it for noise.
NOISE_TOLERANCE = 0.03
_STARTS = tuple(np.geomspace(0.02, 2.0, 14))
# Exponents the data say nothing about stay here; the weight is that of one point with an error of 1e-5 per unit.
_PRIOR = (0.3, 1e-5)
_LOG_LINEAR = 1e-6


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = level - slope * (1 - (N/n)^-alpha) / alpha + tokens_term * (D/d)^-beta.

    Args:
        reference_params (float): n, the size at which level and slope are given.
        level (float): Loss at n without the data term, nats.
        slope (float): Fall of the loss per unit of ln N at n, nats.
        alpha (float): Exponent of the parameters; 0 means a straight line in ln N.
        reference_tokens (float | None): d; None for the law at a fixed number of tokens.
        tokens_term (float): B / d^beta, nats.
        beta (float): Exponent of the tokens.
    """

    reference_params: float
    level: float
    slope: float
    alpha: float
    reference_tokens: float | None = None
    tokens_term: float = 0.0
    beta: float = 0.0

    def predict(self, params: float | np.ndarray, tokens: float | np.ndarray | None = None) -> np.ndarray:
        """Loss in nats; ``tokens`` is required where the law has a data term. Shapes broadcast."""
        x = np.log(np.asarray(params, dtype=np.float64) / self.reference_params)
        with np.errstate(over='ignore'):
            fall = x if self.alpha == 0 else -np.expm1(-self.alpha * x) / self.alpha
            loss = self.level - self.slope * fall
            if self.reference_tokens is not None:
                loss = loss + self.tokens_term * (np.asarray(tokens) / self.reference_tokens) ** -self.beta
        return np.asarray(loss)

    def constants(self) -> dict[str, float | None]:
        """E, A, alpha (and B, beta) of the formula; E and A are None where alpha is 0 and they have no limit."""
        if abs(self.alpha) < _LOG_LINEAR:
            constants: dict[str, float | None] = {'E': None, 'A': None, 'alpha': self.alpha}
        else:
            at_reference = self.slope / self.alpha
            constants = {
                'E': self.level - at_reference,
                'alpha': self.alpha,
                'A': _scaled(at_reference, self.alpha, self.reference_params),
            }
        if self.reference_tokens is not None:
            constants |= {'B': _scaled(self.tokens_term, self.beta, self.reference_tokens), 'beta': self.beta}
        return constants

    def describe(self) -> str:
        """The formula the constants belong to."""
        return 'E + A / N^alpha' + ('' if self.reference_tokens is None else ' + B / D^beta')


def _scaled(value: float, exponent: float, reference: float) -> float | None:
    """``value * reference ** exponent``, or None where it overflows."""
    power = exponent * math.log(reference)
    return value * math.exp(power) if power < 600 else None


def tokens_differ(points: Points) -> bool:
    """Whether the models were trained on different numbers of tokens (by more than one in a thousand)."""
    return points.tokens is not None and bool(points.tokens.max() > 1.001 * points.tokens.min())


def constants_needed(points: Points) -> int:
    """Number of constants of the law for these points: 3 with equal tokens, 5 otherwise."""
    return 5 if tokens_differ(points) else 3


def check_points(points: Points) -> list[str]:
    """Checks that a law can be fitted, before any fit.

    Returns:
        list[str]: Notes on small rises of the loss with size that are taken for noise.

    Raises:
        ValueError: Too few models or distinct sizes, or a loss that rises with size beyond :data:`NOISE_TOLERANCE`
            (at all, where three models must be passed through exactly).
    """
    needed, got = constants_needed(points), len(points.params)
    if got < needed:
        why = ('the law has three' if needed == 3 else 'their token counts differ, so the law has five') + ' constants'
        raise ValueError(
            f'too few models: got {got}, need at least {needed} because {why}; measure more models of the family'
        )
    sizes = len(np.unique(points.params))
    if sizes < 3:
        raise ValueError(f'too few sizes: {got} models have only {sizes} distinct parameter counts; the law needs 3')
    order = np.argsort(points.params, kind='stable')
    tokens = np.ones(got) if points.tokens is None or not tokens_differ(points) else points.tokens
    exact = got == needed == 3
    notes = []
    for domain, losses in points.losses.items():
        for small, large in itertools.combinations(order, 2):
            if points.params[large] == points.params[small] or tokens[large] < tokens[small]:
                continue
            rise = losses[large] / losses[small] - 1
            what = (
                f'domain {domain!r}: loss {losses[large]:g} of {points.names[large]} ({points.params[large]:g} '
                f'parameters) is not below {losses[small]:g} of {points.names[small]} ({points.params[small]:g})'
            )
            if (exact and rise >= 0) or rise > NOISE_TOLERANCE:
                remedy = ', and add another: three points must fall strictly' if exact else ''
                raise ValueError(
                    f'{what}: not monotone, no law of this form describes it; check the measurement, or '
                    f'leave that model out{remedy}'
                )
            if rise >= 0:
                notes.append(f'{what}; taken for noise')
        trend = np.polyfit(np.log(points.params), np.log(losses), 1)[0]
        if trend >= 0 and not tokens_differ(points):
            raise ValueError(f'domain {domain!r}: the loss does not fall with model size; check the measurements')
    return notes


def interpolate_three(params: np.ndarray, losses: np.ndarray) -> LossLaw:
    """The law through three points, exactly.

    The ratio of the two falls, (L1 - L2) / (L2 - L3), rises strictly with alpha from 0 to infinity over all real alpha,
    so any three falling losses have exactly one law.

    Args:
        params (np.ndarray): [3] distinct sizes.
        losses (np.ndarray): [3] losses that fall strictly with size.

    Raises:
        ValueError: The losses do not fall strictly.
    """
    order = np.argsort(params)
    (n1, n2, n3), (l1, l2, l3) = params[order], losses[order]
    if not (n1 < n2 < n3 and l1 > l2 > l3):
        raise ValueError(
            f'three distinct sizes with strictly falling losses are needed, got {params[order]} {losses[order]}'
        )
    left, right = math.log(n2 / n1), math.log(n3 / n2)

    def log_expm1(x: float) -> float:
        """``log(exp(x) - 1)`` for x > 0, without overflow."""
        return x + math.log(-math.expm1(-x))

    def log_ratio(alpha: float) -> float:
        if alpha == 0:
            return math.log(left / right)
        if alpha > 0:
            return log_expm1(alpha * left) - math.log(-math.expm1(-alpha * right))
        return math.log(-math.expm1(alpha * left)) - log_expm1(-alpha * right)

    wanted = math.log((l1 - l2) / (l2 - l3))
    limit = 1.0
    while not log_ratio(-limit) < wanted < log_ratio(limit):
        limit *= 2
    alpha = root_scalar(
        lambda a: log_ratio(a) - wanted, bracket=(-limit, limit), method='brentq', xtol=1e-14, rtol=1e-14
    ).root
    # The slope from the longer fall, where the difference of two losses has lost the least precision.
    if l1 - l2 >= l2 - l3:
        unit = left if alpha == 0 else math.expm1(alpha * left) / alpha
        slope = (l1 - l2) / unit
    else:
        unit = right if alpha == 0 else -math.expm1(-alpha * right) / alpha
        slope = (l2 - l3) / unit
    return LossLaw(float(n2), float(l2), float(slope), float(alpha))


def fit_bounded(
    params: np.ndarray,
    losses: np.ndarray,
    tokens: np.ndarray | None = None,
    huber: float | None = None,
    near: LossLaw | None = None,
) -> LossLaw:
    """Bounded fit of E + A / N^alpha, and of B / D^beta where tokens differ, in log space from several starts.

    Args:
        params (np.ndarray): [models] sizes, at least three distinct.
        losses (np.ndarray): [models] losses of one domain.
        tokens (np.ndarray | None): [models] training tokens, not all equal; None for a law without them.
        huber (float | None): Relative error beyond which a point counts linearly; None for least squares.
        near (LossLaw | None): Start at this law's exponents only, for quick refits to much the same points.
    """
    measured = [params] if tokens is None else [params, tokens]
    references = [float(np.exp(np.mean(np.log(values)))) for values in measured]
    logs = [np.log(values / reference) for values, reference in zip(measured, references)]
    starts = itertools.product(_STARTS[:: len(logs)], repeat=len(logs))

    def basis(exponents: np.ndarray) -> np.ndarray:
        falls = [np.exp(-exponent * x) for exponent, x in zip(exponents, logs)]
        return np.stack([np.ones_like(logs[0]), *falls], axis=1)

    fit = fit_separable(
        basis,
        losses,
        list(starts) if near is None else [(near.alpha, near.beta)[: len(logs)]],
        [_EXPONENT_BOUNDS] * len(logs),
        [False] * (1 + len(logs)),
        huber=huber,
        priors=None if tokens is None else [_PRIOR] * 2,
    )
    alpha, *beta = map(float, fit.exponents)
    constant, term, *data = map(float, fit.coefficients)
    return LossLaw(references[0], constant + term, term * alpha, alpha, *references[1:], *data, *beta)


def fit_law(points: Points, domain: str) -> LossLaw:
    """The law of one domain: exact for three models with equal tokens, otherwise the bounded fit.

    The points must have passed :func:`check_points`.
    """
    losses, differ = points.losses[domain], tokens_differ(points)
    if not differ and len(points.params) == 3:
        return interpolate_three(points.params, losses)
    return fit_bounded(points.params, losses, points.tokens if differ else None)


def law_notes(law: LossLaw) -> list[str]:
    """Says where a constant leaves the sensible range, or a bounded fit ended on a bound."""
    constants = law.constants()
    notes = []
    if abs(law.alpha) < _LOG_LINEAR:
        notes.append('alpha is 0: the law is a straight line in log N, E and A have no finite value')
    elif law.alpha < 0:
        notes.append(
            f'alpha = {law.alpha:.4g} is negative (so is A): the measured losses fall faster and faster with '
            f'size; the law passes through the points but is not sensible beyond them'
        )
    if constants['E'] is not None and law.alpha > 0 and constants['E'] < 0:
        notes.append(f'E = {constants["E"]:.4g} is negative: the law is not sensible for very large models')
    if law.alpha > _EXPONENT_BOUNDS[1]:
        notes.append(
            f'alpha = {law.alpha:.4g} is far above what is known of language models: the largest model hardly '
            f'improves on the middle one'
        )
    if law.slope <= 0:
        notes.append('the fitted loss does not depend on the number of parameters (A = 0)')
    for name, value in (('alpha', law.alpha), ('beta', law.beta if law.reference_tokens is not None else None)):
        if value is not None and any(abs(value - bound) < 1e-6 * bound for bound in _EXPONENT_BOUNDS):
            notes.append(f'{name} = {value:g} lies on the bound of the fit: its value is not determined by the points')
    return notes
