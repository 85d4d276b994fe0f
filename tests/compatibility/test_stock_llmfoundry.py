"""Our parts in llm-foundry, and its parts with our results: registry, hf_checkpointer, hf_causal_lm, the text
loader."""

import subprocess
import sys
from pathlib import Path

import pytest
from llmfoundry.command_utils import train
from omegaconf import OmegaConf

from llmshearing.export.model_folder import open_strictly
from llmshearing.metrics.lines import read_metrics
from tests.tiny_data import DOMAINS, tiny_data
from tests.tiny_run import tiny_source

ROOT = Path(__file__).parents[2]
TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
OURS = (
    'sheared_causal_lm',
    'targeted_pruning',
    'distillation',
    'dynamic_batch_loading',
    'export_pruned',
    'dynamic_text',
    'metrics_file',
    'llmshearing_checks',
)


def test_the_registry_lists_everything_of_ours_outside_the_checkout(tmp_path):
    command = [str(Path(sys.executable).with_name('llmfoundry')), 'registry', 'get']
    process = subprocess.run(
        command, cwd=tmp_path, env={'PATH': '/usr/bin:/bin', 'COLUMNS': '200'}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert not [name for name in OURS if name not in process.stdout]


@pytest.fixture(scope='module')
def pruned(tmp_path_factory):
    """The work folder of a pruning run through llm-foundry's own train."""
    work = tmp_path_factory.mktemp('stock')
    tiny_source(work / 'source')
    tiny_data(work)
    config = OmegaConf.merge(
        OmegaConf.load(ROOT / 'yamls' / 'demo' / 'prune.yaml'),
        {
            'max_seq_len': 16,
            'max_duration': '2ba',
            'python_log_level': 'warning',
            'eval_interval': '2ba',
            'train_loader': {'dataset': {'round_batches': 2}},
            'callbacks': {'export_pruned': {'allow_unconverged': True}},
        },
    )
    config.variables.work = str(work)
    config.algorithms.targeted_pruning.target = TARGET
    train(config).close()
    return work


def test_a_pruning_run_exports_the_small_model(pruned):
    small, source = open_strictly(pruned / 'pruned'), open_strictly(pruned / 'source')
    assert (source.config.hidden_size, small.config.hidden_size) == (48, 36)
    assert 'mixture/weight/' + DOMAINS[0] in read_metrics(pruned / 'prune_metrics.jsonl')


def test_the_pruned_folder_trains_with_stock_parts_and_distillation_by_name(pruned):
    loader = {'name': 'text', 'drop_last': True, 'num_workers': 0, 'prefetch_factor': None, 'persistent_workers': False}
    model = {
        'name': 'hf_causal_lm',
        'pretrained_model_name_or_path': str(pruned / 'pruned'),
        'pretrained': True,
        'use_train_metrics': False,
    }
    trainer = train(
        OmegaConf.create(
            {
                'max_seq_len': 16,
                'seed': 1,
                'model': model,
                'tokenizer': {'name': str(pruned / 'pruned')},
                'algorithms': {'distillation': {'teacher': str(pruned / 'source'), 'weight': 0.5, 'top_k': 8}},
                'train_loader': {
                    **loader,
                    'dataset': {
                        'local': str(pruned / 'data' / 'continue' / DOMAINS[0]),
                        'max_seq_len': 16,
                        'shuffle': True,
                    },
                },
                'eval_loader': {
                    **loader,
                    'dataset': {
                        'local': str(pruned / 'data' / 'eval' / DOMAINS[0]),
                        'max_seq_len': 16,
                        'shuffle': False,
                    },
                },
                'loggers': {'metrics_file': {'path': str(pruned / 'stock.jsonl')}},
                'callbacks': {
                    'hf_checkpointer': {
                        'save_folder': str(pruned / 'stock'),
                        'save_interval': '1dur',
                        'precision': 'float32',
                        'huggingface_folder_name': 'final',
                    }
                },
                'optimizer': {'name': 'decoupled_adamw', 'lr': 1.0e-3},
                'scheduler': {'name': 'constant_with_warmup', 't_warmup': '0ba'},
                'max_duration': '3ba',
                'global_train_batch_size': 4,
                'device_train_microbatch_size': 2,
                'device_eval_batch_size': 4,
                'eval_interval': '3ba',
                'precision': 'fp32',
                'progress_bar': False,
                'log_to_console': False,
                'python_log_level': 'warning',
            }
        )
    )
    trainer.close()
    assert open_strictly(pruned / 'stock' / 'huggingface' / 'final').config.hidden_size == 36
    losses = read_metrics(pruned / 'stock.jsonl')
    assert len(losses['loss/train/total']) == 3
    for batch, total in losses['loss/train/total'].items():
        assert losses['loss/train/distillation'][batch] > 0
        parts = losses['loss/train/language_model'][batch] + 0.5 * losses['loss/train/distillation'][batch]
        assert total == pytest.approx(parts, rel=1e-5)
