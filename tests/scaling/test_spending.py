"""Plans against the law itself: every answer is put back into the law, every optimum beside its neighbours."""

from __future__ import annotations

import math

import pytest

from llmshearing.scaling.post_training import PostTrainingLaw
from llmshearing.scaling.spending import (
    PRUNING_GAIN,
    PRUNING_SHARE,
    Case,
    Costs,
    diminishing_point,
    split_beside,
    split_total,
    tokens_for_loss,
)

LAW = PostTrainingLaw(
    {'N_C': 60.0, 'D_C': 800.0, 'E': 0.05, 'alpha': 0.3, 'beta': 0.35, 'gamma': -1.1, 'delta': 0.03},
    (1e8, 1e9),
    (0.2, 0.5),
    (1e8, 1e10),
    False,
    False,
)
CASE = Case(7e9, 0.4, 2.0)


def loss(tokens):
    return float(LAW.predict(CASE.params_before, CASE.pruning_rate, CASE.source_loss, tokens))


def test_tokens_for_loss_is_the_inverse_of_the_law():
    for wanted in (2.2, 2.1, 2.06):
        assert loss(tokens_for_loss(LAW, CASE, wanted)) == pytest.approx(wanted)


def test_what_cannot_be_reached():
    floor = LAW.floor(7e9, 0.4, 2.0)
    with pytest.raises(ValueError, match=f'cannot be reached: the law never gets below {floor:.4f}'):
        tokens_for_loss(LAW, CASE, floor)
    with pytest.raises(ValueError, match='more than 1e30 tokens'):
        tokens_for_loss(LAW, CASE, floor + 1e-9)
    flat = PostTrainingLaw(LAW.constants | {'D_C': 0.0}, (1, 1), (1, 1), (1, 1), False, False)
    with pytest.raises(ValueError, match='does not depend on tokens'):
        tokens_for_loss(flat, CASE, 2.5)


@pytest.mark.parametrize('more, gain', [(1e9, 0.01), (1e9, 1e-4), (5e7, 0.02), (1e11, 1e-3)])
def test_diminishing_point(more, gain):
    point = diminishing_point(LAW, CASE, more, gain)
    assert loss(point) - loss(point + more) == pytest.approx(gain, rel=1e-6)
    assert loss(0.9 * point) - loss(0.9 * point + more) > gain > loss(1.1 * point) - loss(1.1 * point + more)


def test_diminishing_point_at_the_ends():
    flat = PostTrainingLaw(LAW.constants | {'D_C': 0.0}, (1, 1), (1, 1), (1, 1), False, False)
    assert diminishing_point(flat, CASE, 1e9, 0.01) == 0
    with pytest.raises(ValueError, match='ask for a larger gain'):
        diminishing_point(LAW, CASE, 1e9, 1e-40)


def modelled(pruning_tokens, continued_tokens):
    """The model of the split: the law, less the gain per doubling of the pruning tokens."""
    return loss(continued_tokens) - PRUNING_GAIN * math.log2(pruning_tokens)


@pytest.mark.parametrize('pruning_cost, continue_cost', [(3.0, 1.0), (5.0, 1.0), (2.0, 0.5)])
def test_split_spends_all_and_no_other_split_is_better(pruning_cost, continue_cost):
    total = 2e9
    split = split_total(LAW, CASE, total, Costs(pruning_cost, continue_cost))
    assert not split.held
    spent = pruning_cost * split.pruning_tokens + continue_cost * split.continued_tokens
    assert spent == pytest.approx(total) == pytest.approx(split.total_cost)
    best = modelled(split.pruning_tokens, split.continued_tokens)
    for factor in (0.8, 0.95, 1.05, 1.25):
        pruning = factor * split.pruning_tokens
        assert modelled(pruning, (total - pruning_cost * pruning) / continue_cost) > best
    beside = split_beside(LAW, CASE, split.continued_tokens, Costs(pruning_cost, continue_cost))
    assert beside.pruning_tokens == pytest.approx(split.pruning_tokens)


@pytest.mark.parametrize('pruning_cost, end', [(1e-3, 1), (1e4, 0)])
def test_split_is_held_within_what_has_been_tried(pruning_cost, end):
    split = split_total(LAW, CASE, 2e9, Costs(pruning_cost))
    assert split.held and split.pruning_share == pytest.approx(PRUNING_SHARE[end])
    assert split.total_cost == pytest.approx(2e9)


def test_default_gain_is_the_papers_table():
    assert PRUNING_GAIN == pytest.approx(0.01743, abs=1e-5)
    assert PRUNING_SHARE == (0.2 / 5, 1.6 / 5)
