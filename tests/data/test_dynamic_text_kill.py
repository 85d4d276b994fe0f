"""Training that is killed again and again, and goes on each time: nothing is lost, nothing is repeated."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from llmshearing.data import shared_order
from tests.dynamic_text_run import SIZES, metrics_of, read_down, tiny_trainer, weights_of
from tests.dynamic_text_world import FORK, write_domains

pytestmark = pytest.mark.usefixtures('closed_loaders')

STEPS = 21
VICTIMS = ('everything', 'main', 'worker')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_domains(tmp_path_factory.mktemp('domains'), SIZES)


def train(folder, place, workers):
    """Trains to the end, from the latest checkpoint if there is one; then writes down the result."""
    os.setsid()
    trainer = tiny_trainer(
        folder,
        f'{STEPS}ba',
        workers=workers,
        written=place / 'batches',
        run_name='run',
        autoresume=True,
        save_folder=str(place / 'save'),
        save_interval='1ba',
        save_num_checkpoints_to_keep=2,
        save_overwrite=True,
    )
    trainer.fit()
    torch.save([weights_of(trainer), metrics_of(trainer)['mixture/weight/a'][-1]], place / 'result')


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp('whole')
    process = FORK.Process(target=train, args=(folder, place, 0))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return read_down(place / 'batches'), torch.load(place / 'result', weights_only=True)


def children(pid):
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rsplit(')', 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def strike(process, victim, chance):
    """Kills all of a run, its main process, or one of its workers."""
    workers = children(process.pid)
    if victim == 'worker' and workers:
        os.kill(chance.choice(workers), signal.SIGKILL)
        process.join(60)
        assert process.exitcode is not None  # the trainer notices and stops, or needs the worker no more
    elif victim == 'main':
        os.kill(process.pid, signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.join(60)


def test_a_run_killed_at_random_continues_exactly(folder, whole, tmp_path):
    chance, strikes, written = random.Random(1), 0, tmp_path / 'batches'
    for _ in range(20):
        process = FORK.Process(target=train, args=(folder, tmp_path, 1))
        process.start()
        # Strike anywhere from the start of the process to some batches on.
        wanted, deadline = lines(written) + chance.randint(0, 6), time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if strikes < 6 and lines(written) >= wanted:
                time.sleep(chance.uniform(0, 0.1))
                break
            time.sleep(0.005)
        if process.is_alive():
            strike(process, VICTIMS[strikes % 3], chance)
            strikes += 1
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert strikes >= 3
    batches, (parameters, weight) = whole
    assert read_down(written) == batches
    result = torch.load(tmp_path / 'result', weights_only=True)
    assert result[1] == weight
    assert all(torch.equal(a, b) for a, b in zip(result[0], parameters, strict=True))
    shared_order.remove_dead_runs()
