"""The worked examples of the README are true: its files are written, its commands run, its outputs compared."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

import llmshearing.scaling
from llmshearing.cli import main
from tests.scaling.conftest import write_domains

README = Path(llmshearing.scaling.__file__).with_name('README.md').read_text(encoding='utf-8')
FILES = re.findall(r'```(?:json|csv) (\S+)\n(.*?)```', README, re.DOTALL)
EXAMPLES = [
    (example.splitlines()[0], '\n'.join(example.splitlines()[1:]) + '\n')
    for block in re.findall(r'```console\n(.*?)```', README, re.DOTALL)
    for example in block.split('$ llmshearing ')[1:]
]


@pytest.fixture
def workspace(tmp_path, monkeypatch, tiny_llama):
    """The README's files, a model in ``source`` and two domains in ``data/eval``."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES:
        Path(name).write_text(content, encoding='utf-8')
    tiny_llama().save_pretrained('source')
    write_domains()


def test_readme_examples(workspace, capsys):
    assert len(EXAMPLES) == 6 and len(FILES) == 4
    checker = doctest.OutputChecker()
    for command, expected in EXAMPLES:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
        output = capsys.readouterr().out
        told = f'$ {command}\nexpected:\n{expected}\ngot:\n{output}'
        assert checker.check_output(expected, output, doctest.ELLIPSIS), told
