"""The limit on passes, over runs of drawn weights: kept to the sample, whatever the ceiling, and never in the way."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from composer.core import Time, Timestamp

from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading, limits
from llmshearing.callbacks.dynamic_batch_loading.passes import check_plan, planned_samples, weight_ceiling
from llmshearing.data.dynamic_dataset import DynamicTextDataset
from llmshearing.data.mixture import UNITS
from llmshearing.data.rounds import MixtureRounds
from tests.dynamic_text_run import REFERENCES, SIZES, tiny_trainer
from tests.dynamic_text_world import close_loaders, write_domains


def domains(sizes, weights, max_passes, round_batches=3, batch_size=4):
    names = 'abcdefgh'[: len(sizes)]
    rounds = MixtureRounds(
        dict(zip(names, sizes, strict=True)), dict(zip(names, weights, strict=True)), round_batches, batch_size, 17, 16
    )
    dataset = SimpleNamespace(rounds=rounds, max_passes=max_passes)
    dataset.most_samples = lambda: DynamicTextDataset.most_samples(dataset)
    return dataset


def run(dataset, batches, ceiling, generator):
    """Trains, drawing the rule's weights, and returns the samples used of each domain."""
    rounds = dataset.rounds
    while True:
        rounds.start()
        rounds.batch = min(rounds.round_batches, batches)
        batches -= rounds.batch
        if rounds.finished:  # also after the last batch, as at the last evaluation
            limit = weight_ceiling(dataset, ceiling)
            weights = limits.bound(generator.dirichlet(np.full(len(limit), 0.3)) + 1e-9, np.zeros(len(limit)), limit)
            rounds.set_next_weights(dict(zip(rounds.domains, weights.tolist(), strict=True)))
            if limit.sum() > 1 + 1e-6:
                check_ideal(dataset)
        if batches == 0:
            return np.array(list(rounds.used().values()))


def check_ideal(dataset):
    """In the integers that samples are counted with, no domain's due goes beyond its limit, with rounding."""
    rounds = dataset.rounds
    end, samples = rounds.end(), rounds.round_batches * rounds.global_batch_size
    for most, used, carry, part in zip(
        dataset.most_samples().values(), end.used, end.carry, rounds._after().weights, strict=True
    ):
        assert part == 0 or used * UNITS + carry + part * samples <= most * UNITS


@pytest.mark.parametrize('seed', range(150))
def test_no_domain_gives_a_sample_more_and_every_run_comes_to_its_end(seed):
    """From runs that leave half of the data to runs that use all of it to the last sample."""
    generator = np.random.default_rng(seed)
    k, batch_size, round_batches = (int(generator.integers(*pair)) for pair in ((2, 7), (1, 9), (1, 5)))
    sizes = generator.integers(20, 120, k) * batch_size
    max_passes = float(generator.choice([1, 2, 1.37]))
    batches = int(max_passes * sizes.sum() * generator.choice([0.5, 0.9, 1.0])) // batch_size
    dataset = domains(sizes.tolist(), sizes.tolist(), max_passes, round_batches, batch_size)
    used = run(dataset, batches, float(generator.choice([1 / k + 0.01, 0.7, 1])), generator)
    assert used.sum() == batches * batch_size
    assert (used <= [math.ceil(round(max_passes * size, 6)) for size in sizes.tolist()]).all()


def test_a_ceiling_that_leaves_no_mixture_gives_way_as_little_as_fills_the_round(caplog):
    """Of 60 samples a has 20 left, b 3 and c 1; a round has 12, so that a must give 8 of them: two thirds."""
    dataset = domains([20, 20, 20], [1, 1, 1], 1)
    dataset.rounds.state = dataset.rounds.state.__class__(5, (0, 17, 19), (0, 0, 0), dataset.rounds.state.weights)
    dataset.rounds.end = lambda: dataset.rounds.state
    assert weight_ceiling(dataset, 0.8) == pytest.approx([0.8, 3 / 12, 1 / 12], abs=1e-10)
    assert not caplog.records
    assert weight_ceiling(dataset, 0.5) == pytest.approx([8 / 12, 3 / 12, 1 / 12], abs=1e-10)
    assert 'A ceiling of 0.5 leaves no mixture within max_passes=1: in the next round weights go up to 0.6667' in (
        caplog.text
    )


def test_what_does_not_fill_a_round_is_shared_out(caplog):
    dataset = domains([20, 20, 20], [1, 1, 1], 1)
    dataset.rounds.state = dataset.rounds.state.__class__(5, (14, 18, 20), (0, 0, 0), dataset.rounds.state.weights)
    dataset.rounds.end = lambda: dataset.rounds.state
    assert weight_ceiling(dataset, 0.5) == pytest.approx([6 / 8, 2 / 8, 0], abs=1e-9)
    assert 'max_passes=1 leaves 8 samples of all domains, and a round has 12' in caplog.text


def test_without_a_limit_the_ceiling_is_the_user_s():
    assert weight_ceiling(domains([20, 20], [1, 1], None), 0.6).tolist() == [0.6, 0.6]


@pytest.mark.parametrize('duration', ['24ba', '8ep', '96sp', '384tok'])
@pytest.mark.parametrize(('rounds', 'rest'), [(0, 0), (5, 0), (5, 2), (5, 3)])
def test_what_is_planned_is_what_was_used_and_what_is_left(duration, rounds, rest):
    """Of 24 batches of 4 samples, 3 a round, some are done; from then on they are as large as is said."""
    dataset, done = domains([200, 200], [1, 1], None), 3 * rounds + rest
    dataset.max_seq_len = 4
    for _ in range(rounds):
        dataset.rounds.start()
        dataset.rounds.batch = 3
    dataset.rounds.start()
    dataset.rounds.batch = rest
    now = Timestamp(epoch=rounds, batch=done, batch_in_epoch=rest, sample=4 * done, token=16 * done)
    state = SimpleNamespace(max_duration=Time.from_timestring(duration), timestamp=now)
    assert planned_samples(dataset, state) == 96
    dataset.rounds.global_batch_size = 16
    left = {'ba': (24 - done) * 16, 'ep': (24 - done) * 16}.get(duration[-2:], 96 - 4 * done)
    assert planned_samples(dataset, state) == 4 * done + left


def test_passes_of_a_resumed_run_are_those_of_what_is_left():
    dataset, state = domains([100, 100], [1, 1], 1), SimpleNamespace(max_duration=Time.from_timestring('40ba'))
    dataset.rounds.start()
    dataset.rounds.state = dataset.rounds.state.__class__(12, (72, 72), (0, 0), dataset.rounds.state.weights)
    dataset.max_seq_len, state.timestamp = 16, Timestamp(batch=36)
    dataset.rounds.global_batch_size = 8  # 144 used and 32 to come
    check_plan(dataset, state, fixed=True)
    dataset.rounds.global_batch_size = 16
    with pytest.raises(ValueError, match='208 samples at these weights take .* but max_passes is 1'):
        check_plan(dataset, state, fixed=True)


RUNAWAY, USED_UP = 'What may help: ', 'max_passes leaves no more'


def test_a_domain_that_is_used_up_is_named_once_as_that_and_no_runaway(tmp_path, caplog):
    """Of 100 samples 96 are used: b ends at 0 and c alone is left, which the rule did not ask for."""
    update = DynamicBatchLoading({'a': 1, 'b': 1, 'c': 9}, update='dro', rho=0.3)
    tiny_trainer(write_domains(tmp_path, SIZES), '24ba', update=update, dataset={'max_passes': 1}).fit()
    close_loaders()
    told = [message for message in caplog.messages if 'The weight of domain' in message]
    assert sorted(message.split(' has gone')[0][-1] for message in told) == ['a', 'b']
    assert all(USED_UP in message and RUNAWAY not in message for message in told)


@pytest.mark.parametrize(
    ('settings', 'advice'),
    [
        (
            {'update': 'sheared', 'reference_losses': REFERENCES},
            'measure its reference again (llmshearing reference-losses), which may not fit its evaluation data; set a '
            'floor and a ceiling; lower eta; choose update: dro, which stays near its first mixture.',
        ),
        ({'update': 'dro'}, 'set a floor and a ceiling; lower rho.'),
        ({'update': 'ado'}, 'set a floor and a ceiling; choose update: dro, which stays near its first mixture.'),
    ],
    ids=lambda value: value['update'] if isinstance(value, dict) else '',
)
def test_what_is_told_of_a_runaway_is_what_the_rule_goes_by(settings, advice, caplog):
    far = {'a': 0.95, 'b': 0.03, 'c': 0.02}
    DynamicBatchLoading(**settings)._warn_of_far_weights(far, far, {'a': 0.1, 'b': 0.2, 'c': 0.1})
    assert [message.split('times. ')[1] for message in caplog.messages] == [f'{RUNAWAY}{advice}']
