"""The demo's YAMLs on a tiny source: prune, continue, the comparison from random weights.

Pruning goes through both launchers; what follows runs in the tests' own process, by the same function.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from llmshearing.export.model_folder import open_strictly
from llmshearing.metrics.lines import read_metrics
from llmshearing.train import main
from tests.tiny_data import DOMAINS, tiny_data
from tests.tiny_run import tiny_source

ROOT = Path(__file__).parents[1]
YAMLS = ROOT / 'yamls' / 'demo'
TINY = ['max_seq_len=16', 'eval_subset_num_batches=1', 'precision=fp32']
TINY_PRUNE = [
    *TINY,
    'max_duration=12ba',
    'eval_interval=6ba',
    'train_loader.dataset.round_batches=6',
    'algorithms.targeted_pruning.target.num_hidden_layers=3',
    'algorithms.targeted_pruning.target.hidden_size=36',
    'algorithms.targeted_pruning.target.num_key_value_heads=1',
    'algorithms.targeted_pruning.target.intermediate_size=40',
]


def launch(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """Runs the composer launcher on one rank with only the installed package in reach."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
    composer = [sys.executable, '-m', 'composer.cli.launcher', '-n', '1']
    return subprocess.run([*composer, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A demo folder after pruning, made from another working directory than the checkout."""
    work = tmp_path_factory.mktemp('demo')
    tiny_source(work / 'source')
    tiny_data(work)
    process = launch(
        [str(ROOT / 'llmshearing' / 'train.py'), str(YAMLS / 'prune.yaml'), f'variables.work={work}', *TINY_PRUNE], work
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    return work


def test_pruning_reaches_the_target_and_logs_what_the_report_needs(work):
    config = AutoConfig.from_pretrained(work / 'pruned')
    assert (config.num_hidden_layers, config.hidden_size, config.num_key_value_heads, config.intermediate_size) == (
        3,
        36,
        1,
        40,
    )
    metrics = read_metrics(work / 'prune_metrics.jsonl')
    assert list(metrics['pruning/hidden/expected'])[-1] == 11
    assert list(metrics['pruning/hidden/expected'].values())[-1] == 36
    assert {f'mixture/weight/{name}' for name in DOMAINS} <= set(metrics)


def test_llmfoundry_train_runs_the_same_yaml(work, tmp_path):
    foundry = Path(sys.executable).with_name('llmfoundry')
    for name in ('source', 'data'):
        (tmp_path / name).symlink_to(work / name)
    process = launch(
        ['-c', str(foundry), 'train', str(YAMLS / 'prune.yaml'), f'variables.work={tmp_path}', *TINY_PRUNE], tmp_path
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    ours, theirs = (open_strictly(folder / 'pruned') for folder in (work, tmp_path))
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        assert mine.equal(other)


def test_the_pruned_model_continues_with_a_mixture_that_moves(work):
    references = {name: 1.0 + index for index, name in enumerate(DOMAINS)}
    (work / 'reference_losses.json').write_text(json.dumps({'reference_losses': references}))
    settings = [
        f'variables.work={work}',
        *TINY,
        'max_duration=12ba',
        'eval_interval=4ba',
        'train_loader.dataset.round_batches=4',
    ]
    assert main([str(YAMLS / 'continue.yaml'), *settings]) == 0
    assert open_strictly(work / 'continue' / 'huggingface' / 'final').config.hidden_size == 36
    metrics = read_metrics(work / 'continue_metrics.jsonl')
    last = {name: list(metrics[f'mixture/weight/{name}'].values())[-1] for name in DOMAINS}
    assert sum(last.values()) == pytest.approx(1, abs=1e-6)
    assert last['python'] > 0.25 > last['licences']  # the domain furthest above its reference gains


def test_the_comparison_starts_from_random_weights(work):
    settings = [f'variables.work={work}', *TINY, 'max_duration=6ba', 'train_loader.dataset.round_batches=6']
    assert main([str(YAMLS / 'scratch.yaml'), *settings]) == 0
    assert open_strictly(work / 'scratch' / 'huggingface' / 'final').config.hidden_size == 36


def test_a_place_that_cannot_be_written_ends_in_one_message(work, tmp_path, capfd):
    for name in ('source', 'data'):
        (tmp_path / name).symlink_to(work / name)
    (tmp_path / 'file').write_text('')
    settings = [*TINY_PRUNE, f'variables.work={tmp_path}', f'save_folder={tmp_path}/file/checkpoints']
    assert main([str(YAMLS / 'prune.yaml'), *settings]) == 1
    printed = capfd.readouterr().err
    assert re.search(r'ERROR: (composer|llmfoundry)\.[\w.]+: \[Errno 20\] Not a directory', printed)
    assert 'Traceback' not in printed.split('ERROR: ')[0]


def test_a_target_that_cannot_be_reached_ends_before_the_first_step(work, tmp_path, capfd):
    for name in ('source', 'data'):
        (tmp_path / name).symlink_to(work / name)
    settings = [*TINY_PRUNE, f'variables.work={tmp_path}', 'algorithms.targeted_pruning.target.hidden_size=64']
    assert main([str(YAMLS / 'prune.yaml'), *settings]) == 1
    printed = capfd.readouterr().err
    assert "hidden_size=64 is larger than the source's 48" in printed
    assert 'Traceback' not in printed.split('ERROR: ')[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'source']
