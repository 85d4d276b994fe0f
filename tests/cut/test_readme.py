"""What the READMEs say of ``cut`` works as it stands, with a tiny model and a budget that fits it."""

import json
import re
import shlex
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from transformers import AutoModelForCausalLM

from llmshearing import cli
from tests.rotation.models import make_text
from tests.tiny_run import tiny_source

ROOT = Path(__file__).parents[2]
OUTPUT = Path('models/SmolLM2-80M')


@pytest.fixture
def place(tmp_path, monkeypatch):
    tiny_source(tmp_path / 'models' / 'SmolLM2-135M')
    lines = make_text(tmp_path / 'articles.jsonl', 300).read_text().splitlines()
    documents = [json.loads(line)['text'][3:] for line in lines]
    parquet.write_table(pyarrow.table({'text': documents}), tmp_path / 'code.parquet')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('readme', ['README.md', 'llmshearing/cut/README.md'])
def test_the_command_of_the_readme(place, readme, capsys):
    (command,) = re.findall(r'^llmshearing (cut .*)$', (ROOT / readme).read_text(), re.MULTILINE)
    words = shlex.split(command.replace('params=80M', 'params=40k multiple_of=8 tolerance=0.1'))
    assert cli.main(words) == 0
    assert AutoModelForCausalLM.from_pretrained(OUTPUT).num_parameters() <= 40_000
    out = capsys.readouterr().out
    assert 'articles' in out and 'code' in out


def test_the_python_of_the_readme(place, capsys):
    lines, imports = re.findall(r'```python\n(.*?)```', (ROOT / 'llmshearing/cut/README.md').read_text(), re.DOTALL)
    exec(imports + lines.replace("'80M'", "'40k', 'multiple_of': 8, 'tolerance': 0.1"), {})
    assert (OUTPUT / 'model.safetensors').exists() and 'tokens/s' in capsys.readouterr().out


def test_a_newcomer_sees_cut_then_search_then_the_run():
    text = (ROOT / 'README.md').read_text()
    places = [text.index(f'\n{command}') for command in ('llmshearing cut ', 'llmshearing search ', 'make demo')]
    assert places == sorted(places) and places[0] < text.index('| prepared data and GPUs | `llmshearing init')


def test_the_readme_stays_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 120
