"""What the READMEs say works: their Python is run, their YAML is read with the real names."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

import benchmarks.loader_throughput as loader_throughput
import llmshearing
from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading
from llmshearing.data.dynamic_text import build_dynamic_text_dataloader, dataset_keys
from tests.dynamic_text_world import close_loaders

PACKAGE = Path(llmshearing.__file__).parent
READMES = [PACKAGE / 'data' / 'README.md', PACKAGE / 'callbacks' / 'dynamic_batch_loading' / 'README.md']


def blocks(language):
    return [
        pytest.param(block, id=f'{path.parent.name}-{number}')
        for path in READMES
        for number, block in enumerate(re.findall(rf'```{language}\n(.*?)```', path.read_text(), re.S))
    ]


@pytest.mark.parametrize('code', blocks('python'))
def test_examples_run(code):
    try:
        exec(compile(code, 'README.md', 'exec'), {})
    finally:
        close_loaders()


def test_yaml_names_every_option_with_its_default():
    config = {}
    for block in blocks('yaml'):
        config |= yaml.safe_load(block.values[0])
    options = config['callbacks']['dynamic_batch_loading']
    parameters = inspect.signature(DynamicBatchLoading).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert set(options) == set(defaults)
    assert {name: options[name] for name in defaults if name != 'reference_losses'} == {
        name: default for name, default in defaults.items() if name != 'reference_losses'
    }
    DynamicBatchLoading(**options)
    loader = config['train_loader']
    assert set(loader) - {'name'} <= set(inspect.signature(build_dynamic_text_dataloader).parameters)
    assert set(loader['dataset']) <= set(dataset_keys())
    assert config['eval_interval'] == f'{loader["dataset"]["round_batches"]}ba'


def test_the_benchmark_runs(tmp_path, capsys):
    assert loader_throughput.main(['--quick', '--workers', '1', '--out', str(tmp_path / 'out.json')]) == 0
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert result['plain_samples_per_second'] > 0 and result['dynamic_samples_per_second'] > 0
    assert len(result['ratios']) == 1
    close_loaders()
