"""A run with a changing mixture goes on from any checkpoint as if never stopped: other ranks, rounds, data."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading
from llmshearing.data import mixture
from tests.callbacks.mixture_runs import column, folder, whole  # noqa: F401
from tests.dynamic_text_run import REFERENCES, SIZES, metrics_of, read_down, tiny_trainer, weights_of
from tests.dynamic_text_world import on_ranks, write_domains

pytestmark = pytest.mark.usefixtures('closed_loaders')

STEPS = 9


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


def test_states_of_other_versions_and_rules(caplog):
    saved = DynamicBatchLoading(REFERENCES, update='ado').state_dict()
    with pytest.raises(ValueError, match='state of version 3'):
        DynamicBatchLoading(REFERENCES).load_state_dict(saved | {'version': 3})
    DynamicBatchLoading(REFERENCES).load_state_dict(saved | {'memory': [1.0]})
    assert 'taken with update=ado' in caplog.text
