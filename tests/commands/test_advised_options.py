"""Options and commands that texts of this package name are there: in messages, documentation and help."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
from pathlib import Path

import pytest

import llmshearing
from llmshearing import cli

PACKAGE = Path(llmshearing.__file__).parent
OPTION = r'(?<![\w-])--[a-z][a-z-]+'
# Of other programs: pip, the clients of the hub, zstd, Composer's launcher.
OTHERS = set('--dest --no-deps --only-binary --local-dir --long --private --stdout --stderr --verbose'.split())


def strings(node: ast.AST):
    """Whole texts, with {} for what is put in."""
    if isinstance(node, ast.JoinedStr):
        yield ''.join(part.value if isinstance(part, ast.Constant) else '{}' for part in node.values)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from strings(child)


@pytest.fixture(scope='module')
def helps() -> dict[str, str]:
    """What every command prints with --help, its subcommands' help included."""
    return {name: printed_by(module) for name, (module, _) in cli.COMMANDS.items()}


def printed_by(module: str, *subcommand: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        importlib.import_module(module).main([*subcommand, '--help'])
    text = out.getvalue()
    others = re.search(r'^positional arguments:\n  \{([\w,-]+)\}', text, re.MULTILINE)
    if subcommand or others is None:
        return text
    return text + ''.join(printed_by(module, name) for name in others[1].split(','))


def test_every_command_has_its_own_help(helps):
    assert all(len(text) > 200 and f'llmshearing {name}' in text for name, text in helps.items())


def test_an_option_that_takes_several_values_may_be_given_again():
    for path in sorted((PACKAGE / 'commands').glob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'add_argument':
                settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if settings.get('nargs') == "'+'" and ast.unparse(node.args[0]).startswith("'--"):
                    assert settings.get('action') == "'extend'", (path.name, ast.unparse(node.args[0]))


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_options_that_a_text_names_are_there(path, helps):
    known = {option for text in helps.values() for option in re.findall(OPTION, text)} | OTHERS
    for text in strings(ast.parse(path.read_text(encoding='utf-8'))):
        assert set(re.findall(OPTION, text)) <= known, text
        for line in re.findall(r'`llmshearing ([^`]+)`', text):  # with options of the command that it names
            command, *rest = line.split()
            assert command in {*helps, 'COMMAND', '--help'}, text
            assert set(re.findall(OPTION, ' '.join(rest))) <= set(re.findall(OPTION, helps.get(command, ''))), text
