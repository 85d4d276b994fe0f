"""Two gloo ranks against one on the same global batches: DDP, FSDP2, FSDP2 with activation checkpointing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmshearing.export.model_folder import open_strictly
from tests.distributed.worker import EXPERT_MODES, RUNS, SCORES, TARGET, pruned_experts, run, scored
from tests.tiny_run import tiny_source

ROOT = Path(__file__).parents[2]
MODES = ['ddp', 'fsdp2', 'fsdp2+checkpointing']


def launch(ranks: int, arguments: list[str]) -> subprocess.CompletedProcess:
    """Starts a script on several ranks with the composer launcher."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    composer = [sys.executable, '-m', 'composer.cli.launcher', '-n', str(ranks)]
    return subprocess.run([*composer, *arguments], env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    source = tiny_source(folder / 'source')
    mixture = tiny_source(folder / 'mixture', 'mixtral')
    process = launch(2, [str(ROOT / 'tests/distributed/worker.py'), str(source), str(folder / 'two.pt'), *MODES])
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    two = torch.load(folder / 'two.pt', weights_only=True)
    one = {learning: run(source, 'one', learning, folder) for learning in RUNS}
    one |= {name: scored(source, 'one', scores) for name, scores in SCORES.items()}
    one['experts'] = pruned_experts(mixture, 'one')
    return one, two, folder


@pytest.mark.parametrize('learning', RUNS)
@pytest.mark.parametrize('mode', MODES)
def test_losses_and_mask_gradients_equal_those_of_one_rank(results, mode, learning):
    one, two, _ = results
    want, got = one[learning], two[mode, learning]
    assert got['kept_layers'] == want['kept_layers']
    torch.testing.assert_close(torch.tensor(got['losses']), torch.tensor(want['losses']), rtol=2e-5, atol=2e-6)
    for batch, (mine, theirs) in enumerate(zip(got['gradients'], want['gradients'])):
        for axis in theirs:
            scale = theirs[axis].abs().max().item()
            torch.testing.assert_close(
                mine[axis],
                theirs[axis],
                rtol=1e-3,
                atol=1e-4 * scale + 1e-8,
                msg=lambda m: f'batch {batch}, {axis}: {m}',
            )


@pytest.mark.parametrize('name', SCORES)
@pytest.mark.parametrize('mode', ['ddp', 'fsdp2'])
def test_scores_and_gains_equal_those_of_one_rank(results, mode, name):
    """The same evaluation samples are scored on, although the evaluation batches of two ranks are twice as large."""
    one, two, _ = results
    assert set(one[name]) == {'hidden', 'layer', 'kv_group', 'intermediate', 'norm_energies', 'losses'}
    for axis, want in one[name].items():
        torch.testing.assert_close(two[mode, name][axis], want, rtol=1e-3, atol=1e-4 * want.abs().max().item())
    torch.testing.assert_close(two[mode, name]['losses'], one[name]['losses'], rtol=2e-5, atol=2e-6)


def test_the_runs_skipped_whole_layers(results):
    one, _, _ = results
    assert one['progressive']['kept_layers'][0] == 4 and one['progressive']['kept_layers'][-1] == 2


@pytest.mark.parametrize('learning', ['progressive', 'progressive+compensation', 'one_shot+compensation'])
@pytest.mark.parametrize('mode', MODES)
def test_two_ranks_export_the_same_model(results, mode, learning):
    _, _, folder = results
    want, got = (open_strictly(folder / f'{name}-{learning}') for name in ('one', mode))
    assert got.config.num_hidden_layers == TARGET['num_hidden_layers']
    for (name, mine), theirs in zip(got.named_parameters(), want.parameters()):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=lambda m: f'{name}: {m}')


@pytest.mark.parametrize('mode', EXPERT_MODES)
def test_experts_losses_and_scores_equal_those_of_one_rank(results, mode):
    one, two, _ = results
    want, got = one['experts'], two[mode, 'experts']
    torch.testing.assert_close(got['losses'], want['losses'], rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(got['scores'], want['scores'], rtol=1e-3, atol=1e-5)
    assert torch.equal(got['mask'], want['mask']) and want['mask'].sum(1).tolist() == [4] * 4
