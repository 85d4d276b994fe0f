"""Where training stands: rounds that end, are left early, resumed and refused."""

from __future__ import annotations

import json

import pytest

from llmshearing.data.rounds import MixtureRounds

SIZES = {'a': 40, 'b': 30, 'c': 20}


def make(**changes):
    settings = {
        'sizes': SIZES,
        'proportions': {'a': 2, 'b': 1, 'c': 1},
        'round_batches': 3,
        'global_batch_size': 8,
        'shuffle_seed': 17,
        'shuffle_block_size': 16,
    } | changes
    return MixtureRounds(**settings)


def run(rounds, batches):
    rounds.start()
    rounds.batch += batches
    return rounds


def test_weights_set_before_the_first_round_count_for_it():
    rounds = make()
    rounds.set_next_weights({'a': 0, 'b': 1, 'c': 1})
    assert rounds.next_weights is None
    assert run(rounds, 3).used() == {'a': 0, 'b': 12, 'c': 12}


def test_weights_set_within_a_round_count_from_the_next():
    rounds = run(make(), 1)
    rounds.set_next_weights({'a': 0, 'b': 1, 'c': 1})
    assert rounds.weights == {'a': 0.5, 'b': 0.25, 'c': 0.25}
    rounds.batch = 3
    assert rounds.used() == {'a': 12, 'b': 6, 'c': 6}
    assert run(rounds, 3).used() == {'a': 12, 'b': 18, 'c': 18}
    # and stay until they are changed again
    assert run(rounds, 3).used() == {'a': 12, 'b': 30, 'c': 30}


def test_both_checkpoints_at_the_end_of_a_round_continue_alike():
    rounds = run(make(), 3)
    rounds.set_next_weights({'a': 0, 'b': 1, 'c': 1})
    before, after = rounds.state_dict(3), rounds.state_dict(0)
    assert (before['round'], before['batch_in_round']) == (0, 3)
    assert (after['round'], after['batch_in_round'], after['next_weights']) == (1, 0, [])
    states = []
    for saved in (before, after):
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(saved)))
        resumed.start()
        if resumed.finished:
            resumed.start()  # the trainer closes the empty rest of the round
        states.append((resumed.state, resumed.batch))
    rounds.start()
    assert states == [(rounds.state, 0)] * 2


def test_an_update_after_the_last_checkpoint_of_a_round_is_made_again():
    saved = run(make(), 3).state_dict(3)
    resumed = make()
    resumed.load_state_dict(saved)
    assert resumed.next_weights is None
    resumed.start()
    assert resumed.finished
    resumed.set_next_weights({'a': 0, 'b': 1, 'c': 1})
    assert run(resumed, 0).weights['a'] == 0


def test_a_round_left_early_starts_again_but_goes_on_after_a_resumption():
    rounds = run(make(), 2)
    rounds.start()
    assert (rounds.state.round, rounds.batch) == (0, 0)
    resumed = make()
    resumed.load_state_dict(run(make(), 1).state_dict(1))
    resumed.start()
    assert (resumed.first_batch, resumed.batch) == (1, 1)
    resumed.batch += 1
    resumed.start()
    assert (resumed.state.round, resumed.first_batch, resumed.batch) == (0, 2, 2)


def test_the_state_has_the_same_keys_and_length_always():
    rounds, shapes = make(), set()
    for number in range(50):
        run(rounds, 3)
        rounds.set_next_weights({'a': 1 + number, 'b': 1, 'c': 2})
        state = rounds.state_dict(3)
        shapes.add(tuple((key, len(value) if isinstance(value, list) else 1) for key, value in state.items()))
    assert len(shapes) == 1
    assert len(json.dumps(state)) < 600


def test_the_weights_a_run_began_with_survive_another_configuration():
    rounds = run(make(), 3)
    rounds.set_next_weights({'a': 0, 'b': 1, 'c': 1})
    resumed = make(proportions={'a': 1, 'b': 0, 'c': 0})
    resumed.load_state_dict(run(rounds, 1).state_dict(1))
    assert resumed.initial_weights == {'a': 0.5, 'b': 0.25, 'c': 0.25}
    assert resumed.weights == {'a': 0, 'b': 0.5, 'c': 0.5}


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        ({'sizes': {'a': 41, 'b': 30, 'c': 20}}, 'sizes='),
        ({'sizes': {'b': 30, 'a': 40, 'c': 20}}, 'domains='),
        ({'fingerprints': {'a': '1', 'b': '7', 'c': '3'}}, 'other shards of b: as many samples'),
        ({'shuffle_seed': 18}, 'shuffle_seed=17, but now it is 18'),
        ({'shuffle_block_size': 8}, 'shuffle_block_size='),
        ({'round_batches': 4}, 'in the middle of a round, 1 batches in, with round_batches=3'),
        ({'global_batch_size': 4}, 'global_batch_size=8'),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, match):
    fingerprints = {'fingerprints': {'a': '1', 'b': '2', 'c': '3'}}
    state = run(make(**fingerprints), 1).state_dict(1)
    with pytest.raises(ValueError, match=match):
        make(**fingerprints | change).load_state_dict(state)


@pytest.mark.parametrize(
    ('stop', 'change'),
    [
        (1, {'fingerprints': {'a': '4', 'b': '5', 'c': '6'}}),
        (3, {'fingerprints': {'a': '4', 'b': '5', 'c': '6'}}),
        (1, {'sizes': {'c': 20, 'a': 41}, 'proportions': {'a': 1, 'c': 3}}),
        (3, {'sizes': {'c': 20, 'a': 41}, 'proportions': {'a': 1, 'c': 3}}),
    ],
)
def test_new_data_starts_afresh_where_that_is_wanted_and_rounds_end_where_they_did(stop, change):
    rounds = run(make(), stop)
    rounds.set_next_weights({'a': 0, 'b': 1, 'c': 1})
    other = make(**change, restart_on_new_data=True)
    other.load_state_dict(rounds.state_dict(stop))
    assert (other.state.used, other.state.round, other.batch) == ((0,) * len(other.sizes), 0, stop)
    other.start()
    assert other.finished == (stop == 3)
    same = 'sizes' not in change
    assert other.weights == ({'a': 0.5, 'b': 0.25, 'c': 0.25} if same else {'c': 0.75, 'a': 0.25})
    if stop == 3:
        assert other.next_weights == ({'a': 0, 'b': 0.5, 'c': 0.5} if same else {'c': 0.75, 'a': 0.25})
    again = make(**change, restart_on_new_data=True)  # a checkpoint of the new data is continued exactly
    run(other, 3 - other.batch if other.batch < 3 else 1)
    again.load_state_dict(other.state_dict(other.batch))
    assert (again.state, again.batch) == (other.state, other.batch)
    assert other.restarted and not again.restarted  # curves over its samples are void in the first


def test_between_rounds_their_length_and_the_batch_may_change():
    rounds = run(make(), 3)
    other = make(round_batches=5, global_batch_size=4)
    other.load_state_dict(rounds.state_dict(0))
    assert run(other, 5).used() == {'a': 12 + 10, 'b': 6 + 5, 'c': 6 + 5}


@pytest.mark.parametrize('updated', [True, False])
def test_a_round_that_is_saved_before_it_is_closed_keeps_its_shape_until_then(updated):
    rounds = run(make(), 3)
    if updated:
        rounds.set_next_weights({'a': 0, 'b': 1, 'c': 1})
    other = make(round_batches=2, global_batch_size=4)
    other.load_state_dict(rounds.state_dict(3))
    assert (other.shape, other.used()) == ((3, 8), {'a': 12, 'b': 6, 'c': 6})
    assert other.state_dict(3) == rounds.state_dict(3)
    other.start()
    assert other.finished and other.end() == rounds.end()
    other.set_next_weights({'a': 0, 'b': 1, 'c': 1})  # made again if it came after the checkpoint
    closed = other.state_dict(0)
    assert (closed['round'], closed['round_batches'], closed['global_batch_size']) == (1, 2, 4)
    assert run(other, 2).used() == {'a': 12, 'b': 6 + 4, 'c': 6 + 4}
    assert (other.shape, other.finished) == ((2, 4), True)


@pytest.mark.parametrize('state', [None, {}, {'epoch': 1, 'sample_in_epoch': 3}, {'version': 1, 'carry': []}])
def test_a_state_of_something_else_is_refused(state):
    with pytest.raises(ValueError, match='no dynamic_text state'):
        make().load_state_dict(state)


@pytest.mark.parametrize(
    ('proportions', 'match'),
    [
        ({'a': 1, 'b': 1}, r"lacks \['c'\]"),
        ({'a': 1, 'b': 1, 'c': 1, 'd': 1}, r"unknown names \['d'\]"),
        ({'a': 0, 'b': 0, 'c': 0}, 'not all zero'),
        ({'a': -1, 'b': 1, 'c': 1}, 'not negative'),
        ({'a': float('nan'), 'b': 1, 'c': 1}, 'finite'),
    ],
)
def test_proportions_that_do_not_fit_are_refused(proportions, match):
    with pytest.raises(ValueError, match=match):
        make(proportions=proportions)
    with pytest.raises(ValueError, match=match):
        make().set_next_weights(proportions)


def test_without_proportions_domains_count_by_size():
    assert make(proportions=None).weights == pytest.approx({'a': 4 / 9, 'b': 3 / 9, 'c': 2 / 9}, abs=1e-12)
