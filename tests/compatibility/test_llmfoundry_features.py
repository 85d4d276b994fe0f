"""One pruning run from a YAML with every logger and feature that llm-foundry can turn on,
and no secret in anything it leaves."""

import glob
import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import wandb
from llmfoundry.command_utils import train
from omegaconf import OmegaConf

from llmshearing.export.model_folder import open_strictly
from llmshearing.metrics.lines import read_metrics
from tests.tiny_data import DOMAINS, tiny_data
from tests.tiny_run import tiny_source

ROOT = Path(__file__).parents[2]
SECRETS = {
    'HF_TOKEN': 'hf_' + 'Sheared0' * 5,
    'WANDB_API_KEY': '5ec2e7' * 6 + 'abcd',
    'AWS_SECRET_ACCESS_KEY': 'aws-secret-never-to-be-written',
    'MLFLOW_TRACKING_TOKEN': 'mlflow-secret-never-to-be-written',
    'OPENAI_API_KEY': 'openai-secret-never-to-be-written',
}
METRIC = 'pruning/expected_sparsity'


def configuration(work):
    config = OmegaConf.load(ROOT / 'yamls' / 'demo' / 'prune.yaml')
    config.variables.work = str(work)
    config.algorithms.targeted_pruning.target = {
        'num_hidden_layers': 3,
        'hidden_size': 36,
        'num_key_value_heads': 1,
        'intermediate_size': 40,
    }
    more = {
        'max_seq_len': 16,
        'max_duration': '4ba',
        'eval_interval': '2ba',
        'eval_first': True,
        'device_train_microbatch_size': 2,  # two micro-batches a step: gradient accumulation
        'log_config': True,
        'run_name': 'features',
        'train_loader': {'dataset': {'round_batches': 2}},
        'algorithms': {'gradient_clipping': {'clipping_type': 'norm', 'clipping_threshold': 1.0}},
        'callbacks': {
            'export_pruned': {'allow_unconverged': True},
            'kill_loss_spike': {'log_only': False, 'window_size': 2, 'patience': 2},
            'speed_monitor': {'window_size': 2},
            'lr_monitor': {},
            'memory_monitor': {},
            'runtime_estimator': {},
            'nan_monitor': {},
        },
        'loggers': {
            'wandb': {'project': 'features', 'init_kwargs': {'mode': 'offline', 'dir': str(work)}},
            'tensorboard': {'log_dir': str(work / 'tensorboard')},
            'mlflow': {
                'experiment_name': 'features',
                'tracking_uri': f'file://{work}/mlruns',
                'log_system_metrics': False,
                'synchronous': True,
            },
        },
        'profiler': {
            'schedule': {'wait': 0, 'warmup': 1, 'active': 1, 'repeat': 1},
            'json_trace_handler': {'folder': str(work / 'trace')},
            'torch_prof_folder': str(work / 'torch_trace'),
        },
        'save_folder': str(work / 'checkpoints'),
        'save_interval': '2ba',
    }
    return OmegaConf.merge(config, more)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The work folder of the run, what it printed and logged, and the trainer."""
    work, patch = tmp_path_factory.mktemp('llmfoundry'), pytest.MonkeyPatch()
    tiny_source(work / 'source')
    tiny_data(work)
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    with patch.context() as context:
        for name, value in SECRETS.items():
            context.setenv(name, value)
        context.setenv('WANDB_MODE', 'offline')
        context.setenv('WANDB_SILENT', 'true')
        context.chdir(work)
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            trainer = train(configuration(work))
            trainer.close()
            wandb.teardown()  # its service, and the thread that speaks to it
    logging.getLogger().removeHandler(handler)
    return work, printed.getvalue() + '\n'.join(records), trainer


def test_the_run_ends_with_an_exact_export(finished):
    work, _, trainer = finished
    assert trainer.state.timestamp.batch.value == 4
    assert open_strictly(work / 'pruned').config.hidden_size == 36
    metrics = read_metrics(work / 'prune_metrics.jsonl')
    assert {0, 2, 4} <= set(metrics[f'metrics/eval/{DOMAINS[0]}/LanguageCrossEntropy'])  # eval_first, then the rounds
    assert {'lr-DecoupledAdamW/group0', METRIC} <= set(metrics)


def test_every_logger_has_the_pruning_metrics(finished):
    work, _, _ = finished
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = next(iter(glob.glob(str(work / 'tensorboard' / '**' / 'events*'), recursive=True)))
    accumulator = EventAccumulator(str(Path(events).parent))
    accumulator.Reload()
    assert METRIC in accumulator.Tags()['scalars']
    stored = list((work / 'mlruns').rglob(METRIC.split('/')[-1]))
    assert stored and stored[0].read_text().strip()
    wandb = list((work / 'wandb').rglob('*.wandb'))
    assert wandb and METRIC.encode() in wandb[0].read_bytes()


def test_the_profiler_traces_our_algorithm(finished):
    work, _, _ = finished
    assert any('TargetedPruning' in path.read_text() for path in (work / 'trace').rglob('*.json'))
    assert list((work / 'torch_trace').rglob('*.json'))


def test_no_secret_of_the_environment_is_printed_logged_or_written(finished):
    work, printed, _ = finished
    assert 'sheared_causal_lm' in printed  # log_config printed the configuration, so that something could leak
    files = [path for path in work.rglob('*') if path.is_file()]
    assert len(files) > 30
    for name, value in SECRETS.items():
        assert value not in printed, name
        for path in files:
            assert value.encode() not in path.read_bytes(), f'{name} in {path}'


def test_the_exported_folder_names_no_path_of_this_machine(finished):
    work, _, _ = finished
    for path in (work / 'pruned').iterdir():
        assert str(work).encode() not in path.read_bytes(), path.name
