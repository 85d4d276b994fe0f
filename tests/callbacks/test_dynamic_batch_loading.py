"""The callback in real training: what it logs and sets, resuming anywhere, two ranks, mistakes told at the start."""

from __future__ import annotations

import json
import logging
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from streaming.base.partition import get_partitions

from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading, dro, eval_clock, updates
from llmshearing.callbacks.dynamic_batch_loading.evaluators import prepare_evaluation
from llmshearing.data import mixture
from tests.dynamic_text_run import REFERENCES, SIZES, evaluators, metrics_of, read_down, tiny_trainer, weights_of
from tests.dynamic_text_world import SEQ_LEN, close_loaders, on_ranks, tiny_tokenizer, write_domains

STEPS = 9


@pytest.fixture(autouse=True)
def _close():
    yield
    close_loaders()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_domains(tmp_path_factory.mktemp('domains'), SIZES)


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
    """An uninterrupted run with a checkpoint after every batch and every round."""
    place = tmp_path_factory.mktemp('whole')
    trainer = tiny_trainer(
        folder,
        written=place / 'batches',
        save_folder=str(place / 'batch'),
        save_interval='1ba',
        save_filename='ba{batch}.pt',
        save_num_checkpoints_to_keep=-1,
    )
    trainer.fit()
    return {
        'batches': read_down(place / 'batches'),
        'metrics': metrics_of(trainer),
        'weights': weights_of(trainer),
        'checkpoints': place / 'batch',
    }


def column(metrics, what):
    return np.array([metrics[f'mixture/{what}/{name}'] for name in SIZES]).T


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


def check_resumed(whole, trainer, written, stop):
    trainer.fit()
    batches = read_down(written)
    assert list(batches) == list(range(stop, STEPS))
    assert all(batches[number] == whole['batches'][number] for number in batches)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(trainer), whole['weights'], strict=True))
    for name, values in metrics_of(trainer).items():
        if name != 'mixture/eval_share' and values:
            assert values == whole['metrics'][name][-len(values) :]


@pytest.mark.parametrize('stop', range(1, STEPS))
def test_resuming_after_any_batch_is_as_if_never_stopped(folder, whole, tmp_path, stop):
    """3 and 6 lie right after an update."""
    trainer = tiny_trainer(
        folder, workers=stop % 3, written=tmp_path / 'batches', load_path=str(whole['checkpoints'] / f'ba{stop}.pt')
    )
    check_resumed(whole, trainer, tmp_path / 'batches', stop)


@pytest.mark.parametrize('interval', ['3ba', '1ep'])
def test_resuming_after_the_close_of_a_round(folder, whole, tmp_path, interval):
    """Composer writes a second checkpoint at the end of a round; evaluation may come before or after the first."""
    first = tiny_trainer(
        folder,
        '7ba',
        eval_interval=interval,
        save_folder=str(tmp_path / 'save'),
        save_interval='1ep',
        save_filename='ep{epoch}-ba{batch}.pt',
        save_num_checkpoints_to_keep=-1,
    )
    first.fit()
    for rounds in (1, 2):
        written = tmp_path / f'batches{rounds}'
        trainer = tiny_trainer(
            folder,
            written=written,
            eval_interval=interval,
            load_path=str(tmp_path / 'save' / f'ep{rounds}-ba{3 * rounds}.pt'),
        )
        check_resumed(whole, trainer, written, 3 * rounds)


def test_an_update_that_comes_after_the_checkpoint_is_made_again(folder, whole, tmp_path):
    """With an interval in epochs the last batch of a round is saved before the update."""
    first = tiny_trainer(
        folder,
        '4ba',
        eval_interval='1ep',
        save_folder=str(tmp_path / 'save'),
        save_interval='1ba',
        save_filename='ba{batch}.pt',
        save_num_checkpoints_to_keep=-1,
    )
    first.fit()
    trainer = tiny_trainer(
        folder, written=tmp_path / 'batches', eval_interval='1ep', load_path=str(tmp_path / 'save' / 'ba3.pt')
    )
    check_resumed(whole, trainer, tmp_path / 'batches', 3)


@pytest.mark.parametrize('checkpoint', ['ba3.pt', 'ep1-ba3.pt'])
@pytest.mark.parametrize('interval', ['3ba', '1ep'])
def test_rounds_of_another_shape_from_the_end_of_one(folder, whole, tmp_path, checkpoint, interval):
    """From before and after the close of a round, and where the update comes before and after the checkpoint."""
    save = str(tmp_path / 'save')
    for filename, every in (('ba{batch}.pt', '1ba'), ('ep{epoch}-ba{batch}.pt', '1ep')):
        if filename.startswith(checkpoint[:2]):
            tiny_trainer(
                folder,
                '4ba',
                eval_interval=interval,
                save_folder=save,
                save_interval=every,
                save_filename=filename,
                save_num_checkpoints_to_keep=-1,
            ).fit()
    trainer = tiny_trainer(
        folder,
        '8ba',
        batch_size=8,
        written=tmp_path / 'batches',
        eval_interval='1ep',
        load_path=f'{save}/{checkpoint}',
        dataset={'round_batches': 2},
    )
    trainer.fit()
    weights = mixture.quantize(column(whole['metrics'], 'weight')[0])
    state = mixture.with_weights(mixture.round_counts(mixture.initial_state([0.5, 0.3, 0.2]), 3, 4)[1], weights)
    batches = read_down(tmp_path / 'batches')
    assert {number: len(batch) for number, batch in batches.items()} == dict.fromkeys(range(3, 8), 8)
    for number, counts in zip((3, 4), mixture.round_counts(state, 2, 8)[0], strict=True):
        assert np.bincount([domain for domain, _ in batches[number]], minlength=3).tolist() == counts.tolist()
    made_again = (checkpoint, interval) == ('ba3.pt', '1ep')
    assert metrics_of(trainer)['mixture/round'] == ([0, 1, 2] if made_again else [1, 2])


def test_rounds_that_end_between_evaluations_are_told_before_training(folder, whole, tmp_path):
    resumed = {'eval_interval': '2ba', 'dataset': {'round_batches': 2}}
    trainer = tiny_trainer(
        folder, written=tmp_path / 'batches', load_path=str(whole['checkpoints'] / 'ba3.pt'), **resumed
    )
    with pytest.raises(ValueError, match='end at batches 5, 7, .* evaluation every 2ba .* Set eval_interval to 1ep'):
        trainer.fit()
    assert not (tmp_path / 'batches').exists()
    trainer = tiny_trainer(folder, load_path=str(whole['checkpoints'] / 'ba6.pt'), **resumed)
    trainer.fit()
    assert metrics_of(trainer)['mixture/round'] == [2.0]


def test_an_update_that_would_not_be_made_again_is_told_before_training(folder, tmp_path):
    first = tiny_trainer(
        folder,
        '4ba',
        eval_interval='1ep',
        save_folder=str(tmp_path),
        save_interval='1ba',
        save_filename='ba{batch}.pt',
        save_num_checkpoints_to_keep=-1,
    )
    first.fit()
    with pytest.raises(ValueError, match='end of mixing round 0 before the evaluation .* Set eval_interval to 1ep'):
        tiny_trainer(folder, load_path=str(tmp_path / 'ba3.pt')).fit()


def test_training_on_in_the_same_process(folder, whole, tmp_path):
    trainer = tiny_trainer(folder, '4ba', written=tmp_path / 'batches')
    trainer.fit()
    trainer.fit(duration='5ba')
    assert read_down(tmp_path / 'batches') == whole['batches']
    resumed = tiny_trainer(folder, '7ba', written=tmp_path / 'more', load_path=str(whole['checkpoints'] / 'ba2.pt'))
    resumed.fit()
    resumed.fit(duration='2ba')
    assert read_down(tmp_path / 'more') == {n: whole['batches'][n] for n in range(2, STEPS)}


def train_rank(rank, folder, place, workers, load):
    from composer.utils import dist

    dist.initialize_dist('cpu')
    trainer = tiny_trainer(
        folder,
        workers=workers,
        batch_size=2,
        written=place / f'batches{rank}',
        dist_timeout=60,
        load_path=str(load) if load else None,
        save_folder=str(place / 'save'),
        save_interval='1ba',
        save_filename='ba{batch}.pt',
        save_num_checkpoints_to_keep=-1,
    )
    trainer.fit()
    (place / f'metrics{rank}').write_text(json.dumps(metrics_of(trainer)))


def test_two_ranks_train_on_the_same_sequence_and_agree(folder, whole, tmp_path):
    """One global batch is what one rank alone would see, and a run of one rank continues on two and back."""
    (tmp_path / 'fresh').mkdir()
    on_ranks(2, train_rank, folder, tmp_path / 'fresh', 1, None)
    (tmp_path / 'resumed').mkdir()
    on_ranks(2, train_rank, folder, tmp_path / 'resumed', 0, whole['checkpoints'] / 'ba3.pt')
    for name, start in (('fresh', 0), ('resumed', 3)):
        ranks = [read_down(tmp_path / name / f'batches{rank}') for rank in range(2)]
        metrics = [json.loads((tmp_path / name / f'metrics{rank}').read_text()) for rank in range(2)]
        assert metrics[0]['mixture/weight/a'] == metrics[1]['mixture/weight/a']
        # The first update sees the same losses up to rounding, so the same counts follow.
        for number in range(start, STEPS):
            assert ranks[0][number] + ranks[1][number] == whole['batches'][number]
    trainer = tiny_trainer(folder, written=tmp_path / 'batches', load_path=str(tmp_path / 'fresh' / 'save' / 'ba5.pt'))
    trainer.fit()
    assert read_down(tmp_path / 'batches') == {number: whole['batches'][number] for number in range(5, STEPS)}


def test_constant_weights_need_no_references_and_are_logged(folder):
    trainer = tiny_trainer(folder, '6ba', update=DynamicBatchLoading(update='constant'))
    trainer.fit()
    metrics = metrics_of(trainer)
    assert column(metrics, 'weight') == pytest.approx(np.array([[0.5, 0.3, 0.2]] * 2))
    assert 'mixture/gap/a' not in metrics


@pytest.mark.parametrize(
    'settings',
    [
        {'update': 'ado', 'average': True},
        {'reference_losses': REFERENCES, 'average': True},
        {'update': 'dro'},  # predicts its references from the fourth round on
    ],
)
def test_rules_with_a_memory_resume_exactly(folder, tmp_path, settings):
    options = settings

    def run(name, duration, **settings):
        rule = DynamicBatchLoading(**options, floor=0.05)
        trainer = tiny_trainer(folder, duration, update=rule, written=tmp_path / name, **settings)
        trainer.fit()
        return column(metrics_of(trainer), 'weight').tolist()

    saving = {
        'save_folder': str(tmp_path / 'save'),
        'save_interval': '1ba',
        'save_filename': 'ba{batch}.pt',
        'save_num_checkpoints_to_keep': -1,
    }
    weights = run('whole', '18ba', **saving)
    assert len({tuple(w) for w in weights}) > 1
    for stop in (13, 15):
        assert run(f'from{stop}', '18ba', load_path=str(tmp_path / 'save' / f'ba{stop}.pt')) == weights[stop // 3 :]


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


def test_references_come_from_a_file(tmp_path):
    path = tmp_path / 'references.json'
    path.write_text(json.dumps({'reference_losses': REFERENCES, 'model': 'x'}))
    assert DynamicBatchLoading(str(path)).reference_losses == REFERENCES
    for content, words in (('[1]', 'expected a JSON object, got a list'), ('{}', 'no mapping "reference_losses"')):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            DynamicBatchLoading(str(path))
    for content in (b'{"reference_losses": {', b'', b'\xff\xfe'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'^reference_losses: .*references.json is not JSON \(.+\). Give a file'):
            DynamicBatchLoading(str(path))
    for loss in ('"x"', 'null', 'true', 'Infinity'):
        path.write_text(f'{{"reference_losses": {{"a": {loss}, "b": 1.0}}}}')
        with pytest.raises(ValueError, match=r"must be numbers of at least 0, but .*references.json gives \{'a': "):
            DynamicBatchLoading(str(path))
    with pytest.raises(FileNotFoundError, match='reference_losses: .*nothing.json; let `llmshearing reference-losses`'):
        DynamicBatchLoading(str(tmp_path / 'nothing.json'))
    with pytest.raises(ValueError, match=r"must be numbers of at least 0, but reference_losses gives \{'a': nan\}"):
        DynamicBatchLoading({'a': float('nan')})


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'update': 'shear'}, "update: expected one of .*sheared,.* got 'shear'"),
        ({'smoothing': 1.5}, 'smoothing: expected a number of at least 0 and at most 1, got 1.5'),
        ({'floor': -0.1}, 'floor: expected a number of at least 0 and at most 1'),
        ({'eta': -1}, 'eta: expected a number of at least 0, got -1'),
        ({'eta': float('nan')}, 'eta: expected a number of at least 0, got nan'),
        ({'rho': float('inf')}, 'rho: expected a number of at least 0, got inf'),
        ({'max_eval_sequences': 0}, 'max_eval_sequences: expected a whole number of at least 1'),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        DynamicBatchLoading(REFERENCES, **options)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        ({'eval_interval': '2ba'}, 'runs every 2ba, but a mixing round has 3 batches.*3ba'),
        ({'eval_interval': '6ba'}, 'runs every 6ba'),
        ({'eval_interval': '2ep'}, 'runs every 2ep'),
        ({'update': DynamicBatchLoading({'a': 1.0})}, r"no reference loss for domains \['b', 'c'\], only for \['a'\]"),
        ({'update': DynamicBatchLoading({'a': 1.0}, update='dro')}, r"no reference loss for domains \['b', 'c'\]"),
        ({'update': DynamicBatchLoading(update='dro'), 'duration': '1iter'}, 'does not say how many samples that is'),
        ({'update': DynamicBatchLoading(REFERENCES, metric='Accuracy')}, "has no metric 'Accuracy', only"),
        ({'update': DynamicBatchLoading(REFERENCES, floor=0.4)}, 'Lower the floor'),
        ({'train_subset_num_batches': 2}, 'A mixing round has 3 batches, but an epoch is to have 2'),
        ({'eval_interval': lambda state, event: False}, 'round 0 ended without an evaluation.*3ba'),
    ],
)
def test_what_does_not_fit_together_is_told(folder, settings, match):
    with pytest.raises(ValueError, match=match):
        tiny_trainer(folder, **settings).fit()


def test_a_domain_without_evaluator_is_told(folder):
    with pytest.raises(ValueError, match=r"Domain 'b' has no evaluator; there are \['eval/a', 'eval/c'\]"):
        tiny_trainer(folder, eval_dataloader=evaluators(folder, domains=['a', 'c'])).fit()


def test_an_evaluator_that_misses_the_end_of_a_round_is_told(folder):
    evals = evaluators(folder)
    evals[1].eval_interval = lambda state, event: False
    with pytest.raises(ValueError, match=r"Evaluators \['eval/b'\] did not run at the end of mixing round 0"):
        tiny_trainer(folder, eval_dataloader=evals).fit()


def test_an_empty_evaluation_is_told(folder):
    """A domain whose every token is masked has a loss of 0 / 0."""
    trainer = tiny_trainer(folder)
    metric = trainer.state.eval_metrics['eval/b']['LanguageCrossEntropy']
    metric.update = lambda output, target: None
    with pytest.raises(ValueError, match=r"evaluation loss of \{'b': nan\} is not a finite number"):
        trainer.fit()


def test_other_training_data_is_told(folder):
    trainer = tiny_trainer(folder)
    with pytest.raises(ValueError, match='needs a train_loader with name: dynamic_text, but the training data is list'):
        trainer.fit(train_dataloader=torch.utils.data.DataLoader([1, 2, 3]))


def test_the_evaluation_is_capped(folder):
    update = DynamicBatchLoading(REFERENCES, max_eval_sequences=9)
    trainer = tiny_trainer(folder, '3ba', update=update)
    trainer.fit()
    assert [evaluator.subset_num_batches for evaluator in trainer.state.evaluators] == [3, 3, 3]
    trainer = tiny_trainer(folder, '3ba', update=DynamicBatchLoading(REFERENCES, max_eval_sequences=None))
    trainer.fit()
    assert [evaluator.subset_num_batches for evaluator in trainer.state.evaluators] == [-1, -1, -1]


def test_an_evaluation_before_the_first_step_is_of_the_same_sequences(folder):
    trainer = tiny_trainer(folder, '3ba', update=DynamicBatchLoading(REFERENCES, max_eval_sequences=9))
    trainer.eval()
    assert [evaluator.subset_num_batches for evaluator in trainer.state.evaluators] == [3, 3, 3]


def test_the_evaluation_counts_tokens_that_equal_padding_as_training_does(folder):
    trainer = tiny_trainer(folder)
    padding = tiny_tokenizer().pad_token_id
    for evaluator in trainer.state.evaluators:
        loader = evaluator.dataloader.dataloader
        prepare_evaluation(trainer.state, list(SIZES), None)  # again changes nothing
        batch = next(iter(loader))
        assert (batch['input_ids'] == padding).any() and torch.equal(batch['labels'], batch['input_ids'])
        assert batch['loss_generating_tokens'] == [SEQ_LEN - 1] * len(batch['labels'])


def test_a_remote_weights_file_is_refused():
    with pytest.raises(ValueError, match='weights_file: expected a file on this machine'):
        DynamicBatchLoading(REFERENCES, weights_file='s3://bucket/mixture.json')


@pytest.mark.parametrize('stop', [4, 6])
def test_a_run_goes_on_with_other_domains(folder, whole, tmp_path, caplog, stop):
    """In the middle of a round, and at the end of one; ``b`` goes, and the averages with it."""
    settings = dict(save_folder=str(tmp_path / 'save'), save_interval='1ba', save_filename='ba{batch}.pt')
    tiny_trainer(folder, f'{stop}ba', update=DynamicBatchLoading(REFERENCES, average=True), **settings).fit()
    shutil.copytree(folder, tmp_path / 'two')
    shutil.rmtree(tmp_path / 'two' / 'b')

    def resumed(**dataset):
        return tiny_trainer(
            tmp_path / 'two',
            domains=['c', 'a'],
            update=DynamicBatchLoading(REFERENCES, average=True),
            load_path=str(tmp_path / 'save' / f'ba{stop}.pt'),
            dataset={'proportions': {'a': 1, 'c': 1}, **dataset},
            written=tmp_path / 'batches',
        )

    with pytest.raises(ValueError, match='restart_on_new_data: true'):
        resumed()
    trainer = resumed(restart_on_new_data=True)
    trainer.fit()
    assert 'domains' in caplog.text and 'starts afresh' in caplog.text
    assert list(read_down(tmp_path / 'batches')) == list(range(stop, STEPS))
    metrics = metrics_of(trainer)
    assert metrics['mixture/round'] == [1, 2][stop // 6 :] and 'mixture/weight/b' not in metrics
    gaps = {name: metrics[f'mixture/loss/{name}'][0] - REFERENCES[name] for name in ('a', 'c')}
    wanted = {name: np.exp(max(gap, 0)) for name, gap in gaps.items()}  # one update from equal weights
    assert metrics['mixture/weight/a'][0] == pytest.approx(wanted['a'] / sum(wanted.values()), abs=1e-3)


def test_curves_over_samples_begin_anew_with_new_data(folder, tmp_path):
    """Under the same names; samples are counted from 0 again."""
    settings = dict(save_folder=str(tmp_path / 'save'), save_interval='1ba', save_filename='ba{batch}.pt')
    tiny_trainer(folder, '6ba', update=DynamicBatchLoading(update='dro'), **settings).fit()
    other = write_domains(tmp_path / 'other', {name: size + 7 for name, size in SIZES.items()})
    rule = DynamicBatchLoading(update='dro')
    trainer = tiny_trainer(
        other, update=rule, load_path=str(tmp_path / 'save' / 'ba6.pt'), dataset={'restart_on_new_data': True}
    )
    base, point = len(SIZES), 2 + len(SIZES)  # numbers of each in what dro remembers; a point's second is log samples

    def samples() -> list[int]:
        points = rule._memory[base:]
        return [round(math.exp(points[start + 1])) for start in range(0, len(points), point)]

    before = samples()
    trainer.fit()
    assert before and samples() == sorted(samples())
    assert len(samples()) <= (STEPS - 6) // 3 + 1, 'the points of the old data are gone'


@pytest.mark.parametrize(('nodes', 'ranks', 'workers'), [(1, 1, 2), (1, 8, 3), (2, 8, 2), (4, 8, 1)])
def test_the_capped_evaluation_is_of_the_first_sequences(folder, monkeypatch, nodes, ranks, workers):
    """As Streaming deals 300 sequences to the ranks; 50 are asked for, in batches of 2 on each rank."""
    evals = evaluators(folder, 2)
    state = SimpleNamespace(evaluators=evals)
    monkeypatch.setattr('composer.utils.dist.get_world_size', lambda: nodes * ranks)
    prepare_evaluation(state, ['a'], 50)
    limits = [evaluator.subset_num_batches for evaluator in evals]
    canonical = [evaluator.dataloader.dataloader.dataset.num_canonical_nodes for evaluator in evals]
    assert limits[1:] == [None, None] and canonical == [1, None, None]
    dealt = get_partitions('relaxed', 300, canonical[0], nodes, ranks, workers, 2)
    batches = dealt.transpose(3, 2, 0, 1, 4).reshape(-1, nodes * ranks * 2)  # in the order they are served
    served = -(-50 // (nodes * ranks * 2)) * nodes * ranks * 2
    assert sorted(batches[: limits[0]].ravel().tolist()) == list(range(served))


def evaluate_rank(rank, folder):
    torch.distributed.init_process_group('gloo')
    state = SimpleNamespace(evaluators=evaluators(folder, 2))
    prepare_evaluation(state, ['a'], None)
    data = state.evaluators[1].dataloader.dataloader.dataset  # two nodes share no memory: this is what they would read
    data.shards = data.shards[: len(data.shards) - rank]
    with pytest.raises(
        ValueError, match=r'^shards of the evaluator \S*b \(their hash\): \w+ on rank 1 .* every node needs'
    ):
        prepare_evaluation(state, ['a'], None)
    torch.distributed.destroy_process_group()


def test_nodes_with_other_evaluation_data_are_refused(folder):
    on_ranks(2, evaluate_rank, folder)


def test_the_time_in_evaluation_is_measured_and_warned_of_once(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(eval_clock.time, 'monotonic', lambda: now[0])
    clock, shares = eval_clock.EvalClock(0.25), []
    for training, evaluation in ((9, 1), (6, 4), (5, 5)):
        now[0] += training
        clock.start_evaluation()
        now[0] += evaluation
        clock.end_evaluation()
        shares.append(clock.end_round())
    assert shares == pytest.approx([0.1, 0.4, 0.5])
    assert [record.getMessage()[:20] for record in caplog.records] == ['Evaluation took 40 %']


def test_states_of_other_versions_and_rules(caplog):
    saved = DynamicBatchLoading(REFERENCES, update='ado').state_dict()
    with pytest.raises(ValueError, match='state of version 3'):
        DynamicBatchLoading(REFERENCES).load_state_dict(saved | {'version': 3})
    DynamicBatchLoading(REFERENCES).load_state_dict(saved | {'memory': [1.0]})
    assert 'taken with update=ado' in caplog.text


def test_an_evaluator_that_reads_the_data_of_another_domain_is_refused(folder, tmp_path):
    wrong = [*evaluators(folder, domains=['a', 'b']), *evaluators(folder, domains=['b'])]
    wrong[2].label = 'eval/c'
    with pytest.raises(ValueError, match="evaluator of domain 'c' reads .*/b, which is named like domain 'b'.*"):
        tiny_trainer(folder, eval_dataloader=wrong).fit()

    shutil.copytree(folder / 'a', tmp_path / 'all')  # a name that says nothing
    wrong = [*evaluators(tmp_path, domains=['all', 'all']), *evaluators(folder, domains=['c'])]
    wrong[0].label, wrong[1].label = 'eval/a', 'eval/b'
    with pytest.raises(ValueError, match="evaluators of the domains 'a' and 'b' both read .*/all; give each its own"):
        tiny_trainer(folder, eval_dataloader=wrong).fit()


def test_an_evaluator_that_reads_what_is_trained_on_is_warned_of(folder, tmp_path, caplog):
    for name in ('a', 'b'):
        shutil.copytree(folder / name, tmp_path / name)
    held_out = [*evaluators(tmp_path, domains=['a', 'b']), *evaluators(folder, domains=['c'])]
    tiny_trainer(folder, '3ba', eval_dataloader=held_out).fit()
    told = [record.getMessage() for record in caplog.records if 'which the run trains on' in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("The evaluator of domain 'c' reads ")


@pytest.mark.parametrize(
    ('options', 'vain'),
    [
        ({'update': 'dro', 'eta': 3.0, 'smoothing': 0.1}, 'eta, smoothing'),
        ({'update': 'constant', 'rho': 2.0, 'average': True}, 'rho, average'),
        ({'update': 'ado', 'eta': 3.0, 'smoothing': 0.1}, 'eta'),
        ({'update': 'sheared', 'rho': 0.5, 'eta': 2.0}, 'rho'),
    ],
)
def test_an_option_that_the_rule_does_not_go_by_is_told(caplog, options, vain):
    DynamicBatchLoading(**options)
    text = f'update: {options["update"]} does not go by {vain}; remove it, or choose another update.'
    assert [record.getMessage() for record in caplog.records] == [text]


@pytest.mark.parametrize('share', [0, -1, 7, 'much'])
def test_a_share_of_time_is_a_share(share):
    with pytest.raises(ValueError, match='max_eval_share: expected a number above 0 and at most 1, got'):
        DynamicBatchLoading(max_eval_share=share)


def test_a_rule_of_a_third_party_is_named_like_ours_and_a_bare_function_is_refused(monkeypatch, caplog):
    import catalogue

    monkeypatch.setattr(catalogue, 'REGISTRY', dict(catalogue.REGISTRY))
    updates.update_rules('linear', func=updates.UpdateRule(updates.constant, reads=('rho',), keeps_domains_alive=True))
    DynamicBatchLoading(update='linear', rho=0.5, eta=2.0)
    assert [record.getMessage()[:36] for record in caplog.records] == ['update: linear does not go by eta; r']
    updates.update_rules('bare', func=updates.constant)
    with pytest.raises(ValueError, match='bare is registered as a function, expected an UpdateRule; register'):
        DynamicBatchLoading(update='bare')
