"""The distributionally robust rule, against closed forms, a general solver and curves whose end is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from llmshearing.callbacks.dynamic_batch_loading import dro
from llmshearing.callbacks.dynamic_batch_loading.round import Round

EVEN = np.array([0.5, 0.5])
PRIOR = np.array([0.5, 0.3, 0.2])


def divergence(weights, base):
    return 0.5 * float(base @ (weights / base - 1) ** 2)


def test_two_domains_by_hand():
    """Even base, u = 1 +- t: divergence t^2 / 2 = 0.05 / 0.64, q = 0.5 (0.2 + 0.8 u) = 0.5 +- sqrt(0.025)."""
    weights = dro.worst_mixture(np.array([0.3, 0.1]), EVEN, 0.05)
    assert weights == pytest.approx([0.5 + np.sqrt(0.025), 0.5 - np.sqrt(0.025)], abs=1e-12)
    assert divergence(weights, EVEN) == pytest.approx(0.05, abs=1e-12)


def test_a_small_domain_takes_what_the_ball_gives():
    """Gaps 1, 0, 0: the ball is met with the two others equal, q_1 = p_1 + sqrt(2 rho p_1 (1 - p_1))."""
    base = np.array([0.1, 0.4, 0.5])
    weights = dro.worst_mixture(np.array([1.0, 0.0, 0.0]), base, 0.05)
    first = 0.1 + np.sqrt(2 * 0.05 * 0.1 * 0.9)
    assert weights == pytest.approx([first, (1 - first) * 4 / 9, (1 - first) * 5 / 9], abs=1e-12)


def test_a_large_ball_ends_at_the_floor():
    weights = dro.worst_mixture(np.array([0.0, 0.5, 0.2]), PRIOR, 10.0)
    assert weights == pytest.approx([0.1, 0.86, 0.04], abs=1e-12)


@pytest.mark.parametrize('rho, gaps', [(0.0, [0.3, 0.1, 0.2]), (0.05, [0.2, 0.2, 0.2])])
def test_no_ball_or_equal_gaps_leave_the_base(rho, gaps):
    assert dro.worst_mixture(np.array(gaps), PRIOR, rho) == pytest.approx(PRIOR, abs=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(0.05, 1)), min_size=2, max_size=7),
    st.sampled_from([0.005, 0.05, 0.3, 2.0]),
)
def test_no_other_mixture_is_worse(domains, rho):
    """The maximum of a convex problem, found by a general solver from the base."""
    gaps, base = np.array(domains).T
    base = base / base.sum()
    weights = dro.worst_mixture(gaps, base, rho)
    assert weights.sum() == pytest.approx(1) and (weights >= dro.FLOOR * base - 1e-12).all()
    assert divergence(weights, base) <= rho * (1 + 1e-9)
    found = minimize(
        lambda q: -q @ gaps,
        base,
        jac=lambda q: -gaps,
        bounds=[(dro.FLOOR * p, 1) for p in base],
        constraints=[
            {'type': 'eq', 'fun': lambda q: q.sum() - 1},
            {'type': 'ineq', 'fun': lambda q: rho - divergence(q, base), 'jac': lambda q: -(q / base - 1)},
        ],
        method='SLSQP',
        options={'ftol': 1e-12, 'maxiter': 500},
    )
    if found.success and divergence(found.x, base) <= rho + 1e-9:
        assert weights @ gaps >= found.x @ gaps - 1e-6


def test_shrink_references():
    losses, references = np.array([0.85, 1.0]), np.array([1.0, 2.0])
    assert dro.shrink_references(losses, references) == pytest.approx(references * 0.81)
    assert dro.shrink_references(losses, references * 0.85) == pytest.approx(references * 0.85), 'one is at its own'
    assert dro.shrink_references(np.array([0.9]), np.array([1.0])) == pytest.approx([0.9])


def curve(samples):
    """Losses of three domains that follow a law."""
    return np.array([2.0 + 3 * samples**-0.3, 1.5 + 8 * samples**-0.5, 2.5 + 2 * samples**-0.2])


def test_predicted_references_are_the_losses_at_the_end():
    points = np.empty((0, 5))
    for samples in range(100, 1100, 100):
        points = dro.add_point(points, samples, curve(samples))
    assert dro.predict_references(points, 10_000) == pytest.approx(curve(10_000), abs=5e-3)


def test_one_bad_evaluation_moves_the_prediction_little():
    points = np.empty((0, 5))
    for samples in range(100, 3100, 100):
        points = dro.add_point(points, samples, curve(samples) + (0.5 if samples == 1500 else 0))
    assert dro.predict_references(points, 10_000) == pytest.approx(curve(10_000), abs=0.02)


def test_memory_stays_small_and_still_predicts():
    points = np.empty((0, 5))
    for samples in range(10, 100_010, 10):
        points = dro.add_point(points, samples, curve(samples))
    assert points.shape == (dro.MOST_POINTS, 5)
    assert points[:, 0].sum() == 10_000 and points[-1, 1:] == pytest.approx([np.log(100_000), *curve(100_000)])
    assert (np.diff(points[:, 1]) > 0).all()
    assert dro.predict_references(points, 200_000) == pytest.approx(curve(200_000), abs=5e-3)


def run(rounds, losses, references, per_round=10, rho=0.05):
    """Weights of a whole run, and the last memory."""
    total, memory, given = rounds * per_round, [], []
    for number in range(1, rounds + 1):
        samples = number * per_round
        now = Round(PRIOR, PRIOR, losses(samples), references, samples, total)
        weights, memory = dro.dro_weights(now, memory, rho)
        given.append(weights)
    return np.array(given), memory


def test_the_base_follows_from_a_fifth_on_within_half_and_twice():
    references = np.array([2.0, 2.0, 2.0])
    weights, memory = run(400, lambda samples: np.array([2.1, 2.2, 2.9]), references, rho=0.05)
    assert np.ptp(weights[:80], axis=0).max() == 0, 'the base is the first mixture until a fifth of the run'
    assert (weights[81] != weights[80]).all()
    base = np.array(memory[:3])
    assert base.sum() == pytest.approx(1) and (base >= PRIOR / 2 - 1e-12).all() and (base <= 2 * PRIOR + 1e-12).all()
    assert base[2] == pytest.approx(0.4), 'at twice its first'
    assert (weights >= dro.FLOOR * PRIOR / 2 - 1e-12).all()


def test_gaps_that_are_exactly_equal_leave_the_weights():
    weights, memory = run(300, lambda samples: np.array([2.1, 1.6, 3.1]), np.array([2.0, 1.5, 3.0]))
    assert weights == pytest.approx(np.tile(PRIOR, (300, 1)), abs=1e-9)
    assert len(memory) == 3 + dro.MOST_POINTS * 5


@pytest.mark.parametrize(
    'rho, noise, gap, lowest, highest',
    [  # of the first two domains, over 300 rounds
        (0.05, 0.003, 0, [0.28, 0.09], [0.80, 0.64]),
        (0.05, 0.0003, 0, [0.28, 0.09], [0.80, 0.64]),  # as more sequences would have it: no calmer
        (0.005, 0.003, 0, [0.45, 0.23], [0.63, 0.41]),
        (0.0005, 0.003, 0, [0.48, 0.28], [0.57, 0.34]),
        (0.05, 0.03, 0.03, [0.12, 0.16], [0.66, 0.75]),
        (0.05, 0.003, 0.03, [0.17, 0.43], [0.45, 0.75]),  # a gap that stands out from the noise
    ],
)
def test_noise_at_the_references_moves_weights_as_far_as_rho_lets_it(rho, noise, gap, lowest, highest):
    """The numbers of the README: the ball is spent whatever the size of the gaps."""
    references, random = np.array([2.5, 2.6, 2.1]), np.random.default_rng(1)
    weights, _ = run(300, lambda _: references + [0, gap, 0] + random.normal(0, noise, 3), references, rho=rho)
    assert weights.min(0)[:2] == pytest.approx(lowest, abs=0.01)
    assert weights.max(0)[:2] == pytest.approx(highest, abs=0.01)
    if rho == 0.05 and not gap:  # what `average: true` serves, from the 30th round on
        served = (np.cumsum(weights, 0) / np.arange(1, 301)[:, None])[30:]
        assert [served[:, 0].min(), served[:, 0].max()] == pytest.approx([0.50, 0.57], abs=0.01)


def test_memory_is_plain_numbers_before_and_after_the_first_prediction():
    """Checkpoints are read without unpickling anything else."""
    memory = []
    for samples in range(50, 1000, 50):
        now = Round(PRIOR, PRIOR, curve(samples), np.full(3, np.nan), samples, 1000)
        _, memory = dro.dro_weights(now, memory)
        assert {type(value) for value in memory} == {float}


def test_without_references_weights_stay_until_a_tenth_and_then_favour_what_has_most_to_gain():
    weights, _ = run(100, curve, np.full(3, np.nan))
    assert (weights[:9] == PRIOR).all() and not np.allclose(weights[9], PRIOR)
    samples, total = 500, 1000
    ahead = curve(samples) - curve(total)
    assert np.argmax(weights[49] / PRIOR) == np.argmax(ahead)
