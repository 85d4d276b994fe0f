"""What `reference-losses fit` reports: extrapolation always, intervals where there is freedom, else a plain word."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmshearing.scaling.points import Points
from llmshearing.scaling.reference_loss import interpolate_three
from llmshearing.scaling.reference_report import noise_amplification, predict_reference_losses

SIZES = np.array([70e6, 410e6, 1.4e9, 6.9e9, 13e9, 70e9])


def truth(params, tokens=np.inf):
    return 1.7 + 0.6 * (np.asarray(params) / 1e9) ** -0.3 + 0.3 * (np.asarray(tokens) / 2e10) ** -0.4


def points(count=6, noise=0.0, tokens=None, seed=0):
    sizes = SIZES[:count]
    losses = truth(sizes, np.inf if tokens is None else tokens)
    noisy = losses * np.exp(noise * np.random.default_rng(seed).standard_normal(count))
    return Points(sizes, tokens, {'cc': noisy, 'wiki': 0.8 * noisy}, [f'm{i}' for i in range(count)])


def test_report_is_plain_json_and_complete():
    report = predict_reference_losses(points(noise=0.002), 140e9)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report['reference_losses'].keys() == {'cc', 'wiki'}
    assert report['reference_losses']['wiki'] == pytest.approx(0.8 * report['reference_losses']['cc'], rel=1e-6)
    assert report['extrapolation'] == {'params': 2.0, 'factor': 2.0, 'octaves': 1.0}
    assert report['degrees_of_freedom'] == 3
    domain = report['domains']['cc']
    assert domain['constants'].keys() == {'E', 'A', 'alpha'} and len(domain['residuals']) == 6
    low, high = domain['interval']
    assert low <= domain['predicted_loss'] <= high


def test_residuals_are_predicted_over_measured():
    data = points(noise=0.003)
    domain = predict_reference_losses(data, 2e9)['domains']['cc']
    constants = domain['constants']
    again = constants['E'] + constants['A'] / SIZES ** constants['alpha']
    np.testing.assert_allclose(domain['residuals'], again / data.losses['cc'] - 1, atol=1e-9)
    assert domain['worst_residual'] == np.abs(domain['residuals']).max() > 0


def test_interval_widens_with_noise_and_distance():
    def width(noise, params):
        low, high = predict_reference_losses(points(noise=noise), params)['domains']['cc']['interval']
        return high - low

    assert width(0.0, 2e9) < 1e-6 < width(0.001, 2e9) < width(0.004, 2e9) < width(0.004, 560e9)


@pytest.mark.parametrize('params', [3e9, 140e9])
def test_interval_covers_the_truth_about_nine_times_in_ten(params):
    """Six models with 0.3 % noise, 60 seeds, inside the range and one octave outside."""
    covered = 0
    for seed in range(60):
        data = points(noise=0.003, seed=seed)
        data.losses.pop('wiki')
        low, high = predict_reference_losses(data, params)['domains']['cc']['interval']
        covered += low <= truth(params) <= high
    assert 49 <= covered


def test_three_models_leave_no_freedom_and_say_so():
    report = predict_reference_losses(points(3), 2.8e9)
    domain = report['domains']['cc']
    assert report['degrees_of_freedom'] == 0 and domain['interval'] is None and report['interval_kind'] is None
    assert domain['worst_residual'] < 1e-12
    assert domain['noise_amplification'] > 0.5
    assert any('no freedom to judge' in note for note in domain['notes'])


def test_noise_amplification_is_what_noise_does():
    data, size = points(3), 5.6e9
    factor = noise_amplification(data, 'cc', interpolate_three(data.params, data.losses['cc']), size, None)
    generator, noise = np.random.default_rng(0), 1e-4
    noisy = data.losses['cc'] * np.exp(noise * generator.standard_normal((2000, 3)))
    errors = [interpolate_three(data.params, losses).predict(size) / truth(size) - 1 for losses in noisy]
    assert np.std(errors) / noise == pytest.approx(factor, rel=0.1)


def test_tokens_default_to_the_most_and_extrapolation_counts_them():
    tokens = np.array([3e11, 2e10, 1e12, 1e11, 3e11, 2e10])
    data = points(tokens=tokens)
    report = predict_reference_losses(data, 2e9)
    assert report['tokens'] == 1e12 and report['reference_losses']['cc'] == pytest.approx(truth(2e9, 1e12), rel=1e-5)
    assert any('predicted for 1e+12 training tokens' in note for note in report['notes'])
    far = predict_reference_losses(data, 2e9, tokens=4e12)
    assert far['extrapolation'] == {'params': 1.0, 'tokens': 4.0, 'factor': 4.0, 'octaves': 2.0}
    assert far['reference_losses']['cc'] < report['reference_losses']['cc']


def test_five_models_with_different_tokens_are_enough_but_cannot_be_judged():
    report = predict_reference_losses(points(5, tokens=np.array([3e11, 2e10, 1e12, 1e11, 3e11])), 2e9)
    assert report['degrees_of_freedom'] == 0 and report['domains']['cc']['interval'] is None


def test_tokens_that_rise_with_parameters_are_noted():
    report = predict_reference_losses(points(tokens=20 * SIZES), 2e9)
    assert any('cannot tell the two terms apart' in note for note in report['notes'])


def test_tokens_that_the_models_do_not_say_are_refused():
    with pytest.raises(ValueError, match='the effect of tokens needs at least five models'):
        predict_reference_losses(points(), 2e9, tokens=1e12)


def test_a_prediction_that_no_loss_can_be_is_refused():
    falling = Points(np.array([1e8, 1e9, 1e10]), None, {'cc': np.array([3.0, 2.9, 2.0])}, ['a', 'b', 'c'])
    with pytest.raises(ValueError, match="domain 'cc': the law .* predicts -.*alpha = .* negative"):
        predict_reference_losses(falling, 1e12)


LLAMA2 = np.array([6738415616.0, 13015864320.0, 68976648192.0])


@pytest.mark.parametrize(
    'sizes, losses, params',
    [
        (LLAMA2, [1.05, 0.99, 0.985], 1.3e9),  # the exact law: 40 nats, above guessing among 32,000 tokens
        (LLAMA2, [1.05, 0.99, 0.97], 1.3e9),  # below guessing, but no model is that much worse
        (SIZES, 1.7 + 0.6 * (SIZES / 1e9) ** -0.3, 1),  # a plain law, but no size
        (SIZES, 1.7 + 6000 * (SIZES / 1e7) ** -3.0, 1e7),  # the bounded fit on its bound
    ],
)
def test_references_that_would_starve_their_domain_are_refused(sizes, losses, params):
    data = Points(sizes, None, {'cc': np.array(losses)}, [f'm{i}' for i in range(len(losses))])
    with pytest.raises(ValueError, match="domain 'cc': the law .* implausibly far above the measured .*; measure"):
        predict_reference_losses(data, params)


def test_what_known_laws_say_is_never_refused():
    """Exponents up to 0.5, a thousand times outside; and both terms at their largest, which no model had."""
    for alpha, floor in ((0.076, 0.0), (0.34, 1.69), (0.5, 0.0)):
        data = Points(SIZES, None, {'cc': floor + 0.05 * (SIZES / 1e9) ** -alpha}, list('abcdef'))
        expected = floor + 0.05 * (70e3 / 1e9) ** -alpha
        assert predict_reference_losses(data, 70e3)['reference_losses']['cc'] == pytest.approx(expected, rel=1e-3)
    tokens = np.array([1e12, 3e11, 1e11, 1e11, 5e10, 2e10])
    sizes_terms, tokens_terms = (SIZES / 1e9) ** -0.34, (tokens / 1e11) ** -0.5
    data = Points(SIZES, tokens, {'cc': sizes_terms + tokens_terms}, list('abcdef'))
    corner = predict_reference_losses(data, 70e6, tokens=2e10)['reference_losses']['cc']
    assert corner == pytest.approx(sizes_terms.max() + tokens_terms.max(), rel=1e-3)
    assert corner > data.losses['cc'].max()


@pytest.mark.parametrize('params, noted', [(280e9, False), (300e9, True), (1e30, True), (17e6, True)])
def test_a_target_far_outside_is_noted(params, noted):
    notes = predict_reference_losses(points(noise=0.001), params)['notes']
    assert any('times outside the measured range' in note for note in notes) is noted


@pytest.mark.parametrize('seed', range(60))
def test_never_a_crash_and_never_a_value_without_its_distance(seed):
    """Random sizes, tokens and losses: a finite report or one clear ValueError."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 8))
    params = 10 ** generator.uniform(7, 11, count)
    tokens = 10 ** generator.uniform(9, 13, count) if seed % 2 else None
    losses = generator.uniform(0.5, 6, count)
    if seed % 3:
        losses = np.sort(losses)[::-1][np.argsort(np.argsort(params))]
    try:
        report = predict_reference_losses(
            Points(params, tokens, {'a': losses}, [f'm{i}' for i in range(count)]), 10 ** generator.uniform(7, 12)
        )
    except ValueError as error:
        assert len(str(error)) > 30
        return
    assert json.dumps(report, allow_nan=False)
    assert report['reference_losses']['a'] > 0 and report['extrapolation']['factor'] >= 1
