"""A rank that dies: the launcher ends the others within a minute, and the run goes on from its last checkpoint on one
rank."""

import os
import time
from pathlib import Path

import pytest
import torch

from llmshearing.data import shared_order
from tests.distributed.test_two_ranks import launch
from tests.runs.stages import finish, make_world, start

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_launcher_ends_the_other_ranks_and_the_run_goes_on(tmp_path):
    work, place = make_world(tmp_path / 'world'), tmp_path / 'run'
    place.mkdir()
    process = launch(2, [str(ROOT / 'tests/distributed/dead_rank_worker.py'), str(work), str(place), '5'])
    waited = time.time() - float((place / 'died').read_text())
    assert process.returncode != 0 and waited < 60, waited
    assert os.readlink(place / 'save' / 'latest-rank0.pt') == 'ba5.pt'
    result = finish('prune', work, tmp_path / 'whole')[1]
    resumed = start('prune', work, place, autoresume=True)
    resumed.join(120)
    assert resumed.exitcode == 0
    for name, value in torch.load(place / 'result', weights_only=True)['weights'].items():
        torch.testing.assert_close(value, result['weights'][name], rtol=1e-4, atol=1e-5)
    shared_order.remove_dead_runs()
