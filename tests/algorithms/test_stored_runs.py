"""Runs that distil from a stored teacher: as from a live one, stopped and resumed, on more ranks, while pruning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from composer.loggers import InMemoryLogger
from composer.utils import dist

from llmshearing.algorithms.distillation import Distillation
from llmshearing.algorithms.distillation.divergence import distillation_loss, teacher_target
from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.dynamic_text_world import on_ranks
from tests.teacher.world import SAMPLES, loader_of, make_world, samples_of, taught, teacher_logits
from tests.tiny_run import losses_by_name, stock, tiny_source, tiny_tokenizer, tiny_trainer

pytestmark = pytest.mark.usefixtures('closed_loaders')

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp('runs'))
    taught(folder, 'all', top_k=97, temperature=2.0)
    taught(folder, 'draws')
    return folder


def run(world, data, algorithms, model=None, batches=6, batch_size=4, fit=True, **settings):
    """Trains the student; returns the trainer and its losses by name."""
    log, teacher = InMemoryLogger(), any(getattr(one, 'stored', False) for one in algorithms)
    dataset = settings.pop('dataset', {'teacher': teacher})
    trainer = tiny_trainer(
        world / 'student',
        algorithms,
        model=model or stock(world / 'student'),
        train_dataloader=loader_of(world / data, batch_size=batch_size, **dataset),
        max_duration=f'{batches}ba',
        loggers=[log],
        seed=1,
        **settings,
    )
    if fit:
        trainer.fit()
        trainer.close()
    return trainer, losses_by_name(log)


def test_all_that_is_stored_is_the_live_teacher(world):
    """The same losses batch by batch, over two rounds: also the same positions, weight and factor."""
    settings = {'weight': 3.0, 'temperature': 2.0}
    _, live = run(world, 'data', [Distillation(str(world / 'teacher'), **settings)])
    _, stored = run(world, 'all', [Distillation(stored=True, **settings)])
    assert set(stored) == set(live) == {'language_model', 'distillation', 'total'}
    assert live['distillation'][0] > 0.01
    for name in live:
        assert stored[name] == pytest.approx(live[name], rel=1e-3), name


def test_a_student_approaches_a_teacher_of_which_it_sees_draws(world):
    tokens = np.stack([row['tokens'] for name in SAMPLES for row in samples_of(world / 'data/train' / name)])
    target = teacher_target(teacher_logits(world / 'teacher', tokens), 1.0, None, 97)

    def exact(trainer):
        with torch.no_grad():
            student = trainer.state.model.model(input_ids=torch.from_numpy(tokens.astype(np.int64))).logits
        return distillation_loss(student, target, torch.arange(tokens.size)).item()

    settings = {'batches': 30, 'learning_rate': 5e-3}
    before, _ = run(world, 'draws', [Distillation(stored=True)], fit=False)
    live, _ = run(world, 'data', [Distillation(str(world / 'teacher'), weight=20.0)], **settings)
    stored, _ = run(world, 'draws', [Distillation(stored=True, weight=20.0)], **settings)
    print(exact(before), exact(live), exact(stored))
    assert exact(live) < 0.6 * exact(before)
    assert exact(stored) == pytest.approx(exact(live), rel=0.1)


@pytest.mark.parametrize('size', [1, 2])
def test_microbatches_give_the_gradient_of_the_whole_batch(world, size):
    weights = []
    for microbatch in (size, 4):
        model = stock(world / 'student')
        trainer, _ = run(
            world,
            'draws',
            [Distillation(stored=True, weight=3.0)],
            model,
            batches=1,
            device_train_microbatch_size=microbatch,
            optimizers=torch.optim.SGD(model.parameters(), lr=1.0),
            schedulers=None,
        )
        weights.append([parameter.detach().clone() for parameter in trainer.state.model.parameters()])
    for mine, whole in zip(*weights):
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('pruning', [False, True])
def test_a_stopped_run_goes_on_bit_for_bit(world, tmp_path, pruning):
    """From the middle of a round, over the end of the first pass of a domain."""

    def one(folder, load=None, data='draws'):
        algorithms = [Distillation(stored=True)]
        model = None
        if pruning:
            algorithms.append(TargetedPruning(TARGET, warmup='3ba', mask_learning='progressive'))
            model = ShearedCausalLM(tiny_tokenizer(), str(world / 'student'))
        settings = {'save_filename': 'ba{batch}.pt', 'save_interval': '1ba', 'run_name': 'x', 'load_path': load}
        return run(world, data, algorithms, model, batches=8, save_folder=str(tmp_path / folder), **settings)

    whole, losses = one('whole')
    resumed, later = one('resumed', str(tmp_path / 'whole' / 'ba4.pt'))
    assert later['distillation'] == losses['distillation'][4:] and len(later['total']) == 4
    for mine, theirs in zip(resumed.state.model.parameters(), whole.state.model.parameters()):
        assert torch.equal(mine, theirs)


def test_two_ranks_compute_what_one_does(world, tmp_path):
    _, one = run(world, 'draws', [Distillation(stored=True)], batches=4, learning_rate=1e-2)
    on_ranks(2, train_rank, world, tmp_path)
    two = torch.load(tmp_path / 'losses.pt')
    for name, losses in one.items():
        assert two[name] == pytest.approx(losses, rel=1e-5)


def train_rank(rank, world, place):
    dist.initialize_dist('cpu')
    algorithms = [Distillation(stored=True)]
    _, losses = run(world, 'draws', algorithms, batches=4, batch_size=2, learning_rate=1e-2)
    if rank == 0:
        torch.save(losses, place / 'losses.pt')


def test_taught_data_train_without_distillation_too(world):
    _, plain = run(world, 'data', [], batches=3)
    _, other = run(world, 'draws', [], batches=3)
    assert plain == other


@pytest.mark.parametrize(
    'settings, message',
    [
        ({}, 'expected teacher, a model to run, or stored: true.*got neither'),
        ({'stored': True, 'teacher': 'here'}, 'got both'),
        ({'stored': True, 'top_k': 5}, 'top_k=5 is for a live teacher'),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**settings)


def test_what_the_run_does_not_fit_is_refused_before_the_first_step(world, tmp_path):
    def start(data='draws', student='student', dataset=None, **settings):
        algorithms = [Distillation(stored=True, **settings)]
        options = {} if dataset is None else {'dataset': dataset}
        trainer, _ = run(world, data, algorithms, stock(tmp_path / student), batches=1, fit=False, **options)
        trainer.fit()

    for name, size in (('student', 97), ('wider', 128)):
        tiny_source(tmp_path / name, vocab_size=size)
    with pytest.raises(ValueError, match='temperature=1.0 is not the 2.0 that teacher was stored at'):
        start('all')
    with pytest.raises(ValueError, match='stored teacher predicts 97 tokens, the student 128.*set shared_vocab_size'):
        start(student='wider')
    start(student='wider', shared_vocab_size=97)
    with pytest.raises(ValueError, match='predicts 97 tokens, the student 97, and shared_vocab_size is 90'):
        start(shared_vocab_size=90)
    with pytest.raises(ValueError, match='needs a training loader that serves a teacher.* dataset.teacher: true'):
        start(dataset={'teacher': False})
