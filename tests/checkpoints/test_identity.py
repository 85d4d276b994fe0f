"""Two models of one shape are told apart, by nodes among others; the same one is not."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from llmshearing.checkpoints.identity import BLOCK, BLOCKS, source_identity
from tests.tiny_run import tiny_source


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return tiny_source(tmp_path_factory.mktemp('source') / 'source')


def change_weights(folder: Path) -> None:
    path = folder / 'model.safetensors'
    save_file({name: -tensor for name, tensor in load_file(path).items()}, path, metadata={'format': 'pt'})


def change_config(folder: Path) -> None:
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'rms_norm_eps': 0.5}))


def differing(folder: Path, other: Path, **settings) -> list[str]:
    ours, theirs = (
        {name.replace(str(each), ''): value for name, value in source_identity(str(each), **settings).items()}
        for each in (folder, other)
    )
    return [name for name in ours if ours[name] != theirs[name]]


def test_what_differs_is_named(source, tmp_path):
    other = shutil.copytree(source, tmp_path / 'other')
    assert differing(source, other) == []
    change_weights(other)
    assert differing(source, other) == ['/model.safetensors (its size and a hash of parts)']
    assert differing(source, other, weights=False) == []
    change_config(other)
    assert differing(source, other, weights=False) == ['config.json of  (its hash)']


def test_little_of_a_large_file_is_read(source, tmp_path):
    large = shutil.copytree(source, tmp_path / 'large')
    with (large / 'model.safetensors').open('r+b') as file:
        file.truncate(10**12)  # a sparse one
    code = (
        'import sys; from llmshearing.checkpoints.identity import source_identity as identity; '
        'read = lambda: int(open("/proc/self/io").read().split()[1]); before = read(); identity(sys.argv[1]); '
        'print(read() - before)'
    )
    command = [sys.executable, '-c', code, str(large)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert 100 * BLOCK < int(out.stdout) < 2 * BLOCKS * BLOCK + 2**20


def test_a_name_of_the_hub_is_told_by_its_commit(source, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    cache = tmp_path / 'models--tiny--llama'
    for commit in ('1' * 40, '2' * 40):
        shutil.copytree(source, cache / 'snapshots' / commit)
    seen = []
    for commit in ('1' * 40, '2' * 40):
        (cache / 'refs').mkdir(exist_ok=True)
        (cache / 'refs' / 'main').write_text(commit)
        seen.append(source_identity('tiny/llama'))
    name = 'commit of tiny/llama in the cache of the hub'
    assert [identity.pop(name) for identity in seen] == ['1' * 40, '2' * 40] and seen[0] == seen[1] != {}


WORKER = """
import os, sys
os.environ['FSDP_VERSION'] = '2'
from pathlib import Path
from composer.utils import dist
from llmshearing.algorithms.distillation import Distillation
from llmshearing.algorithms.targeted_pruning import TargetedPruning
from tests.tiny_run import tiny_trainer
os.chdir(Path(sys.argv[1]) / os.environ['RANK'])
dist.initialize_dist('cpu')
for algorithm in (TargetedPruning({'intermediate_size': 40}, warmup='1ba'), Distillation('source')):
    try:
        tiny_trainer(Path('source'), [algorithm])
    except ValueError as error:
        Path('error').open('a').write(f'{error}\\n')
"""
OTHER = r'source/model.safetensors \(its size .*\): .* B, \w+ on rank 1 \(.+\), .* B, \w+ on rank 0 \(.+\); every node'


def test_nodes_with_other_weights_of_the_same_shape_are_refused(source, tmp_path):
    for rank in '01':
        shutil.copytree(source, tmp_path / rank / 'source')
    change_weights(tmp_path / '1' / 'source')
    (tmp_path / 'worker.py').write_text(WORKER)
    composer = [sys.executable, '-m', 'composer.cli.launcher', '-n', '2', str(tmp_path / 'worker.py'), str(tmp_path)]
    root = Path(__file__).parents[2]
    run = dict(env={**os.environ, 'PYTHONPATH': str(root)}, capture_output=True, text=True, timeout=300, check=True)
    subprocess.run(composer, **run)
    for rank in '01':
        errors = (tmp_path / rank / 'error').read_text().splitlines()  # of pruning, and of distilling
        assert len(errors) == 2 and all(re.match(OTHER, error) for error in errors), errors


def test_a_folder_without_weights_is_told_by_its_config(source, tmp_path):
    shutil.copy(source / 'config.json', tmp_path)  # as of a model that is built with random weights
    (name,) = source_identity(str(tmp_path))
    assert name == f'config.json of {tmp_path} (its hash)'
    assert len(source_identity(str(source))) == 2
