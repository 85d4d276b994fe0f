"""The installed package: a complete wheel, entry points that load, commands that explain themselves."""

import ast
import importlib
import re
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path

import pytest

from llmshearing.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]


def test_the_wheel_works_outside_the_checkout(tmp_path):
    build = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--quiet',
        '--no-deps',
        '--no-build-isolation',
        '--wheel-dir',
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob('llmshearing-*.whl'))
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / 'llmshearing').rglob('*.py')}
    assert sources <= names
    (licence,) = (name for name in names if '.dist-info/' in name and name.endswith('/LICENSE'))
    assert zipfile.ZipFile(wheel).read(licence) == (ROOT / 'LICENSE').read_bytes()
    assert not [name for name in names if name.startswith(('tests/', 'yamls/', 'benchmarks/'))]
    zipfile.ZipFile(wheel).extractall(tmp_path / 'installed')
    script = (
        'import sys; sys.path.insert(0, "installed"); '
        'import llmshearing.cli, llmshearing.data.mixture; '
        'assert "installed" in llmshearing.__file__; sys.exit(llmshearing.cli.main(["--help"]))'
    )
    process = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert 'prepare' in process.stdout


def imported_libraries():
    for path in (ROOT / 'llmshearing').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module


def test_what_the_package_imports_is_what_it_asks_for():
    setup = ast.parse((ROOT / 'setup.py').read_text()).body[-1]
    (asked,) = (keyword.value for keyword in setup.value.keywords if keyword.arg == 'install_requires')
    asked = {re.split('[<>=]', text)[0].replace('-', '_').lower() for text in ast.literal_eval(asked)}
    of_module = packages_distributions()
    libraries = {name.split('.')[0] for name in imported_libraries()} - {*sys.stdlib_module_names, 'llmshearing'}
    missing = [name for name in libraries if not {d.replace('-', '_').lower() for d in of_module[name]} & asked]
    assert not missing


def test_every_entry_point_loads():
    ours = [
        point
        for group in (
            'llmfoundry_models',
            'llmfoundry_algorithms',
            'llmfoundry_callbacks',
            'llmfoundry_dataloaders',
            'llmfoundry_loggers',
            'llmfoundry_config_transforms',
            'console_scripts',
        )
        for point in entry_points(group=group)
        if point.value.startswith('llmshearing')
    ]
    assert len(ours) >= 8
    for point in ours:
        assert callable(point.load()), point


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_explains_itself(command, capsys):
    module = importlib.import_module(COMMANDS[command][0])
    with pytest.raises(SystemExit) as end:
        module.main(['--help'])
    assert end.value.code == 0
    assert 'usage' in capsys.readouterr().out


def test_every_module_says_what_it_offers():
    for path in (ROOT / 'llmshearing').rglob('*.py'):
        code = ast.parse(path.read_text(encoding='utf-8')).body[1:]  # after the docstring
        names = [ast.unparse(line.targets[0]) for line in code if isinstance(line, ast.Assign)]
        assert not code or '__all__' in names, path


def test_a_wrong_command_or_input_is_one_line(capsys):
    assert main(['prune-it']) == 2
    assert "unknown command 'prune-it'; one of: " in capsys.readouterr().err
    assert main(['prepare', '/no/such/spec.yaml']) == 1
    error = capsys.readouterr().err
    assert error.startswith('llmshearing prepare: ') and error.count('\n') == 1


def test_make_targets_build_their_environment_first(monkeypatch):
    for inherited in ('MAKEFLAGS', 'STACK', 'VENV', 'WORK', 'PYTHON'):  # by a make around it
        monkeypatch.delenv(inherited, raising=False)
    for target in ('demo', 'test'):
        plan = subprocess.run(
            ['make', '--no-print-directory', '-n', target, 'VENV=/tmp/no-such-environment'],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        lines = plan.stdout.splitlines()
        assert '-m venv /tmp/no-such-environment' in lines[0] and 'constraints/current.txt' in lines[1]
    ci = (ROOT / '.ci' / 'run').read_text()
    assert 'make lint types test' in ci
