"""The wheels for a machine without network: what is left out, and that the rest is enough in a fresh environment."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location('wheels', ROOT / 'constraints' / 'wheels.py')
wheels = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(wheels)


def test_names_are_read_from_freeze_and_from_list():
    assert wheels.names_in('torch==2.11.0\nHuggingFace_Hub @ file:///x\n# note\n') == {'torch', 'huggingface-hub'}
    assert wheels.names_in('Package Version\n------- -------\nPyYAML  6.0\n') == {'pyyaml'}


def test_what_is_there_stays_out_and_setuptools_goes_along():
    resolved = [('Torch', '2.14'), ('nvidia_cublas', '13'), ('omegaconf', '2.4.0'), ('setuptools', '80.9.0')]
    assert wheels.missing(resolved, ['torch', 'setuptools']) == ['omegaconf==2.4.0', 'setuptools==80.9.0']


def test_an_output_that_is_not_empty_is_refused(tmp_path, capsys):
    (tmp_path / 'old.whl').touch()
    with pytest.raises(SystemExit):
        wheels.main(['--output', str(tmp_path)])
    assert 'two versions of one wheel' in capsys.readouterr().err


def link_installed(site: Path) -> None:
    """Links what a machine with PyTorch and transformers has, and nothing else, from this environment."""
    here = Path(sysconfig.get_paths()['purelib'])
    there = {wheels.canonical(name) for name in wheels.INSTALLED}
    for distribution in importlib.metadata.distributions(path=[str(here)]):
        name = wheels.canonical(distribution.metadata['Name'])
        if name in there or name.startswith('nvidia-'):
            for top in {
                file.parts[0] for file in distribution.files or () if file.parts[0] not in ('..', '__pycache__')
            }:
                if (here / top).exists() and not (site / top).exists():
                    (site / top).symlink_to(here / top)


@pytest.mark.slow
def test_a_fresh_environment_runs_the_gpus_command_from_the_wheels(tmp_path):
    python = f'{sys.version_info.major}.{sys.version_info.minor}'
    assert wheels.main(['--python', python, '--output', str(tmp_path / 'wheels')]) == 0  # below 60 MiB
    subprocess.run([sys.executable, '-m', 'venv', str(tmp_path / 'venv')], check=True)
    fresh = tmp_path / 'venv' / 'bin' / 'python'
    site = next((tmp_path / 'venv' / 'lib').glob('python*/site-packages'))
    link_installed(site)
    install = [fresh, '-m', 'pip', '--quiet', 'install', '--no-index', '--no-deps', '--target', tmp_path / 'site']
    subprocess.run([*map(str, install), *map(str, (tmp_path / 'wheels').glob('*.whl'))], check=True)
    offline = dict.fromkeys(('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'), 'http://127.0.0.1:9')
    environment = {**os.environ, **offline, 'PYTHONPATH': os.pathsep.join((str(ROOT), str(tmp_path / 'site')))}
    command = [fresh, '-m', 'benchmarks.gpu', '--quick', '--output', tmp_path / 'out', '--work', tmp_path / 'work']
    command += ['--only', 'rotation', 'matrix product', 'every parameter']  # all four parts are imported
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.stem for path in (tmp_path / 'out').glob('*.json')} == {'right', 'fast', 'big'}
