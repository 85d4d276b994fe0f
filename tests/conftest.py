"""Settings shared by all tests: no network, no GPU, and one thread, set before torch is imported.

One thread, because a process that has run OpenMP on several cannot fork children that compute: they wait for threads that
the fork did not copy. Tests that kill training at random fork it.

No process group is left behind by a module, for the same reason: llm-foundry's ``train`` starts one even for a single rank, and a
forked child would wait for its parent in it. Nor are the settings that checks make for the rest of a run's process.
"""
import os

import pytest

SET_FOR_A_RUN = ('CHECKPOINT_VALIDATION_FUNCTION', 'FSDP_VERSION', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD')

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.fixture(autouse=True, scope='module')
def nothing_left_behind():
    before = {name: os.environ.get(name) for name in SET_FOR_A_RUN}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    from torch import distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
