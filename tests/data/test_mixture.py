"""The order of samples: exact shares, each sample once per pass, and nothing else it could depend on."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmshearing.data.mixture import (
    UNITS,
    batch_counts,
    check_samples,
    domain_samples,
    hash64,
    initial_state,
    quantize,
    round_counts,
    round_samples,
    spread,
    with_weights,
)

weights_of = st.integers(1, 12).flatmap(
    lambda k: st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1.0)), min_size=k, max_size=k).filter(any)
)


@st.composite
def histories(draw):
    """Weights of several rounds for the same domains, and the shape of the rounds."""
    k = draw(st.integers(1, 8))
    weights = st.lists(st.floats(0.0, 1.0), min_size=k, max_size=k).filter(lambda w: sum(w) > 1e-6)
    rounds = draw(st.lists(weights, min_size=1, max_size=5))
    shards = [np.array(draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)), np.int64) for _ in range(k)]
    return rounds, shards, draw(st.integers(1, 7)), draw(st.sampled_from([1, 2, 4, 8, 12])), draw(st.integers(1, 20))


def serve(rounds, shards, num_batches, batch_size, block, seed=17):
    """Counts and samples of every round, and the states before them."""
    state, result = initial_state(rounds[0]), []
    for weights in rounds:
        state = with_weights(state, quantize(weights))
        counts, after = round_counts(state, num_batches, batch_size)
        result.append((state, counts, round_samples(state, num_batches, batch_size, shards, seed, block)))
        state = after
    return result, state


@given(weights_of)
def test_quantized_weights_sum_to_one_and_are_nearest(weights):
    parts = quantize(weights)
    assert sum(parts) == UNITS
    total = sum(map(Fraction, weights))
    for part, weight in zip(parts, weights, strict=True):
        assert abs(Fraction(part, UNITS) - Fraction(weight) / total) < Fraction(2, UNITS)


@pytest.mark.parametrize('weights', [[], [0.0, 0.0], [1.0, -0.1], [1.0, float('nan')], [1.0, float('inf')]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match='weights must be finite'):
        quantize(weights)


# In the first example, serving the largest remainder without regard to deadlines leaves a domain 1.08 behind.
@settings(max_examples=200, deadline=None)
@example([30.0, 30.0, 3.0, 1.0, 1.0], 1)
@given(weights_of, st.sampled_from([1, 2, 3, 7, 16, 256]))
def test_every_batch_is_less_than_a_sample_from_the_ideal_total(weights, batch_size):
    state = initial_state(weights)
    counts, after = round_counts(state, 80, batch_size)
    assert (counts >= 0).all()
    assert (counts.sum(1) == batch_size).all()
    for batch, total in enumerate(counts.cumsum(0), start=1):
        for weight, used in zip(state.weights, total.tolist(), strict=True):
            assert abs(weight * batch_size * batch - used * UNITS) < UNITS
    assert after.used == tuple(counts.sum(0).tolist())
    assert sum(after.carry) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(1, 100), min_size=4, max_size=4), min_size=2, max_size=12), st.integers(1, 4))
def test_changing_weights_keep_the_running_total_if_each_domain_is_worth_a_sample(history, num_batches):
    batch_size = 4 * 101 * 4
    state = initial_state(history[0])
    ideal = np.zeros(4, object)
    for weights in history:
        state = with_weights(state, quantize(weights))
        for batch in range(1, num_batches + 1):
            _, within = round_counts(state, batch, batch_size)
            due = ideal + np.array(state.weights, object) * batch_size * batch
            assert (abs(due - np.array(within.used, object) * UNITS) < UNITS).all()
        ideal = due
        state = within


def test_rare_domains_get_their_sample_in_time():
    """One large and 100 tiny domains: each tiny one is served once in 200 samples, and once in the next 200."""
    state = initial_state([0.5] + [0.005] * 100)
    counts, _ = round_counts(state, 400, 1)
    first, second = (counts[:200] > 0).sum(0), (counts[200:] > 0).sum(0)
    assert (first[1:] == 1).all() and (second[1:] == 1).all()


def test_no_rule_without_foresight_can_do_better_after_changes():
    """Four equal domains, one sample at a time; whoever was served loses all weight. The last is then 1 + 1/12 behind.

    That is 1/4 + 1/3 + 1/2, whatever the rule served: the ideal totals grow alike for the domains not yet served.
    """
    state, alive = initial_state([1, 1, 1, 1]), [0, 1, 2, 3]
    for _ in range(3):
        state = with_weights(state, quantize([float(i in alive) for i in range(4)]))
        counts, state = round_counts(state, 1, 1)
        alive.remove(int(counts[0].argmax()))
    behind = Fraction(state.carry[alive[0]], UNITS)
    assert abs(behind - Fraction(13, 12)) < Fraction(4, UNITS)
    # It is served first from then on, and nobody is ever a whole sample ahead.
    state = with_weights(state, quantize([1, 1, 1, 1]))
    counts, state = round_counts(state, 1, 1)
    assert counts[0, alive[0]] == 1
    assert max(map(abs, state.carry)) < UNITS


def test_more_debt_than_room_is_served_longest_first():
    counts = batch_counts(np.array([3 * UNITS // 2, 5 * UNITS // 4, -11 * UNITS // 4]), np.array([0, 0, UNITS]), 2)
    assert counts.tolist() == [1, 1, 0]


@settings(max_examples=60, deadline=None)
@given(histories())
def test_each_sample_once_per_pass_and_nothing_that_is_no_sample(history):
    rounds, shards, num_batches, batch_size, block = history
    served, end = serve(rounds, shards, num_batches, batch_size, block)
    sizes = [int(s.sum()) for s in shards]
    offsets = np.cumsum([0, *sizes])
    everything = np.concatenate([samples.ravel() for _, _, samples in served])
    assert everything.min() >= 0 and everything.max() < offsets[-1]
    for domain, size in enumerate(sizes):
        own = everything[(everything >= offsets[domain]) & (everything < offsets[domain + 1])] - offsets[domain]
        assert len(own) == end.used[domain]
        for start in range(0, len(own), size):
            part = own[start : start + size]
            assert len(set(part.tolist())) == len(part)


@settings(max_examples=60, deadline=None)
@given(histories(), st.data())
def test_continuing_from_a_state_anywhere_gives_the_same_order(history, data):
    rounds, shards, num_batches, batch_size, block = history
    served, _ = serve(rounds, shards, num_batches, batch_size, block)
    number = data.draw(st.integers(0, len(rounds) - 1))
    state, counts, samples = served[number]
    copy = type(state)(
        **{key: tuple(value) if isinstance(value, tuple) else value for key, value in vars(state).items()}
    )
    assert np.array_equal(round_samples(copy, num_batches, batch_size, shards, 17, block), samples)
    # A longer round begins with the same batches.
    longer, _ = round_counts(state, num_batches + 3, batch_size)
    assert np.array_equal(longer[:num_batches], counts)
    again = round_samples(state, num_batches + 3, batch_size, shards, 17, block)
    assert np.array_equal(again[:num_batches], samples)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 90), st.integers(0, 40), st.integers(1, 30))
def test_any_stretch_of_a_domain_is_part_of_the_whole(sizes, start, length, block):
    sizes = np.array(sizes, np.int64)
    whole = domain_samples(sizes, 0, start + length, 5, 2, block)
    assert np.array_equal(domain_samples(sizes, start, start + length, 5, 2, block), whole[start:])


def test_passes_and_seeds_and_domains_are_shuffled_differently():
    sizes = np.full(8, 16)
    orders = [
        domain_samples(sizes, 128 * turn, 128 * turn + 128, seed, domain, 64)
        for seed in (1, 2)
        for domain in (0, 1)
        for turn in (0, 1)
    ]
    for order in orders:
        assert sorted(order.tolist()) == list(range(128))
    assert len({tuple(order.tolist()) for order in orders}) == 8
    # Chance leaves about one sample in place.
    assert max(np.mean(a == b) for i, a in enumerate(orders) for b in orders[:i]) < 0.08


def test_a_block_needs_only_its_own_shards():
    sizes = np.full(10, 16)
    order = domain_samples(sizes, 0, 160, 3, 0, 32)
    shards = order // 16
    for block in range(5):
        assert len(set(shards[32 * block : 32 * block + 32].tolist())) == 2
    assert len(set(shards[:16].tolist())) == 2  # and mixes them


def test_a_batch_is_spread_so_that_every_part_holds_its_share():
    counts, _ = round_counts(initial_state([0.5, 0.3, 0.15, 0.05]), 50, 64)
    domains = spread(counts, 0, 17)
    for batch, row in zip(domains, counts, strict=True):
        assert np.bincount(batch, minlength=4).tolist() == row.tolist()
        for part in batch.reshape(4, 16):
            assert (abs(np.bincount(part, minlength=4) - row / 4) < 1.5).all()
    # The places differ from batch to batch.
    assert len({tuple(row) for row in domains.tolist()}) == 50


def test_the_order_is_what_it_was():
    """The first samples for one seed, written down: a run resumed with a later version must not change its order."""
    state = initial_state([0.5, 0.3, 0.2])
    shards = [np.array([5, 5]), np.array([4, 4]), np.array([7])]
    samples = round_samples(state, 3, 4, shards, 17, 8)
    assert samples.tolist() == [[20, 12, 0, 4], [21, 16, 3, 7], [13, 2, 11, 9]]
    assert int(hash64(np.array([1], np.uint64), 2, 3)[0]) == 15020427595393229491


def test_ten_thousand_rounds_leave_a_state_of_the_same_size():
    state = initial_state([0.6, 0.3, 0.1])
    rng = np.random.default_rng(0)
    first = vars(state)
    ideal = np.zeros(3, object)
    for _ in range(10_000):
        state = with_weights(state, quantize(rng.dirichlet([5, 5, 5])))
        ideal = ideal + np.array(state.weights, object) * 2 * 64
        _, state = round_counts(state, 2, 64)
    assert {key: np.size(value) for key, value in vars(state).items()} == {
        key: np.size(value) for key, value in first.items()
    }
    assert sum(state.used) == 10_000 * 2 * 64
    # The carry is still exact.
    assert (ideal - np.array(state.used, object) * UNITS).tolist() == list(state.carry)
    assert max(map(abs, state.carry)) < UNITS


def test_planned_passes_are_counted_and_limited():
    needed = check_samples({'a': 3, 'b': 1}, {'a': 100, 'b': 50}, 400)
    assert needed == {'a': 3.0, 'b': 2.0}
    with pytest.raises(ValueError, match=r"\{'a': 3.0\} passes .* max_passes is 2"):
        check_samples({'a': 3, 'b': 1}, {'a': 100, 'b': 50}, 400, max_passes=2)
