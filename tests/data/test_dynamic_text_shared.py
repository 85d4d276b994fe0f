"""Shared memory: a dead run's is removed, a living one's and a stranger's never is."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
import streaming.base.dataset

from llmshearing.data import shared_order
from tests.dynamic_text_run import evaluators
from tests.dynamic_text_world import FORK, LOADERS, close_loaders, dynamic_loader, write_domains


@pytest.fixture(autouse=True)
def _own_places(monkeypatch, tmp_path):
    """Markers of these tests only: other runs on this machine are left alone."""
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    monkeypatch.setattr(shared_order, 'MARKERS', tmp_path)
    yield
    close_loaders()


@pytest.fixture
def folder(tmp_path):
    return write_domains(tmp_path / 'data', {'a': 40, 'b': 20})


def hold(folder, workers, pipe):
    os.setsid()
    batches = iter(dynamic_loader(folder, ['a', 'b'], workers=workers, round_batches=10_000))
    next(batches)
    pipe.send(LOADERS[-1].dataset._shm_prefix_int)
    time.sleep(60)


def start_run(folder, workers=1):
    """A run in a process group of its own, and its number."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(folder, workers, there))
    process.start()
    return process, here.recv()


def kill(process):
    """Kills the run with its workers at once, as a lost node or a batch system would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


def removed(number):
    """Waits until a run that has been killed is found dead and removed."""
    deadline = time.monotonic() + 20
    while number not in shared_order.remove_dead_runs():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def blocks(number):
    return sorted(path.name for path in Path('/dev/shm').glob(f'{number:06}_*'))


def test_a_killed_run_is_removed_and_a_living_one_is_not(folder, tmp_path):
    dead, dead_number = start_run(folder)
    alive, alive_number = start_run(folder)
    try:
        kill(dead)
        assert f'{dead_number:06}_mixture' in blocks(dead_number)
        living = blocks(alive_number)
        removed(dead_number)
        assert blocks(dead_number) == []
        assert not list(tmp_path.glob(f'{dead_number:06}_*'))
        assert blocks(alive_number) == living and living
        assert alive.is_alive()
        # The next run on the same folders starts, and takes the number that is free again.
        assert dynamic_loader(folder, ['a', 'b']).dataset._shm_prefix_int <= dead_number
    finally:
        kill(alive)
        removed(alive_number)


def test_workers_that_outlive_the_trainer_keep_the_run_alive(folder):
    run, number = start_run(folder, workers=2)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    assert shared_order.remove_dead_runs() == []
    os.killpg(run.pid, signal.SIGKILL)
    removed(number)


def marker_of_a_dead_run(folders, number):
    marker = shared_order.RunMarker(folders)
    marker.set_number(number)
    fcntl.flock(marker._file, fcntl.LOCK_UN)
    return marker


def register(number, folders):
    text = '\0'.join([*folders, str(number)]).encode()
    memory = SharedMemory(f'{number:06}_locals', True, 4 + len(text))
    memory.buf[: 4 + len(text)] = (4 + len(text)).to_bytes(4, 'little') + text
    return memory


def test_a_number_that_somebody_else_has_taken_since_is_left_alone():
    marker_of_a_dead_run(['/one'], 900_001)
    memory = register(900_001, ['/two'])
    try:
        assert shared_order.remove_dead_runs() == []
        assert blocks(900_001)
    finally:
        memory.close()
        memory.unlink()


def test_a_run_killed_while_it_started_is_found_by_its_folders():
    other, own = register(900_002, ['/two']), register(900_003, ['/one'])
    try:
        marker_of_a_dead_run(['/one'], None)
        assert shared_order.remove_dead_runs() == []  # a process has it in its memory: this one
        own.close()
        other.close()
        marker_of_a_dead_run(['/one'], None)
        assert shared_order.remove_dead_runs() == [900_003]
        assert blocks(900_003) == [] and blocks(900_002)
    finally:
        other.unlink()


def die_while_starting(cache, remote):
    def die(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    streaming.base.dataset.SharedBarrier = die
    dynamic_loader(cache, ['a', 'b'], remote=str(remote))


def test_a_killed_start_does_not_block_remote_data(folder, tmp_path):
    """Streaming refuses folders that a block still registers: here a run is killed right after registering them."""
    cache = tmp_path / 'cache'
    run = FORK.Process(target=die_while_starting, args=(cache, folder))
    run.start()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    assert any(str(cache) in path.read_text(errors='replace') for path in Path('/dev/shm').glob('*_locals'))
    assert len(list(dynamic_loader(cache, ['a', 'b'], remote=str(folder)))) == 5


def test_an_unfinished_marker_is_no_obstacle(tmp_path):
    (tmp_path / f'llmshearing-{os.getuid()}-abc.run').touch()
    assert shared_order.remove_dead_runs() == []
    assert not list(tmp_path.glob('*.run'))


def test_runs_start_one_after_the_other(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shared_order, 'START_TIMEOUT', 0.2)
    with shared_order.starting(['/one']):
        began = time.monotonic()
        with shared_order.starting(['/two']):
            assert time.monotonic() - began > 0.15
    assert 'Another run has been starting' in caplog.text
    caplog.clear()
    with shared_order.starting(['/two']):
        assert not caplog.records


def take_numbers(folder, start, pipe):
    start.wait()
    numbers = [
        evaluator.dataloader.dataloader.dataset._shm_prefix_int for evaluator in evaluators(folder, domains='ab')
    ]
    pipe.send([*numbers, dynamic_loader(folder, ['a', 'b']).dataset._shm_prefix_int])
    pipe.recv()  # the others have theirs
    close_loaders()


def test_runs_that_start_at_once_take_numbers_of_their_own(folder):
    """Evaluators are llm-foundry's data sets; they take numbers beside those of training."""
    start, pipes, processes = FORK.Barrier(6), [FORK.Pipe() for _ in range(6)], []
    for _, there in pipes:
        processes.append(FORK.Process(target=take_numbers, args=(folder, start, there)))
        processes[-1].start()
    try:
        numbers = [number for here, _ in pipes if here.poll(60) for number in here.recv()]
        assert len(numbers) == len(set(numbers)) == 18
    finally:
        for (here, _), process in zip(pipes, processes):
            here.send('done')
            process.join()


def test_only_the_block_itself_counts_as_mapped():
    """A process in a container has another block in its memory that goes by the same path."""
    path = Path('/dev/shm') / f'llmshearing-test-{os.getpid()}'
    path.write_bytes(b'other')
    try:
        with path.open('r+b') as file, mmap.mmap(file.fileno(), 0):
            assert shared_order._is_mapped(path)
            path.unlink()
            path.write_bytes(b'block')
            assert not shared_order._is_mapped(path)
    finally:
        path.unlink(missing_ok=True)
