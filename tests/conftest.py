"""Settings shared by all tests: no network, no GPU, and one thread, set before torch is imported.

One thread, because a process that has run OpenMP on several cannot fork children that compute: they wait for threads
that the fork did not copy. Tests that kill training at random fork it.

No process group is left behind by a module, for the same reason: llm-foundry's ``train`` starts one even for a single
rank, and a forked child would wait for its parent in it. Nor are the settings that checks and libraries make for the
rest of a run's process, nor the shared memory of Streaming that trainings leave which tests kill: with enough of it,
Streaming finds no free number (it takes the largest of several "first free" ones, which another name may hold).

Nor threads: what one of them holds at the moment of a fork, nobody lets go of in the child.
"""

import logging
import multiprocessing
import os
import re
import resource
import tempfile
import threading
import time
from pathlib import Path

import pytest

# Seventeen hundred tests in one process: what libraries keep open until they are collected adds up.
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

BEGAN = time.time()
SHARED = Path('/dev/shm')
YOUNGEST = 120  # seconds
SEGMENT = re.compile(r'\d{6}_[a-z_]+')
SET_FOR_A_RUN = (
    'CHECKPOINT_VALIDATION_FUNCTION',
    'FSDP_VERSION',
    'TORCH_FORCE_WEIGHTS_ONLY_LOAD',
    'RANK',
    'WORLD_SIZE',
    'LOCAL_RANK',
    'LOCAL_WORLD_SIZE',
    'NODE_RANK',
    'MASTER_ADDR',
    'MASTER_PORT',
)

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
os.environ.setdefault('OMP_NUM_THREADS', '1')
LONGEST = (
    'test_gpu_benchmark.py',
    'test_family_runs.py',
    'test_benchmarks.py',
    'test_two_ranks.py',
    'test_cut_source.py',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first where processes share the tests file by file: they then end together."""
    if 'PYTEST_XDIST_WORKER' in os.environ:
        items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope='session')
def autograd_without_threads():
    """Has torch decide now that its backward pass needs no threads, as this machine has no other device than its CPU.

    Fake tensors pretend a GPU. Where they come before the first backward pass, it starts a thread for that, and no
    process that is forked from this one can train any more.
    """
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True, scope='module')
def nothing_left_behind():
    from tests.threads import end_threads  # imports torch, after the settings above

    before, silenced = {name: os.environ.get(name) for name in SET_FOR_A_RUN}, logging.root.manager.disable
    threads = set(threading.enumerate())
    yield
    for process in multiprocessing.active_children():
        if not process.daemon:  # it would be waited for at the end
            process.kill()
    logging.disable(silenced)  # benchmarks do so for their process
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    remove_unused_segments()
    end_threads(threads)  # the last, as it may fail


@pytest.fixture
def closed_loaders():
    """After the test, ends the workers of its loaders and gives back Streaming's shared memory."""
    from tests.dynamic_text_world import close_loaders

    yield
    close_loaders()


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Folder of a tiny random source model with its tokenizer."""
    from tests.tiny_run import tiny_source

    return tiny_source(tmp_path_factory.mktemp('tiny') / 'source')


def remove_unused_segments() -> None:
    """Removes Streaming's segments of this session that no process has open, and locks that no segment goes with.

    The youngest stay: they may be of a test that another process runs at this moment. Streaming looks through the locks
    of all numbers for each data set, and never removes one.
    """
    ours = {path for path in SHARED.glob('[0-9]*_*') if SEGMENT.fullmatch(path.name) and _is_of_this_session(path)}
    used = set()
    for maps in Path('/proc').glob('[0-9]*/maps') if ours else ():
        try:
            used.update(re.findall(r'/dev/shm/(\S+)', maps.read_text()))
        except OSError:  # ended meanwhile, or another user's
            continue
    for path in ours:
        if path.name not in used:
            path.unlink(missing_ok=True)
    taken = {path.name.partition('_')[0] for path in SHARED.glob('[0-9]*_*')}
    for path in Path(tempfile.gettempdir()).glob('[0-9]*_*_filelock'):
        if path.name.partition('_')[0] not in taken and _is_of_this_session(path):
            path.unlink(missing_ok=True)


def _is_of_this_session(path: Path) -> bool:
    try:
        return BEGAN < path.stat().st_mtime < time.time() - (YOUNGEST if 'PYTEST_XDIST_WORKER' in os.environ else 0)
    except FileNotFoundError:  # removed meanwhile
        return False
