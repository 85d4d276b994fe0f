"""Runs that go wrong: what is not finite, told to stop, a full disk, a damaged checkpoint. Each ends with one message,
and goes on."""

import json
import os
import resource
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from composer.core import Callback
from composer.utils import dist

from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.callbacks.finite_monitor import FiniteMonitor
from llmshearing.callbacks.resume_settings import ResumeSettings
from llmshearing.callbacks.stop_on_sigterm import EXIT_CODE, StopOnSigterm
from llmshearing.checkpoints.validation import validate_checkpoint
from llmshearing.masks import state
from tests.dynamic_text_world import FORK, on_ranks
from tests.runs import stages
from tests.runs.stages import BATCHES, finish, lines, outcome, start, train

HOOK = {'CHECKPOINT_VALIDATION_FUNCTION': 'llmshearing.checkpoints.validation.validate_checkpoint'}


@pytest.fixture(scope='module')
def whole(work):
    return finish('prune', work, work / 'whole')


def attempt(rank, stage, work, place, settings):
    """Runs and writes how it ended: the message of an error, or the exit code."""
    os.environ.update(HOOK)
    try:
        train(stage, work, place, **settings)
        ended = 'finished'
    except (ValueError, FloatingPointError, RuntimeError, OSError) as error:
        ended = str(error)
    except SystemExit as leaving:
        ended = leaving.code
    (place / f'ended{rank}').write_text(json.dumps([ended, time.time()]))


def ended(place, rank=0):
    return json.loads((place / f'ended{rank}').read_text())[0]


def attempt_once(stage, work, place, **settings):
    place.mkdir(exist_ok=True)
    process = FORK.Process(target=attempt, args=(0, stage, work, place, settings))
    process.start()
    process.join(120)
    return ended(place)


class Poison(Callback):
    """Spoils the loss, a gradient or a mask of one batch on one rank."""

    def __init__(self, what, batch, rank=0):
        self.what, self.batch, self.rank = what, batch, rank

    def due(self, state):
        return state.timestamp.batch.value == self.batch and dist.get_global_rank() == self.rank

    def before_loss(self, state, logger):
        if self.what == 'loss' and self.due(state):
            state.outputs['loss'] = state.outputs['loss'] * float('nan')

    def after_train_batch(self, state, logger):
        if not self.due(state):
            return
        model = getattr(state.model, 'module', state.model)
        if self.what == 'gradient':
            model.model.model.layers[1].mlp.up_proj.weight.grad[3, 2] = float('inf')
        if self.what == 'mask':
            model.cutter.masks['kv_group'][0, 1] = float('nan')


@pytest.mark.parametrize(
    'what, message',
    [
        ('gradient', 'the gradient of model.model.layers.1.mlp.up_proj.weight. The weights were not updated'),
        ('mask', 'the kv_group mask'),
    ],
)
def test_what_is_not_finite_ends_the_run_on_its_batch(work, tmp_path, what, message):
    found = attempt_once('prune', work, tmp_path, callbacks=[Poison(what, 4), FiniteMonitor()])
    assert found.startswith('batch 4: not finite: ') and message in found
    assert f'the last checkpoint is {tmp_path}/save/ba4.pt' in found
    check_last_checkpoint(tmp_path, 4)


def test_a_loss_that_is_not_finite_on_one_rank_ends_all(work, tmp_path):
    settings = {'callbacks': [Poison('loss', 2, rank=1), FiniteMonitor()], 'save_interval': '2ba'}
    on_ranks(2, attempt, 'continue', work, tmp_path, settings)
    messages = [ended(tmp_path, rank) for rank in (0, 1)]
    assert messages[0].startswith('batch 2: not finite: the training loss (rank 1)') and messages[0] == messages[1]
    assert f'the last checkpoint is {tmp_path}/save/ba2.pt' in messages[0]
    check_last_checkpoint(tmp_path, 2)


def test_a_mask_gradient_that_is_not_finite_is_found_without_the_monitor(work, tmp_path):
    found = attempt_once('prune', work, tmp_path, callbacks=[Poison('loss', 5)], save_interval='5ba')
    assert found.startswith('batch 5: the gradient of the hidden, ')
    check_last_checkpoint(tmp_path, 5)


def check_last_checkpoint(place, batch):
    link = place / 'save' / 'latest-rank0.pt'
    assert os.readlink(link) == f'ba{batch}.pt' and validate_checkpoint(link)
    assert not (place / 'save' / f'ba{batch + 1}.pt').exists()
    weights = torch.load(link, weights_only=False)['state']['model']
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_told_to_stop_a_run_saves_what_it_has_and_goes_on_from_there(work, whole, tmp_path):
    process = start('prune', work, tmp_path, callbacks=[StopOnSigterm()], save_interval='100ba', autoresume=True)
    deadline = time.monotonic() + 60
    while lines(tmp_path / 'metrics.jsonl') < 12 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == EXIT_CODE
    (saved,) = (tmp_path / 'save').glob('ba*.pt')
    stopped = int(saved.stem[2:])
    assert 0 < stopped < BATCHES
    process = start('prune', work, tmp_path, callbacks=[StopOnSigterm()], autoresume=True)
    process.join(60)
    metrics, result = outcome(tmp_path)  # a batch that was computed twice would have to be the same; here none was
    assert {batch: values['loss/train/total'] for batch, values in metrics.items() if batch < BATCHES} == {
        batch: values['loss/train/total'] for batch, values in whole[0].items() if batch < BATCHES
    }
    assert all(torch.equal(result['weights'][name], value) for name, value in whole[1]['weights'].items())


class Signal(Callback):
    """Sends this process SIGTERM in one batch on one rank."""

    def __init__(self, batch, rank):
        self.batch, self.rank = batch, rank

    def after_loss(self, state, logger):
        if state.timestamp.batch.value == self.batch and dist.get_global_rank() == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


def test_one_rank_told_to_stop_takes_all_with_it(work, tmp_path):
    settings = {'callbacks': [Signal(3, rank=1), StopOnSigterm()], 'save_interval': '100ba'}
    on_ranks(2, attempt, 'continue', work, tmp_path, settings)
    assert [ended(tmp_path, rank) for rank in (0, 1)] == [EXIT_CODE, EXIT_CODE]
    check_last_checkpoint(tmp_path, 4)


@pytest.mark.parametrize('stage, duration', [('prune', '9ba'), ('continue', '3ep')])
def test_told_to_stop_in_its_last_batch_a_run_comes_to_its_end(work, tmp_path, stage, duration):
    """The last batch is the last of a round, too, as with the shipped YAMLs."""
    settings = {'callbacks': [Signal(8, rank=0), StopOnSigterm()], 'max_duration': duration, 'save_interval': '100ba'}
    assert attempt_once(stage, work, tmp_path, **settings) == 'finished'
    assert [path.name for path in (tmp_path / 'save').glob('ba*.pt')] == ['ba9.pt']
    assert stage == 'continue' or (tmp_path / 'exported' / 'config.json').is_file()


class NoEnd(ExportPruned):
    """Dies where the export would begin."""

    def fit_end(self, state, logger):
        os._exit(9)


@pytest.mark.parametrize('ranks', [1, 2])
def test_killed_before_its_export_a_run_makes_up_for_it(work, tmp_path, monkeypatch, ranks):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    for place in (whole, killed):
        place.mkdir()
    settings = {'batches': 9, 'autoresume': True}
    on_ranks(ranks, attempt, 'prune', work, whole, settings)
    with monkeypatch.context() as patched:
        patched.setattr(stages, 'ExportPruned', NoEnd)
        with pytest.raises(AssertionError):
            on_ranks(ranks, attempt, 'prune', work, killed, settings)
    assert os.readlink(killed / 'save' / 'latest-rank0.pt') == 'ba9.pt' and not (killed / 'exported').exists()
    resumed = {**settings, 'callbacks': [ResumeSettings({'save_folder': str(killed / 'save'), 'autoresume': True})]}
    on_ranks(ranks, attempt, 'prune', work, killed, resumed)
    assert [ended(killed, rank) for rank in range(ranks)] == [0] * ranks
    assert contents(killed / 'exported') == contents(whole / 'exported')


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_stop_on_sigterm_needs_checkpoints():
    with pytest.raises(ValueError, match='set save_folder, or remove it'):
        StopOnSigterm().fit_start(SimpleNamespace(callbacks=[]), None)


class FullDisk(Callback):
    """From one batch on no file may grow beyond a size that is smaller than a checkpoint."""

    def batch_end(self, state, logger):
        if state.timestamp.batch.value == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_full_disk_leaves_the_previous_checkpoint_and_the_run_goes_on_from_it(work, whole, tmp_path):
    attempt_once('prune', work, tmp_path, callbacks=[FullDisk()], autoresume=True)
    assert ended(tmp_path) != 'finished'
    assert os.readlink(tmp_path / 'save' / 'latest-rank0.pt') == 'ba4.pt'
    assert validate_checkpoint(tmp_path / 'save' / 'ba4.pt')
    if (tmp_path / 'save' / 'ba5.pt').exists():
        with pytest.raises(ValueError, match=r'ba5.pt is damaged.*ba4.pt is whole'):
            validate_checkpoint(tmp_path / 'save' / 'ba5.pt')
    assert attempt_once('prune', work, tmp_path, autoresume=True) == 'finished'
    result = outcome(tmp_path)[1]
    assert all(torch.equal(result['weights'][name], value) for name, value in whole[1]['weights'].items())


def test_a_damaged_checkpoint_is_refused_and_the_previous_offered(work, whole, tmp_path):
    place = tmp_path / 'damaged'
    place.mkdir()
    for batch in (3, 4):
        (place / f'ba{batch}.pt').write_bytes((work / 'whole' / 'save' / f'ba{batch}.pt').read_bytes())
    with (place / 'ba4.pt').open('r+b') as file:  # one bit in the weights
        middle = (place / 'ba4.pt').stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 16]))
    found = attempt_once('prune', work, tmp_path, load_path=str(place / 'ba4.pt'))
    assert f'Checkpoint {place}/ba4.pt is damaged: the checksum of ' in found
    assert f'{place}/ba3.pt is whole: resume with load_path={place}/ba3.pt' in found


def test_a_checkpoint_of_another_version_is_refused(work, whole, tmp_path, monkeypatch):
    version = state.STATE_VERSION
    monkeypatch.setattr(state, 'STATE_VERSION', 0)  # of the fork, too
    found = attempt_once('prune', work, tmp_path, load_path=str(work / 'whole' / 'save' / 'ba4.pt'))
    assert found.startswith('The checkpoint belongs to another pruning run')
    assert f'version: checkpoint {version}, this run 0' in found
