"""The rules, against numbers worked out by hand and against what they claim."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmshearing.callbacks.dynamic_batch_loading import limits, updates
from llmshearing.callbacks.dynamic_batch_loading.ado import ALPHAS, WARMUP, _speed, ado_weights

# Sheared LLaMA: proportions of RedPajama, reference losses of the 1.3B model; gaps chosen for the test.
PROPORTIONS = np.array([0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15])
REFERENCES = np.array([1.964, 0.746, 2.139, 1.612, 1.759, 1.445, 2.125])
GAPS = np.array([0.10, 0.00, -0.20, 0.30, 0.05, -0.10, 0.20])


def measured(losses, weights=PROPORTIONS, references=REFERENCES, samples=1):
    return updates.Round(np.array(weights), PROPORTIONS, np.array(losses), np.array(references), samples)


# w * exp(max(gap, 0)) / sum, and without the maximum, in 30 digits with a decimal calculator
HAND = {
    'sheared': [0.66529945, 0.04043202, 0.04043202, 0.02425667, 0.04250501, 0.02246223, 0.16461260],
    'sheared_unclipped': [0.67165779, 0.04081843, 0.03341931, 0.02448850, 0.04291124, 0.02051891, 0.16618582],
    'constant': PROPORTIONS.tolist(),
}


@pytest.mark.parametrize('name', HAND)
def test_rules_reproduce_hand_computed_weights(name):
    weights, memory = updates.find_rule(name).function(measured(REFERENCES + GAPS), [], 1.0)
    assert weights == pytest.approx(HAND[name], abs=5e-9)
    assert memory == []


def test_smoothing_is_the_paper_s():
    weights, _ = updates.sheared(measured(REFERENCES + GAPS), [])
    by_hand = [0.66524720, 0.04044226, 0.04044226, 0.02426853, 0.04251505, 0.02247427, 0.16461042]
    assert limits.smooth(weights, 1e-4, PROPORTIONS) == pytest.approx(by_hand, abs=5e-9)


def test_at_or_below_the_references_the_clipped_rule_leaves_the_weights_alone():
    weights, _ = updates.sheared(measured(REFERENCES - np.linspace(0, 0.6, 7)), [])
    assert weights == pytest.approx(PROPORTIONS, abs=1e-15)


def test_the_unclipped_rule_runs_away_and_the_clipped_does_not():
    """All domains 0.3 better than their references, one only 0.1: it takes everything in 64 updates."""
    losses = REFERENCES - 0.3
    losses[4] += 0.2
    final = {}
    for name in ('sheared', 'sheared_unclipped'):
        weights = PROPORTIONS
        for _ in range(64):
            weights, _ = updates.find_rule(name).function(measured(losses, weights), [], 1.0)
            weights = limits.smooth(weights, 1e-4, PROPORTIONS)
        final[name] = weights[4]
    assert final['sheared'] == pytest.approx(0.045, abs=0.001)
    assert final['sheared_unclipped'] == pytest.approx(0.999468457029, abs=1e-6)


def test_smoothing_leaves_out_what_begins_at_0():
    got = limits.smooth(np.array([0.8, 0.2, 0.0]), 0.1, np.array([0.5, 0.5, 0.0]))
    assert got.tolist() == pytest.approx([0.9 * 0.8 + 0.05, 0.9 * 0.2 + 0.05, 0]) and got[2] == 0


def test_eta_scales_the_gap():
    once, _ = updates.sheared(measured(REFERENCES + 2 * GAPS), [], 1.0)
    twice, _ = updates.sheared(measured(REFERENCES + GAPS), [], 2.0)
    assert once == pytest.approx(twice, abs=1e-15)


def test_large_gaps_do_not_overflow():
    weights, _ = updates.sheared(measured(REFERENCES + np.array([2000.0, 0, 0, 0, 0, 0, 1000])), [])
    assert weights == pytest.approx([1, 0, 0, 0, 0, 0, 0], abs=1e-12)


@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=9), st.floats(0, 1), st.floats(0, 1))
def test_bounds_hold_and_ratios_stay(values, low, high):
    k = len(values)
    floor, ceiling = low / k, 1 / k + high * (1 - 1 / k)
    weights = np.array(values) / sum(values)
    bounded = limits.bound(weights, floor, ceiling)
    assert bounded.sum() == pytest.approx(1, abs=1e-9)
    assert (bounded >= floor - 1e-12).all() and (bounded <= ceiling + 1e-12).all()
    free = (bounded > floor + 1e-9) & (bounded < ceiling - 1e-9)
    if free.any():
        scale = (bounded / weights)[free]
        assert scale == pytest.approx(scale[0], rel=1e-6)
        assert (weights[bounded <= floor + 1e-12] * scale[0] <= floor + 1e-6).all()
        assert (weights[bounded >= ceiling - 1e-12] * scale[0] >= ceiling - 1e-6).all()


def test_bounds_by_hand():
    assert limits.bound(np.array([0.7, 0.2, 0.1]), 0, 0.4) == pytest.approx([0.4, 0.4, 0.2])
    assert limits.bound(np.array([0.9, 0.06, 0.04]), 0.1, 1) == pytest.approx([0.8, 0.1, 0.1])
    assert limits.bound(np.array([0.9, 0.1, 0.0]), 0.0, np.array([0.2, 1, 1])) == pytest.approx([0.2, 0.8, 0.0])
    with pytest.raises(ValueError, match='No weights of 3 domains sum to 1 between floor 0.4'):
        limits.bound(np.ones(3), 0.4, 1)
    with pytest.raises(ValueError, match='Lower the floor or raise the ceiling'):
        limits.bound(np.ones(3), 0, 0.3)


def test_losses_that_are_no_numbers_name_their_domains():
    updates.check_losses(['a', 'b'], np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"loss of \{'b': nan\} is not a finite number"):
        updates.check_losses(['a', 'b'], np.array([1.0, np.nan]))


# Adaptive Data Optimization


def of_ado(losses, samples, prior):
    return updates.Round(prior, prior, losses, np.full(len(prior), np.nan), samples)


def follow(laws, rounds, prior, samples=1000):
    """Losses that follow eps + beta * n^-alpha exactly. Returns the weights after every round and the memory."""
    memory, history = [], []
    for number in range(1, rounds + 1):
        losses = np.array([eps + beta * number**-alpha for eps, beta, alpha in laws])
        weights, memory = ado_weights(of_ado(losses, samples * number, prior), memory)
        history.append(weights)
    return history, memory


def test_ado_waits_then_follows_the_slopes():
    prior = np.array([0.5, 0.5])
    laws = [(2.0, 1.0, ALPHAS[9]), (1.0, 0.2, ALPHAS[9])]
    history, _ = follow(laws, 300, prior)
    for weights in history[: WARMUP - 1]:
        assert weights == pytest.approx(prior)
    # Same exponent: the slopes are as 1 to 0.2, whatever the round, and the first preference follows from them alone.
    preference = np.array([1, 0.2]) / 1.2
    mean = prior
    assert history[WARMUP - 1] == pytest.approx(0.1 * preference + 0.9 * mean, abs=1e-6)
    assert history[-1][0] > history[WARMUP][0] > 0.5
    assert history[-1].sum() == pytest.approx(1)


def test_ado_finds_the_slope_of_an_exact_law():
    n = np.arange(1.0, 9.0)
    x = n[:, None] ** -ALPHAS
    for eps, beta, index in ((2.0, 1.5, 3), (0.0, 3.0, 10), (1.0, 0.05, 15)):
        losses = eps + beta * n ** -ALPHAS[index]
        sums = np.stack([x.sum(0), (x * x).sum(0)])
        own = np.concatenate([[losses.sum(), (losses**2).sum()], (losses[:, None] * x).sum(0)])
        slope = ALPHAS[index] * beta * n[-1] ** (-ALPHAS[index] - 1)
        assert _speed(n[-1], len(n), sums, own) == pytest.approx(slope, rel=1e-4)


def test_ado_returns_to_the_prior_where_no_loss_falls():
    prior = np.array([0.7, 0.3])
    memory = []
    for number in range(1, 9):
        weights, memory = ado_weights(of_ado(np.array([2.0, 3.0]) + 0.1 * number, 10 * number, prior), memory)
        assert weights == pytest.approx(prior)


def test_ado_gives_every_domain_its_minimum():
    history, _ = follow([(2.0, 1.0, 0.5), (2.0, 0.0, 0.5)], 3000, np.array([0.5, 0.5]))
    assert history[-1][1] > 0.01 / 1.01 - 1e-9
    assert history[-1][1] < history[10][1]


def test_ado_leaves_a_domain_that_begins_at_0_there():
    """As without it; also where its loss alone falls."""
    laws = [(2.0, 1.0, 0.5), (1.0, 0.5, 0.5)]
    history, _ = follow([*laws, (2.0, 3.0, 0.4)], 30, np.array([0.6, 0.4, 0.0]))
    alone, _ = follow(laws, 30, np.array([0.6, 0.4]))
    assert all(weights[2] == 0 for weights in history)
    np.testing.assert_allclose([weights[:2] for weights in history], alone, rtol=1e-12)
    history, _ = follow([(2.0, 0.0, 0.5), (2.0, 3.0, 0.4)], 10, np.array([1.0, 0.0]))
    assert all(weights.tolist() == [1, 0] for weights in history)


def test_ado_remembers_a_fixed_number_of_numbers():
    _, early = follow([(2.0, 1.0, 0.5)] * 3, 1, np.ones(3) / 3)
    _, late = follow([(2.0, 1.0, 0.5)] * 3, 500, np.ones(3) / 3)
    assert len(early) == len(late) == 3 + 2 * len(ALPHAS) + 3 * (4 + len(ALPHAS))


def test_ado_continues_exactly_from_its_memory():
    laws, prior = [(2.0, 1.0, 0.5), (1.0, 2.0, 0.3)], np.array([0.6, 0.4])
    history, _ = follow(laws, 20, prior)
    _, memory = follow(laws, 12, prior)
    memory = json.loads(json.dumps(memory))
    for number in range(13, 21):
        losses = np.array([eps + beta * number**-alpha for eps, beta, alpha in laws])
        weights, memory = ado_weights(of_ado(losses, 1000 * number, prior), memory)
        assert weights.tolist() == history[number - 1].tolist()
