"""The P2 law: held-out sizes, rates and budgets from noisy synthetic runs; what the runs cannot say is not invented."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from llmshearing.scaling.curves import Curve
from llmshearing.scaling.fit_quality import average_slope_difference, fit_report, predict_run
from llmshearing.scaling.post_training import CONSTANTS, PostTrainingLaw, check_runs, fit_post_training

SEEDS = range(20)
SIZES, RATES = (70e6, 500e6, 1.2e9, 3e9), (0.25, 0.4)


def formula(constants, size, rate, source, tokens):
    """The paper's formula, written out independently."""
    c = constants
    bracket = c['N_C'] / size ** c['alpha'] + c['D_C'] / tokens ** c['beta'] + c['E']
    return source + (1 / rate) ** c['gamma'] * (1 / size) ** c['delta'] * bracket


def source_loss(size):
    return 1.7 + 0.8 * (1e9 / size) ** 0.3


def random_constants(seed, lowest_e=0.0):
    generator = np.random.default_rng(seed)
    alpha, beta = generator.uniform(0.2, 0.5), generator.uniform(0.2, 0.6)
    gamma, delta = generator.uniform(-2.0, -0.5), generator.uniform(-0.1, 0.15)
    scale = 1e9**delta
    return {
        'alpha': alpha,
        'beta': beta,
        'gamma': gamma,
        'delta': delta,
        'N_C': generator.uniform(0.05, 0.5) * 1e9**alpha * scale,
        'D_C': generator.uniform(0.3, 1.5) * 1e9**beta * scale,
        'E': generator.uniform(lowest_e, 0.3) * scale,
    }, generator


def make_runs(constants, sizes=SIZES, rates=RATES, points=12, noise=0.0, generator=None):
    tokens, runs = np.geomspace(5e7, 2e9, points), []
    for size, rate in itertools.product(sizes, rates):
        losses = formula(constants, size, rate, source_loss(size), tokens)
        if noise:
            losses = losses * np.exp(noise * generator.standard_normal(len(tokens)))
        runs.append(Curve(size, rate, source_loss(size), tokens, losses, f'{size:g}-{rate:g}'))
    return runs


def error(law, constants, size, rate, tokens):
    return abs(
        float(law.predict(size, rate, source_loss(size), tokens))
        / formula(constants, size, rate, source_loss(size), tokens)
        - 1
    )


@pytest.mark.parametrize('seed', SEEDS)
def test_held_out_larger_models_and_budgets_within_one_percent(seed):
    """Four sizes, two rates, 12 points each up to 2B tokens; 0.3 % noise (standard deviation) on every loss."""
    constants, generator = random_constants(seed)
    runs = make_runs(constants, noise=0.003, generator=generator)
    check_runs(runs)
    law = fit_post_training(runs)
    assert error(law, constants, 8e9, 0.3, 1e9) < 0.01  # 2.7 times the largest model
    assert error(law, constants, 13e9, 0.5, 1e9) < 0.01  # 4.3 times, and pruned more than any
    assert error(law, constants, 3e9, 0.4, 1e10) < 0.01  # 5 times the largest budget
    assert error(law, constants, 8e9, 0.4, 1e10) < 0.01  # both


@pytest.mark.parametrize('seed', SEEDS)
def test_held_out_larger_models_with_one_percent_noise(seed):
    constants, generator = random_constants(seed)
    law = fit_post_training(make_runs(constants, noise=0.01, generator=generator))
    assert error(law, constants, 8e9, 0.3, 1e9) < 0.01
    assert error(law, constants, 3e9, 0.4, 4e9) < 0.015


@pytest.mark.parametrize('seed', range(5))
def test_constants_come_back_from_noise_free_runs(seed):
    constants, _ = random_constants(seed)
    law = fit_post_training(make_runs(constants))
    for name in ('beta', 'gamma', 'delta'):
        assert law.constants[name] == pytest.approx(constants[name], abs=1e-3)
    assert law.constants['D_C'] == pytest.approx(constants['D_C'], rel=1e-2)
    assert error(law, constants, 70e9, 0.6, 1e11) < 1e-3
    assert law.constants.keys() == set(CONSTANTS)


def test_law_predicts_the_papers_formula():
    constants, _ = random_constants(1)
    law = PostTrainingLaw(constants, (1e8, 1e9), (0.2, 0.5), (1e8, 1e9), False, False)
    tokens = np.array([1e8, 1e9, 1e10])
    np.testing.assert_allclose(law.predict(5e8, 0.3, 2.2, tokens), formula(constants, 5e8, 0.3, 2.2, tokens))
    assert law.floor(5e8, 0.3, 2.2) == pytest.approx(formula(constants, 5e8, 0.3, 2.2, 1e80))
    assert law.recoverable(5e8, 0.3, 1e9) == pytest.approx(law.predict(5e8, 0.3, 2.2, 1e9) - law.floor(5e8, 0.3, 2.2))


def test_a_loss_below_the_source_allows_a_negative_e():
    constants, _ = random_constants(2)
    constants['E'] = -1.2 * 1e9 ** constants['delta']
    runs = make_runs(constants)
    assert any(np.any(run.losses < run.source_loss) for run in runs)
    assert error(fit_post_training(runs), constants, 3e9, 0.4, 4e9) < 1e-3
    above = [Curve(run.params_before, run.pruning_rate, 0.1, run.tokens, run.losses, run.name) for run in runs]
    assert fit_post_training(above).constants['E'] >= 0


def test_one_size_and_one_rate_hold_for_these_only():
    constants, generator = random_constants(3)
    runs = make_runs(constants, (1e9,), (0.5,), 6, 0.001, generator)
    notes = check_runs(runs)
    assert any('this size only' in note for note in notes) and any('this rate only' in note for note in notes)
    law = fit_post_training(runs)
    assert error(law, constants, 1e9, 0.5, 4e9) < 0.01
    assert law.extrapolation(1e9, 0.5, 4e9) == {'params_before': 1, 'pruning_rate': 1, 'tokens': 2, 'factor': 2}
    with pytest.raises(ValueError, match='params_before 2e[+]09: all runs had 1e[+]09'):
        law.extrapolation(2e9, 0.5, 1e9)
    with pytest.raises(ValueError, match='pruning_rate 0.3: all runs had 0.5'):
        law.extrapolation(1e9, 0.3, 1e9)


def test_extrapolation_counts_every_axis():
    constants, _ = random_constants(4)
    law = fit_post_training(make_runs(constants))
    factors = law.extrapolation(6e9, 0.125, 1e9)
    assert factors == {'params_before': 2.0, 'pruning_rate': 2.0, 'tokens': 1.0, 'factor': 2.0}


def test_quick_refit_finds_the_same_law():
    constants, generator = random_constants(6)
    runs = make_runs(constants, noise=0.003, generator=generator)
    law = fit_post_training(runs)
    again = fit_post_training(runs, near=law)
    for name in ('beta', 'gamma', 'delta'):
        assert again.constants[name] == pytest.approx(law.constants[name], abs=1e-4)


def test_average_slope_difference_by_hand():
    tokens = np.array([1e9, 2e9, 4e9])
    measured, predicted = np.array([3.0, 2.8, 2.6]), np.array([3.1, 2.8, 2.7])
    # Slopes per 1e9 tokens: measured -0.2 and -0.1, predicted -0.3 and -0.05.
    assert average_slope_difference(tokens, measured, predicted) == pytest.approx((0.1 + 0.05) / 2)
    # A constant offset has no influence.
    assert average_slope_difference(tokens, measured, measured + 0.5) == pytest.approx(0)
    with pytest.raises(ValueError, match='at least two points, got 1'):
        average_slope_difference(tokens[:1], measured[:1], predicted[:1])


def test_report_of_residuals_and_slopes():
    constants, generator = random_constants(7)
    runs = make_runs(constants, noise=0.002, generator=generator)
    runs.append(Curve(1e9, 0.3, source_loss(1e9), np.array([1e9]), runs[0].losses[:1], 'one point'))
    law = fit_post_training(runs[:-1])
    report = fit_report(law, runs)
    residuals = [predict_run(law, run) / run.losses - 1 for run in runs]
    assert report['runs'][2]['worst_residual'] == pytest.approx(np.abs(residuals[2]).max())
    assert report['worst_residual'] == pytest.approx(max(np.abs(r).max() for r in residuals))
    assert report['rms_residual'] == pytest.approx(np.sqrt(np.mean(np.concatenate(residuals) ** 2)))
    assert report['runs'][-1]['average_slope'] is None
    slopes = [np.mean(np.abs(np.diff(run.losses) / np.diff(run.tokens))) * 1e9 for run in runs[:-1]]
    assert report['average_slope'] == pytest.approx(np.mean(slopes))
    assert report['average_slope_difference'] < report['average_slope']


def curve(*losses, tokens=None):
    tokens = np.geomspace(1e8, 1e9, len(losses)) if tokens is None else np.array(tokens)
    return Curve(1e9, 0.5, 2.0, tokens, np.array(losses), 'run 7')


@pytest.mark.parametrize(
    'runs, message',
    [
        ([curve(2.6, 2.4, 2.55, 2.3)], 'run 7: the loss rises to 2.55 at .* after 2.4 before: not monotone'),
        ([curve(2.4, 2.41, 2.42, 2.43)], 'run 7: the loss rises with the tokens'),
        ([curve(2.4, 2.46)], 'run 7: the loss rises with the tokens'),
        ([curve(2.6, 2.5)], 'too few points: got 2 with 2 different token counts, need at least 3'),
        (
            [curve(2.6, 2.5, tokens=[1e8, 2e8]), curve(2.6, 2.49, tokens=[1e8, 2e8])],
            'got 4 with 2 different token counts',
        ),
        ([curve(2.6, 2.4, 2.3), curve(2.6, 2.4, 2.3)], 'run 7 is given twice, which would count as two independent'),
    ],
)
def test_runs_that_cannot_be_fitted(runs, message):
    with pytest.raises(ValueError, match=message):
        check_runs(runs)


def test_noise_is_noted_not_refused():
    notes = check_runs([curve(2.6, 2.4, 2.41, 2.3)])
    assert any('rises by up to 0.42 % between points; taken for noise' in note for note in notes)
    generator = np.random.default_rng(0)
    dense = 2.4 + 0.3 * np.geomspace(1, 10, 200) ** -0.5
    assert check_runs([curve(*(dense * np.exp(0.01 * generator.standard_normal(200))))])


def test_two_sizes_say_that_a_prior_is_at_work():
    constants, _ = random_constants(8)
    assert any('rest on a prior' in note for note in check_runs(make_runs(constants, SIZES[:2])))
    assert not any('size' in note for note in check_runs(make_runs(constants)))


def test_sizes_and_rates_that_vary_together_are_told_and_so_is_a_pair_far_from_theirs():
    constants, _ = random_constants(8)
    grid = make_runs(constants)
    together = [run for run in grid if (run.params_before, run.pruning_rate) in ((70e6, 0.25), (3e9, 0.4))]
    assert any('sizes and pruning rates vary together' in note for note in check_runs(together))
    assert not any('together' in note for note in check_runs(grid))
    law = fit_post_training(together)
    assert law.outside_pairs(3e9, 0.4) == pytest.approx(1)
    assert fit_post_training(grid).outside_pairs(1e9, 0.3) == pytest.approx(1)
    assert law.outside_pairs((70e6 * 3e9) ** 0.5, (0.25 * 0.4) ** 0.5) == pytest.approx(1)  # half-way between the two
    wide, high = np.log(3e9 / 70e6), np.log(0.4 / 0.25)  # height of a right-angled triangle over its longest side
    assert law.outside_pairs(3e9, 0.25) == pytest.approx(np.exp(wide * high / np.hypot(wide, high)), rel=1e-3)
