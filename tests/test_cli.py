"""The one entry point: what a user can mend is one line and exit code 1, everything else keeps its traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llmshearing import cli


def raising(monkeypatch, error):
    """A command that fails so."""

    def main(argv):
        raise error

    module = type(sys)('failing_command')
    module.main = main
    monkeypatch.setitem(sys.modules, 'failing_command', module)
    monkeypatch.setitem(cli.COMMANDS, 'fail', ('failing_command', ''))


@pytest.mark.parametrize(
    'error, line',
    [
        (ValueError('got 3'), 'got 3'),
        (PermissionError(13, 'Permission denied', 'out.json'), "[Errno 13] Permission denied: 'out.json'"),
        (OSError(28, 'No space left on device', 'x.pt'), "[Errno 28] No space left on device: 'x.pt'"),
        (OSError(), 'OSError'),
    ],
)
def test_errors_of_files_are_one_line(monkeypatch, capsys, error, line):
    raising(monkeypatch, error)
    assert cli.main(['fail']) == 1
    assert capsys.readouterr().err == f'llmshearing fail: {line}\n'


@pytest.mark.parametrize('module, name', cli.STORE_ERRORS)
def test_errors_of_stores_name_the_address(monkeypatch, capsys, module, name):
    """With the class in a stand-in for the client, whichever of them is installed."""
    kind = type(name, (Exception,), {})
    stand_in = type(sys)(module)
    setattr(stand_in, name, kind)
    for other, its_name in cli.STORE_ERRORS:
        if other == module and its_name != name:
            setattr(stand_in, its_name, type(its_name, (Exception,), {}))
    monkeypatch.setitem(sys.modules, module, stand_in)
    raising(monkeypatch, type('Special', (kind,), {})('Unable to reach the store'))
    assert cli.main(['fail', 's3://bucket/run/ep0.pt', '--option']) == 1
    assert capsys.readouterr().err == 'llmshearing fail: s3://bucket/run/ep0.pt: Unable to reach the store\n'


@pytest.mark.parametrize('module, name', cli.STORE_ERRORS)
def test_the_classes_of_the_stores_exist(module, name):
    """In the clients that are installed here."""
    assert issubclass(getattr(pytest.importorskip(module), name), Exception)


def test_faults_of_ours_keep_their_traceback(monkeypatch):
    raising(monkeypatch, TypeError('a fault'))
    with pytest.raises(TypeError, match='a fault'):
        cli.main(['fail'])


def test_no_client_is_imported_for_its_errors():
    code = (
        'import sys; from llmshearing.cli import store_errors; '
        'print(store_errors(), {"botocore", "torch"} & set(sys.modules))'
    )
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert process.stdout == '() set()\n'


def test_a_folder_for_a_file_is_one_line(tmp_path, capsys):
    points = [{'params': size, 'losses': {'web': size**-0.1}} for size in (1e7, 1e8, 1e9)]
    (tmp_path / 'points.json').write_text(json.dumps({'models': points}))
    fit = ['reference-losses', 'fit', str(tmp_path / 'points.json'), '--params', '1e9', '--output', str(tmp_path)]
    assert cli.main(fit) == 1
    error = capsys.readouterr().err
    assert f'--output: expected a file, and {tmp_path} is a folder' in error and error.count('\n') == 1


@pytest.mark.parametrize('written', ['~/x', '--out=~/x', '$HOME/x', '--out=${HOME}/x'])
def test_paths_in_arguments_mean_what_a_shell_means(written, monkeypatch, capsys):
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setattr(cli.importlib, 'import_module', lambda name: sys)
    monkeypatch.setattr(sys, 'main', lambda argv: print(*argv), raising=False)
    assert cli.main(['export', written, '--quiet', 'save_folder=~/x']) == 0
    option = '--out=' if '=' in written else ''
    assert capsys.readouterr().out == f'{option}/home/me/x --quiet save_folder=~/x\n'
    assert cli.main(['export', written.replace('HOME', 'NO_SUCH').replace('~', '~nobody-there')]) == 1
    assert capsys.readouterr().err.startswith(f'llmshearing export: {"--out" if option else "argument"}: ')


def test_export_from_a_store_without_credentials(monkeypatch, capsys, tmp_path):
    """The real client, which looks nowhere but in an empty environment and so never comes to a connection."""
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_PROFILE', 'S3_ENDPOINT_URL'):
        monkeypatch.delenv(name, raising=False)
    for name in ('AWS_SHARED_CREDENTIALS_FILE', 'AWS_CONFIG_FILE'):
        monkeypatch.setenv(name, str(tmp_path / 'none'))
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    address = 's3://bucket/run/ep0-ba2-rank0.pt'
    assert cli.main(['export', address, '--out', str(tmp_path / 'out')]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f'llmshearing export: {address}: Unable to locate credentials'
