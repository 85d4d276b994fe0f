"""prepare when it is stopped: it continues to the same result, and nothing looks finished too early."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from llmshearing.prepare import pipeline, publish
from llmshearing.prepare.pack import Journal
from llmshearing.prepare.pipeline import prepare
from llmshearing.prepare.tokenizer import plan_tokenizer
from tests.interruptions import Stop, stop_after
from tests.prepare.prepare_inputs import make_spec, small_pieces, tokenizer, tree  # noqa: F401


@pytest.fixture(scope='module')
def whole(tmp_path_factory, tokenizer):
    """A spec, and the folder that an uninterrupted run made of it."""
    found = make_spec(tmp_path_factory.mktemp('whole'), tokenizer)
    with open(found['domains']['code'], 'a') as file:
        file.write('{"text": "counted once: </s>"}\n')
    assert prepare(found, workers=2)['domains']['code']['special_tokens']['documents'] == 1
    return found, Path(found['out'])


@pytest.fixture
def spec(whole, tmp_path):
    """The same spec for another place, in which the run will be interrupted."""
    return {**whole[0], 'out': str(tmp_path / 'out')}


def check_unfinished_and_go_on(spec, whole):
    """Each folder is there whole or not at all, and the next run completes the result."""
    out = Path(spec['out'])
    assert not (out / 'manifest.json').exists()
    for folder in out.glob('[!.]*/*'):
        assert tree(folder) == tree(whole / folder.relative_to(out))
    prepare(spec, workers=1)
    assert tree(out) == tree(whole)


@pytest.mark.parametrize(
    ('owner', 'name', 'calls'),
    [
        (Journal, 'append', 0),
        (Journal, 'append', 2),
        (Journal, 'append', 7),
        (Journal, 'append', 11),
        (pipeline, 'mark_duplicates', 0),
        (pipeline, 'write_samples', 1),
        (pipeline, 'write_samples', 4),
        (pipeline, 'write_state', 0),
        (pipeline, 'publish', 1),
        (pipeline, 'publish', 3),
        (publish, 'move_whole', 2),
        (pipeline, 'publish_manifest', 0),
        (MDSWriter, 'finish', 2),
    ],
)
def test_interrupted_work_continues(spec, whole, monkeypatch, owner, name, calls):
    with monkeypatch.context() as patch:
        stop_after(patch, owner, name, calls)
        with pytest.raises(Stop):
            prepare(spec, workers=2)
    check_unfinished_and_go_on(spec, whole[1])


def test_finished_work_is_not_done_again(spec, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, pipeline, 'publish', 4)
        with pytest.raises(Stop):
            prepare(spec, workers=2)
    stop_after(monkeypatch, pipeline, 'tokenize', 0)  # both domains are packed: no tokenizing any more
    stop_after(monkeypatch, Journal, 'append', 0)  # and no scanning
    manifest = prepare(spec, workers=2)
    before = {path: path.stat().st_mtime_ns for path in Path(spec['out']).rglob('*')}
    stop_after(monkeypatch, pipeline, 'scan', 0)
    assert prepare(spec, workers=2) == manifest
    assert {path: path.stat().st_mtime_ns for path in Path(spec['out']).rglob('*')} == before


def test_killed_for_good_at_random_points(spec, whole, tmp_path):
    script, plan = tmp_path / 'run.py', tmp_path / 'plan'
    plan.write_bytes(pickle.dumps(plan_tokenizer(spec['tokenizer'], None, None)))
    script.write_text(
        'import json, pickle, sys, time\n'
        'from llmshearing.prepare import pack, pipeline, stages\n'
        'append, find = pack.Journal.append, stages.find_input\n'
        'def slow(self, *args, **facts):\n'
        '    append(self, *args, **facts)\n'
        '    print("step", flush=True)\n'
        '    time.sleep(0.05)\n'
        'def small(domain):\n'
        '    item = find(domain)\n'
        '    item.piece_bytes = 8000\n'
        '    return item\n'
        'pack.Journal.append, pipeline.find_input = slow, small\n'
        # What is slow to import is not what is tested.
        f'pipeline.plan_tokenizer = lambda *_: pickle.load(open({str(plan)!r}, "rb"))\n'
        'pipeline.check_writer_options = lambda *_: None\n'
        'pipeline.prepare(json.loads(sys.argv[1]), workers=2)\n'
    )
    rng, steps = np.random.default_rng(int(time.time())), 0
    for _ in range(2):
        run = subprocess.Popen([sys.executable, str(script), json.dumps(spec)], stdout=subprocess.PIPE)
        for _ in range(int(rng.integers(1, 6))):
            steps += run.stdout.readline() == b'step\n'
        children = _children(run.pid)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        run.stdout.close()
        assert len(children) >= 2
        deadline = time.monotonic() + 20
        while any(map(_alive, children)):  # workers leave with the run that started them
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert steps >= 2 and not (Path(spec['out']) / 'manifest.json').exists()
    prepare(spec, workers=2)
    assert tree(Path(spec['out'])) == tree(whole[1])


def _alive(pid: int) -> bool:
    stat = Path(f'/proc/{pid}/stat')
    try:
        return stat.read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def _children(pid: int) -> list[int]:
    tasks = Path(f'/proc/{pid}/task').iterdir()
    return [int(child) for task in tasks for child in (task / 'children').read_text().split()]


def test_a_killed_worker_is_reported(spec, monkeypatch):
    def kill(item, context):
        for process in context.pool.processes:
            process.kill()
        return scan(item, context)

    scan = pipeline.scan
    monkeypatch.setattr(pipeline, 'scan', lambda item, context: (scan(item, context), kill(item, context)))
    with pytest.raises(
        ChildProcessError, match='a worker process of prepare died .exit code -9.; if the machine ran out of memory'
    ):
        prepare(spec, workers=1)


def test_two_runs_do_not_share_a_working_folder(spec):
    with publish.locked(Path(spec['out']) / '.prepare'):
        with pytest.raises(ValueError, match='another prepare is at work in'):
            prepare(spec, workers=1)
    prepare(spec, workers=1)


@pytest.mark.parametrize(
    'owner, name', [(Journal, 'append'), (MDSWriter, 'flush_shard'), (publish, 'dump_json'), (publish, 'move_whole')]
)
def test_full_disk(spec, whole, monkeypatch, owner, name):
    with monkeypatch.context() as patch:
        stop_after(patch, owner, name, 1, OSError(errno.ENOSPC, 'No space left on device'))
        with pytest.raises(OSError, match='No space left on device; nothing unfinished was left in place. Make room'):
            prepare(spec, workers=1)
    check_unfinished_and_go_on(spec, whole[1])


def test_a_small_disk_is_told_before_the_work(spec, whole, monkeypatch, caplog):
    usage, sizes = shutil.disk_usage(whole[1]), [path.stat().st_size for path in whole[1].rglob('*.mds')]
    for free, told in ((sum(sizes) * 3, False), (sum(sizes), True)):
        monkeypatch.setattr(shutil, 'disk_usage', lambda path, free=free: usage._replace(free=free))
        caplog.clear()
        prepare({**spec, 'out': f'{spec["out"]}{free}'}, workers=1)
        assert ('GB will be needed in' in caplog.text) == told


def test_a_limit_of_the_system_on_file_size(spec, whole):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in whole[1].rglob('*.mds'))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 100, hard))  # bites at the largest shard or before
    try:
        with pytest.raises(OSError, match='nothing unfinished was left in place'):
            prepare(spec, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    prepare(spec, workers=1)
    assert tree(Path(spec['out'])) == tree(whole[1])
