"""``llmshearing train``: the launcher's command, and real processes outside the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmshearing.commands.train import launch_command, main

ROOT = Path(__file__).parents[2]
LAUNCHER = [sys.executable, '-m', 'composer.cli.launcher']


@pytest.mark.parametrize(
    'given, options, rest',
    [
        (['run.yaml'], [], ['run.yaml']),
        (['-n', '2', 'run.yml', 'a.b=1'], ['-n', '2'], ['run.yml', 'a.b=1']),
        (['--nproc', '2', 'x/run.yaml'], ['-n', '2'], ['x/run.yaml']),
        (['--node_rank', '1', '-n', '8', 'run.yaml'], ['--node_rank', '1', '-n', '8'], ['run.yaml']),
    ],
)
def test_options_go_to_the_launcher_and_the_rest_to_the_run(given, options, rest):
    assert launch_command(given) == [*LAUNCHER, *options, '-m', 'llmshearing.train', *rest]


@pytest.mark.parametrize(
    'given, message', [(['-n', '2'], 'expected a RUN.yaml'), (['run.yaml', '-n', '2'], 'options stand before the YAML')]
)
def test_what_is_no_command(given, message):
    with pytest.raises(ValueError, match=message):
        launch_command(given)


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as end:
        main(['--help'])
    assert end.value.code == 0
    assert 'llmshearing train -n 4 RUN.yaml max_duration=100ba' in capsys.readouterr().out


def test_a_run_that_is_refused_outside_the_checkout(tmp_path):
    """The launcher starts the module in a process of its own, which answers in one sentence."""
    (tmp_path / 'run.yaml').write_text('max_duration: 1ba\n')
    command = [sys.executable, '-m', 'llmshearing.cli', 'train', '-n', '1', 'run.yaml', 'seed=3']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert 'ERROR: run.yaml: missing global_train_batch_size' in said and 'Traceback' not in said
    assert 'pkg_resources' not in said and 'Deprecat' not in said
