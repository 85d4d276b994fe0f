"""Predicts reference losses of a target size and says how far they can be trusted.

A number without its uncertainty invites copying, so every prediction carries the constants, the residual of each model,
how many times outside the measured range it lies, and a 90 % interval: the jackknife over models. Where the law has as
many constants as there are models nothing is left over to judge it by; then the interval is null, the report says so,
and it gives the factor by which the law enlarges measurement noise instead.

A reference far above what the model will reach makes its domain look finished, and the mixture starves it. So a
prediction that no language model's loss can be is refused: see :func:`_highest_plausible`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from llmshearing.scaling.intervals import extrapolation_factor, jackknife_interval
from llmshearing.scaling.points import Points
from llmshearing.scaling.reference_loss import (
    LossLaw,
    check_points,
    constants_needed,
    fit_bounded,
    fit_law,
    law_notes,
    tokens_differ,
)

__all__ = ['noise_amplification', 'predict_reference_losses', 'report_lines']

# Relative change of a measured loss by which the sensitivity is found: as large as measurement noise, because bounds
# make the fit stiffer for real errors than for infinitesimal ones.
_STEP = 5e-3
# Measured laws have exponents up to 0.35 (Hoffmann et al., arXiv 2203.15556: 0.34 and 0.28), so that a loss, which is
# never negative at infinity, rises by less than the square root of what parameters and tokens are divided by.
_STEEPEST = 0.5
_SLACK = 1.1  # of the fit about the measured losses
_CORNER = 2.0  # smallest size with fewest tokens: both terms at their largest, while each model may have had but one
_UNIFORM = math.log(1e6)  # nats of guessing uniformly among more tokens than any tokenizer has
_FAR = 4.0  # times outside the measured range


def _leave_one_out(points: Points, domain: str, law: LossLaw, params: float, tokens: float | None) -> np.ndarray:
    """[models] predictions from all models but one. A model is kept where fewer than three sizes would remain.

    All fits are bounded ones: three models that are left need not fall, as the exact law through three does.
    """
    predictions = []
    for left_out in range(len(points.params)):
        kept = points.subset([i for i in range(len(points.params)) if i != left_out])
        if len(np.unique(kept.params)) >= 3 and tokens_differ(kept) == tokens_differ(points):
            kept_tokens = kept.tokens if tokens_differ(kept) else None
            refitted = fit_bounded(kept.params, kept.losses[domain], kept_tokens, near=law)
            predictions.append(float(refitted.predict(params, tokens)))
    return np.array(predictions)


def noise_amplification(points: Points, domain: str, law: LossLaw, params: float, tokens: float | None) -> float:
    """Relative error of the prediction per relative error of the measured losses (independent, same size).

    The root of the sum of squares of d ln(prediction) / d ln(loss of model i), by finite differences. Where the law
    passes through three points the step is also small beside the gap between two losses, so that falling losses stay
    falling.
    """
    base, total = float(law.predict(params, tokens)), 0.0
    step = _STEP
    if not tokens_differ(points):
        ordered = np.sort(points.losses[domain])
        step = min(step, 0.1 * float(np.min(np.diff(ordered)) / ordered[-1]))
    for i in range(len(points.params)):
        losses = points.losses[domain].copy()
        losses[i] *= 1 - step
        moved = fit_law(replace(points, losses={domain: losses}), domain)
        total += ((float(moved.predict(params, tokens)) - base) / (base * step)) ** 2
    return math.sqrt(total)


def _highest_plausible(points: Points, domain: str, params: float, tokens: float | None) -> float:
    """The loss above which a prediction is refused.

    That of uniform guessing, or the largest measured one times what the steepest known law could add between the
    measured range and a smaller target.
    """
    below = max(float(points.params.min()) / params, 1.0)
    slack = _SLACK
    if tokens is not None and points.tokens is not None:
        below *= max(float(points.tokens.min()) / tokens, 1.0)
        slack = _CORNER
    return min(slack * float(points.losses[domain].max()) * below**_STEEPEST, _UNIFORM)


def _fit_domain(points: Points, domain: str, params: float, tokens: float | None) -> dict:
    law = fit_law(points, domain)
    predicted = float(law.predict(params, tokens))
    if not (math.isfinite(predicted) and predicted > 0):
        raise ValueError(
            f'domain {domain!r}: the law through the measured losses predicts {predicted:.4g} for '
            f'{params:g} parameters, which no loss can be '
            f'({"; ".join(law_notes(law)) or "too far outside"}); measure models nearer to the target'
        )
    most = _highest_plausible(points, domain, params, tokens)
    if predicted > most:
        raise ValueError(
            f'domain {domain!r}: the law through the measured losses predicts {predicted:.4g} nats for '
            f'{params:g} parameters, implausibly far above the measured {points.losses[domain].max():.4g} '
            f'(at most {most:.4g} is taken; alpha = {law.alpha:.4g}): this reference would leave the '
            f'domain without data; measure models nearer to the target, on more tokens, or leave the '
            f'domain out'
        )
    residuals = law.predict(points.params, points.tokens) / points.losses[domain] - 1
    freedom = len(points.params) - constants_needed(points)
    notes = law_notes(law)
    low_high = amplification = None
    if freedom > 0:
        low_high = jackknife_interval(predicted, _leave_one_out(points, domain, law, params, tokens), freedom)
        if low_high is None:
            notes.append('no interval: leaving out one model leaves too few sizes')
    else:
        amplification = noise_amplification(points, domain, law, params, tokens)
        notes.append(
            f'{len(points.params)} models leave no freedom to judge the fit: the law has as many constants, '
            f'so the residuals say nothing and there is no interval; an error of 1 % in each measured loss '
            f'would move the prediction by about {amplification:.2g} %'
        )
    return {
        'predicted_loss': predicted,
        'law': law.describe(),
        'constants': law.constants(),
        'at_reference': {
            'params': law.reference_params,
            'tokens': law.reference_tokens,
            'level': law.level,
            'slope': law.slope,
            'tokens_term': law.tokens_term,
        },
        'residuals': [float(r) for r in residuals],
        'worst_residual': float(np.max(np.abs(residuals))),
        'interval': None if low_high is None else list(low_high),
        'noise_amplification': amplification,
        'notes': notes,
    }


def predict_reference_losses(points: Points, params: float, tokens: float | None = None) -> dict:
    """Fits every domain and predicts the loss of a model of ``params`` parameters.

    Args:
        points (Points): Measured losses of the family.
        params (float): Size of the target.
        tokens (float | None): Training tokens the target is compared at. Only for models trained on different numbers
            of tokens; then the default is the largest of them.

    Returns:
        dict: The content of REF.json (see the README): ``reference_losses`` and, per domain, constants, residuals and
        interval; ``extrapolation`` says how many times outside the measured range the target lies.

    Raises:
        ValueError: Points that cannot be fitted (:func:`check_points`), or a law that predicts no positive loss, or one
            above :func:`_highest_plausible`.
    """
    notes = check_points(points)
    if points.tokens is not None and tokens_differ(points):
        if tokens is None:
            tokens = float(points.tokens.max())
            notes.append(f'predicted for {tokens:g} training tokens, the most of any measured model')
        log_size, log_tokens = np.log(points.params), np.log(points.tokens)
        if abs(np.corrcoef(log_size, log_tokens)[0, 1]) > 0.98:
            notes.append(
                'tokens rise together with parameters in these models: the law cannot tell the two terms '
                'apart, and holds only where the target keeps that ratio'
            )
    elif tokens is not None:
        have = 'the models do not say theirs' if points.tokens is None else f'all models have {points.tokens[0]:g}'
        if points.tokens is None or abs(tokens / points.tokens[0] - 1) > 1e-3:
            raise ValueError(
                f'tokens {tokens:g} was asked for, but {have}: the effect of tokens needs at least five '
                f'models with different token counts; leave the option out to predict at equal tokens'
            )
        tokens = None
    factors = {'params': extrapolation_factor(params, points.params)}
    if tokens is not None and points.tokens is not None:
        factors['tokens'] = extrapolation_factor(tokens, points.tokens)
    factor = max(factors.values())
    if factor > _FAR:
        notes.append(
            f'the target lies {factor:.3g} times outside the measured range: intervals and residuals do not '
            f'say whether the law still holds there; measure models within {_FAR:g} times of it'
        )
    domains = {domain: _fit_domain(points, domain, params, tokens) for domain in points.losses}
    return {
        'reference_losses': {domain: fit['predicted_loss'] for domain, fit in domains.items()},
        'source': 'fit',
        'params': params,
        'tokens': tokens if tokens is not None else (None if points.tokens is None else float(points.tokens[0])),
        'measured_models': [{'name': name, 'params': float(size)} for name, size in zip(points.names, points.params)],
        'extrapolation': {**factors, 'factor': factor, 'octaves': math.log2(factor)},
        'degrees_of_freedom': len(points.params) - constants_needed(points),
        'interval_kind': 'leave-one-out' if len(points.params) > constants_needed(points) else None,
        'domains': domains,
        'notes': notes,
    }


def report_lines(report: dict) -> list[str]:
    """What :func:`predict_reference_losses` found, in lines: how far outside, each domain's prediction, all notes."""
    reach = report['extrapolation']
    where = 'inside' if reach['factor'] == 1 else f'{reach["octaves"]:.2f} octaves outside'
    head = f'target: {report["params"]:g} parameters, extrapolation factor {reach["factor"]:.3g}'
    lines, notes = [f'{head} ({where} the measured range)'], list(report['notes'])
    width = max(map(len, report['domains']))
    for domain, fit in report['domains'].items():
        spread = 'no interval' if fit['interval'] is None else '90 % {:.4f} to {:.4f}'.format(*fit['interval'])
        constants = ', '.join(
            f'{name} {"-" if value is None else format(value, ".4g")}' for name, value in fit['constants'].items()
        )
        lines.append(
            f'{domain:<{width}}  predicted loss: {fit["predicted_loss"]:.4f}  {spread}  worst residual '
            f'{100 * fit["worst_residual"]:.2f} %  ({constants})'
        )
        notes += [f'{domain}: {note}' for note in fit['notes']]
    return [*lines, *(f'note: {note}' for note in notes)]
