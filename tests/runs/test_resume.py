"""Whole runs of both stages, stopped anywhere and resumed: bit for bit what the uninterrupted run computes, on one
rank."""

import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.runs.stages import BATCHES, finish, lines, outcome, start

STAGES = ('prune', 'continue')


@pytest.fixture(scope='module')
def whole(work):
    """The uninterrupted runs: metrics by batch and final weights and masks."""
    return {stage: finish(stage, work, work / f'whole-{stage}') for stage in STAGES}


def check_equal(work, place, stage, whole, first=0):
    """Everything from batch ``first`` on, and the exported folder, equal the uninterrupted run's."""
    (metrics, result), (whole_metrics, whole_result) = outcome(place), whole[stage]
    assert min(metrics) == first and max(metrics) == BATCHES
    for batch, values in metrics.items():
        # A resumed run says again what its first weights and micro-batches are; the last update was logged
        # before it stopped.
        for name, value in values.items():
            assert whole_metrics[batch].get(name) == value, (batch, name)
        if batch > first:
            assert values.keys() == whole_metrics[batch].keys(), batch
    for part in ('weights', 'masks'):
        assert result[part].keys() == whole_result[part].keys()
        for name, value in whole_result[part].items():
            assert torch.equal(result[part][name], value), name
    if stage == 'prune':
        mine, theirs = (
            load_file(folder / 'exported' / 'model.safetensors') for folder in (place, work / 'whole-prune')
        )
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_runs_have_what_a_resumption_could_lose(whole):
    metrics, result = whole['prune']
    assert len({metrics[batch]['digest/mask/hidden'] for batch in range(8)}) == 8  # new masks with every batch
    assert metrics[8]['digest/mask/hidden'] == metrics[9]['digest/mask/hidden']  # frozen
    assert metrics[7]['multipliers/hidden/lambda'] != 0 and set(result['masks']) == {
        'hidden',
        'layer',
        'kv_group',
        'intermediate',
    }
    for stage in STAGES:
        weights = [
            [whole[stage][0][batch][f'mixture/weight/{name}'] for name in ('python', 'licences')] for batch in (3, 6, 9)
        ]
        assert len(set(map(tuple, weights))) == 3
        assert (
            len({metrics['digest/batch'] for batch, metrics in whole[stage][0].items() if batch < BATCHES}) == BATCHES
        )


SLOW_STOPS = [(stage, stop, stop % 2) for stage in STAGES for stop in range(1, BATCHES)]


@pytest.mark.parametrize(
    'stage, stop, workers',
    [
        ('prune', 6, 0),  # right after an evaluation and the update of the weights of the mixture
        ('prune', 9, 1),  # the last batch before the finish, masks frozen; with another number of workers
        ('continue', 4, 0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_STOPS),
    ],
)
def test_resuming_by_load_path(work, whole, tmp_path, stage, stop, workers):
    finish(stage, work, tmp_path, load_path=str(work / f'whole-{stage}' / 'save' / f'ba{stop}.pt'), workers=workers)
    check_equal(work, tmp_path, stage, whole, stop)


def strike(process, chance, number):
    """SIGKILL to the run and its workers, or SIGTERM to the run, which ends by itself."""
    if number % 2:
        os.kill(process.pid, signal.SIGTERM)
        process.join(30)
        assert process.exitcode is not None
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.join(30)


def step_back_from_the_end(place):
    """Composer refuses a run killed after its last checkpoint, as there is nothing to train:
    do the last batch again."""
    link = place / 'save' / 'latest-rank0.pt'
    if os.path.islink(link) and os.readlink(link) == f'ba{BATCHES}.pt':
        link.unlink()
        link.symlink_to(f'ba{BATCHES - 1}.pt')


def kill_at_random(work, place, stage, strikes, seed):
    """Runs with autoresume until done, killing up to ``strikes`` times; returns how often it was struck in training."""
    chance, struck, written = random.Random(seed), 0, place / 'metrics.jsonl'
    for _ in range(3 * strikes):
        step_back_from_the_end(place)
        process = start(stage, work, place, autoresume=True)
        wanted, deadline = lines(written) + chance.randint(1, 25), time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if struck < strikes and lines(written) >= wanted:
                time.sleep(chance.uniform(0, 0.1))
                break
            time.sleep(0.005)
        if process.is_alive() and struck < strikes:
            strike(process, chance, struck)
            struck += 1
        process.join(60)
        if process.exitcode == 0:
            return struck
    raise AssertionError('the run was never finished')


@pytest.mark.parametrize(
    'stage, seed, strikes',
    [('prune', 2, 2), *(pytest.param(stage, seed, 8, marks=pytest.mark.slow) for stage in STAGES for seed in range(4))],
)
def test_killed_at_random_and_resumed_automatically(work, whole, tmp_path, stage, seed, strikes):
    assert kill_at_random(work, tmp_path, stage, strikes, seed) >= strikes // 2
    check_equal(work, tmp_path, stage, whole)


def _zero(tensors):
    for tensor in tensors:
        tensor.zero_()


LOST = {
    'optimizer of the weights': lambda saved: saved['state'].pop('optimizers'),
    'schedule': lambda saved: saved['state'].pop('schedulers'),
    'place in the data': lambda saved: saved['state'].pop('dataset_state'),
    'multipliers': lambda saved: _zero(
        dict(saved['state']['algorithms'])['TargetedPruning']['learner']['multipliers'].values()
    ),
    'moments of the masks': lambda saved: _zero(
        state['exp_avg']
        for state in dict(saved['state']['algorithms'])['TargetedPruning']['learner']['optimizer']['state'].values()
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('lost', LOST)
def test_the_comparison_sees_what_is_lost(work, whole, tmp_path, lost):
    """Without it the tests above could not fail."""
    finish(
        'prune', work, tmp_path, load_path=str(work / 'whole-prune' / 'save' / 'ba5.pt'), load_ignore_keys=LOST[lost]
    )
    with pytest.raises(AssertionError):
        check_equal(work, tmp_path, 'prune', whole, 5)
