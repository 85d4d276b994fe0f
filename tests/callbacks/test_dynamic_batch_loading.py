"""What the callback logs and sets in real training, by each rule."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading, dro
from llmshearing.data import mixture
from tests.callbacks.mixture_runs import column, folder, whole  # noqa: F401
from tests.dynamic_text_run import REFERENCES, SIZES, metrics_of, tiny_trainer

pytestmark = pytest.mark.usefixtures('closed_loaders')


def test_each_update_is_the_rule_s_and_is_logged(whole):
    weights, losses = np.array([0.5, 0.3, 0.2]), column(whole['metrics'], 'loss')
    references = np.array(list(REFERENCES.values()))
    assert len(losses) == 3
    used = np.zeros(3)
    for number in range(3):
        batches = [whole['batches'][3 * number + i] for i in range(3)]
        used += np.bincount([domain for batch in batches for domain, _ in batch], minlength=3)
        assert column(whole['metrics'], 'share')[number] == pytest.approx(used / used.sum())
        assert column(whole['metrics'], 'passes')[number] == pytest.approx(used / [50, 30, 20])
        assert column(whole['metrics'], 'gap')[number] == pytest.approx(losses[number] - references)
        weights = weights * np.exp(np.maximum(losses[number] - references, 0))
        weights = (1 - 1e-4) * weights / weights.sum() + 1e-4 / 3
        assert column(whole['metrics'], 'weight')[number] == pytest.approx(weights, abs=1e-9)
    assert whole['metrics']['mixture/round'] == [0, 1, 2]
    assert all(0 < share < 1 for share in whole['metrics']['mixture/eval_share'])


def test_the_next_round_is_served_by_the_new_weights(whole):
    state = mixture.initial_state([0.5, 0.3, 0.2])
    for number, weights in enumerate(column(whole['metrics'], 'weight')):
        counts, state = mixture.round_counts(state, 3, 4)
        for row, batch in zip(counts, range(3 * number, 3 * number + 3), strict=True):
            assert np.bincount([domain for domain, _ in whole['batches'][batch]], minlength=3).tolist() == row.tolist()
        state = mixture.with_weights(state, mixture.quantize(weights))


def test_constant_weights_need_no_references_and_are_logged(folder):
    trainer = tiny_trainer(folder, '6ba', update=DynamicBatchLoading(update='constant'))
    trainer.fit()
    metrics = metrics_of(trainer)
    assert column(metrics, 'weight') == pytest.approx(np.array([[0.5, 0.3, 0.2]] * 2))
    assert 'mixture/gap/a' not in metrics


def test_dro_with_references_follows_the_losses_of_the_round(folder):
    rule = DynamicBatchLoading({'a': 0.1, 'b': 0.4, 'c': 0.2}, update='dro', rho=0.1)
    trainer = tiny_trainer(folder, '3ba', update=rule)
    trainer.fit()
    gaps = column(metrics_of(trainer), 'gap')[0]
    assert column(metrics_of(trainer), 'weight')[0] == pytest.approx(
        dro.worst_mixture(gaps, np.array([0.5, 0.3, 0.2]), 0.1), abs=1e-9
    )


def test_a_weight_that_runs_away_is_named_once(folder, caplog):
    update = DynamicBatchLoading({'a': 9, 'b': 0, 'c': 9}, eta=10)
    trainer = tiny_trainer(folder, '12ba', update=update, dataset={'proportions': {'a': 8, 'b': 1, 'c': 1}})
    with caplog.at_level(logging.WARNING, logger='llmshearing'):
        trainer.fit()
    told = [message for message in caplog.messages if 'The weight of domain' in message]
    assert [message.split(' has gone')[0] for message in told] == [f'The weight of domain {name}' for name in 'abc']
    assert 'from 0.1 to 0.99' in told[1]


@pytest.mark.parametrize(
    'settings', [{}, {'average': True, 'floor': 0.05}, {'ceiling': 0.6}, {'update': 'ado'}], ids=str
)
@pytest.mark.parametrize('max_passes', [None, 3])
def test_a_domain_that_begins_at_0_stays_there(folder, settings, max_passes, caplog):
    """Its loss is far above its reference, and nothing of it is drawn."""
    update = DynamicBatchLoading({'a': 9, 'b': 9, 'c': 0}, eta=10, **settings)
    dataset = {'proportions': {'a': 1, 'b': 1, 'c': 0}, 'max_passes': max_passes}
    trainer = tiny_trainer(folder, '24ba', update=update, dataset=dataset)
    trainer.fit()
    metrics = metrics_of(trainer)
    assert set(metrics['mixture/weight/c']) == {0} and 'The weight of domain c' not in caplog.text
    assert trainer.state.train_dataloader.dataset.rounds.used()['c'] == 0


def test_ceilings_that_domains_in_use_cannot_fill_are_refused(folder):
    dataset = {'proportions': {'a': 1, 'b': 1, 'c': 0}}
    with pytest.raises(ValueError, match='No weights of 2 domains sum to 1 between floor 0.0 and ceiling 0.4'):
        tiny_trainer(folder, update=DynamicBatchLoading(REFERENCES, ceiling=0.4), dataset=dataset).fit()


def test_a_weight_that_leaves_0_is_told(caplog):
    weights = {'a': 0.7, 'b': 0.0, 'c': 0.3}
    DynamicBatchLoading(REFERENCES)._warn_of_far_weights(weights, weights, {'a': 1.0, 'b': 0.0, 'c': 0.0})
    assert 'The weight of domain c has gone from 0 to 0.3' in caplog.text and 'domain b' not in caplog.text


def test_the_mean_of_the_weights_can_be_served(folder):
    metrics = {}
    for average in (False, True):
        trainer = tiny_trainer(folder, '6ba', update=DynamicBatchLoading(REFERENCES, average=average))
        trainer.fit()
        metrics[average] = column(metrics_of(trainer), 'weight')
    assert metrics[True][0] == pytest.approx(metrics[False][0])
    losses = column(metrics_of(trainer), 'loss')[1]
    rule = metrics[True][0] * np.exp(np.maximum(losses - np.array(list(REFERENCES.values())), 0))
    rule = (1 - 1e-4) * rule / rule.sum() + 1e-4 / 3
    assert metrics[True][1] == pytest.approx((metrics[True][0] + rule) / 2, abs=1e-9)


def test_a_limit_on_passes_is_kept(folder, caplog):
    """Domain c would take nearly everything; twice its 20 samples is what it may give."""
    update = DynamicBatchLoading({'a': 9, 'b': 9, 'c': 0})
    trainer = tiny_trainer(folder, '24ba', update=update, dataset={'max_passes': 2})
    with caplog.at_level(logging.WARNING, logger='llmshearing'):
        trainer.fit()
    metrics = metrics_of(trainer)
    assert max(metrics['mixture/passes/c']) == 2
    assert sum(trainer.state.train_dataloader.dataset.rounds.used().values()) == 24 * 4


@pytest.mark.parametrize('ceiling', [0.5, 0.7, 1])
def test_a_ceiling_gives_way_to_a_limit_on_passes(folder, ceiling):
    """96 of 100 samples: late in the run hardly anything but a is left, and after it less than a round."""
    update = DynamicBatchLoading(REFERENCES, ceiling=ceiling)
    trainer = tiny_trainer(folder, '24ba', update=update, dataset={'max_passes': 1})
    trainer.fit()
    metrics = metrics_of(trainer)
    assert len(metrics['mixture/round']) == 8
    assert all(max(metrics[f'mixture/passes/{name}']) <= 1 for name in SIZES)
    assert max(metrics['mixture/weight/a'][:5]) <= ceiling


def test_a_first_round_beyond_the_limit_is_refused(folder):
    with pytest.raises(ValueError, match=r"44 samples .* \{'c': 2.2\} passes .* max_passes is 2"):
        tiny_trainer(
            folder,
            '24ba',
            eval_interval='11ba',
            dataset={'max_passes': 2, 'round_batches': 11, 'proportions': {'a': 0, 'b': 0, 'c': 1}},
        ).fit()


def test_a_plan_that_cannot_keep_the_limit_is_refused(folder):
    with pytest.raises(ValueError, match='240 samples .* max_passes is 2'):
        tiny_trainer(folder, '60ba', dataset={'max_passes': 2}).fit()
    with pytest.raises(ValueError, match=r"'c': .* passes .* max_passes is 1"):
        tiny_trainer(
            folder,
            '24ba',
            update=DynamicBatchLoading(update='constant'),
            dataset={'max_passes': 1, 'proportions': {'a': 0, 'b': 1, 'c': 4}},
        ).fit()


def test_many_passes_are_told(folder, caplog):
    with caplog.at_level(logging.WARNING, logger='llmshearing'):
        trainer = tiny_trainer(folder, '1ba', dataset={'proportions': {'a': 0, 'b': 0, 'c': 1}})
        trainer.fit(duration='30ba')
    assert "go through these domains so many times: {'c': 6.0}" in caplog.text


def test_weights_are_written_and_read_as_proportions(folder, tmp_path):
    path = tmp_path / 'out' / 'mixture.json'
    trainer = tiny_trainer(folder, '3ba', update=DynamicBatchLoading(REFERENCES, weights_file=str(path)))
    trainer.fit()
    content = json.loads(path.read_text())
    assert content['proportions'] == {name: metrics_of(trainer)[f'mixture/weight/{name}'][0] for name in SIZES}
    assert content['samples'] == {'a': 6, 'b': 4, 'c': 2}
    other = tiny_trainer(folder, dataset={'proportions': str(path)})
    assert other.state.train_dataloader.dataset.rounds.weights == pytest.approx(content['proportions'], abs=1e-11)
    path.write_text('{"weights": {}}')
    with pytest.raises(ValueError, match='no mapping "proportions"'):
        tiny_trainer(folder, dataset={'proportions': str(path)})
