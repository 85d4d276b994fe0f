"""A YAML goes from two processes to one and back through sharded checkpoints, and from checkpoints of before."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.checkpoint import FileSystemReader

from llmshearing.metrics.lines import read_metrics
from tests.tiny_data import tiny_data
from tests.tiny_run import tiny_source

ROOT = Path(__file__).parents[2]
DOMAINS = ('a', 'b')


def configuration(work):
    data, split = work / 'data', {'max_seq_len': 16, 'shuffle': False}
    evaluator = {
        'name': 'text',
        'drop_last': False,
        'num_workers': 0,
        'prefetch_factor': None,
        'persistent_workers': False,
    }
    return {
        'max_seq_len': 16,
        'seed': 17,
        'model': {'name': 'sheared_causal_lm', 'pretrained_model_name_or_path': str(work / 'source')},
        'tokenizer': {'name': str(work / 'source')},
        'train_loader': {
            'name': 'dynamic_text',
            'num_workers': 0,
            'dataset': {
                'local': str(data / 'continue'), 'domains': list(DOMAINS), 'round_batches': 2, 'max_seq_len': 16
            },
        },
        'eval_loader': [
            {'label': name, **evaluator, 'dataset': {**split, 'local': str(data / 'eval' / name)}} for name in DOMAINS
        ],
        'callbacks': {'dynamic_batch_loading': {'update': 'constant', 'max_eval_sequences': 4}},
        'loggers': {'metrics_file': {'path': str(work / 'metrics.jsonl')}},
        'optimizer': {'name': 'decoupled_adamw', 'lr': 1e-3},
        'scheduler': {'name': 'constant_with_warmup', 't_warmup': '1ba'},
        'fsdp_config': {'state_dict_type': 'sharded'},
        'global_train_batch_size': 4, 'device_train_microbatch_size': 2, 'device_eval_batch_size': 4,
        'max_duration': '2ba', 'eval_interval': '2ba', 'save_interval': '2ba', 'precision': 'fp32',
        'save_folder': str(work / 'save'), 'run_name': 'elastic', 'autoresume': True, 'python_log_level': 'warning',
        'log_config': False, 'log_to_console': False, 'progress_bar': False,
    }  # fmt: skip


def go(work, ranks, *overrides):
    command = [sys.executable, '-m', 'llmshearing.cli', 'train', '-n', str(ranks), 'run.yaml', *overrides]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_one_and_two_again(tmp_path):
    tiny_source(tmp_path / 'source')
    tiny_data(tmp_path, domains=DOMAINS)
    config = configuration(tmp_path)
    (tmp_path / 'run.yaml').write_text(json.dumps({**config, 'model': {**config['model'], 'init_device': 'mixed'}}))
    go(tmp_path, 2)
    said = go(tmp_path, 1, 'max_duration=4ba', 'optimizer.lr=0.0005', 'seed=5')
    assert 'optimizer.lr: 0.0005 as configured now; the checkpoint had 0.001' in said
    assert 'seed: 17 of the checkpoint, not 5' in said
    newest = (tmp_path / 'save' / 'latest-sharded-rank0').resolve()
    assert newest.is_dir() and newest.name.endswith('ba4')
    go(tmp_path, 2, 'max_duration=6ba')
    elastic = read_metrics(tmp_path / 'metrics.jsonl')['loss/train/total']
    shutil.rmtree(tmp_path / 'save')
    (tmp_path / 'metrics.jsonl').unlink()
    for ba in (2, 4):  # the same without a change of ranks, at the same rates
        go(tmp_path, 1, f'max_duration={ba}ba', 'optimizer.lr=0.0005' if ba == 4 else 'seed=17')
    alone = read_metrics(tmp_path / 'metrics.jsonl')['loss/train/total']
    assert list(elastic) == list(range(6))
    assert [elastic[batch] for batch in range(4)] == pytest.approx([alone[batch] for batch in range(4)], rel=1e-4)
    assert (
        'state.callbacks.ResumeSettings.settings'
        in FileSystemReader((tmp_path / 'save' / 'latest-sharded-rank0').resolve()).read_metadata().state_dict_metadata
    )
