"""What the README says of ``search`` works as it stands, with a tiny model and a budget that fits it."""

import re
import shlex
from pathlib import Path

from llmshearing import cli
from tests.cut.test_readme import place as place

ROOT = Path(__file__).parents[2]
README = ROOT / 'llmshearing' / 'search' / 'README.md'
SMALLER = ' --params 40k --candidates 2 --multiple-of 8 --tolerance 0.1 --uneven 3'


def test_both_readmes_have_the_same_command():
    (whole,) = re.findall(r'^llmshearing search .*$', (ROOT / 'README.md').read_text(), re.MULTILINE)
    assert whole in README.read_text()


def test_the_command_of_the_readme(place, capsys):
    (command,) = re.findall(r'^llmshearing (search .*)$', README.read_text(), re.MULTILINE)
    assert cli.main(shlex.split(command.replace(' --params 80M', SMALLER))) == 0
    assert '40k: the best is L' in capsys.readouterr().out
    assert (place / 'search' / 'loss.svg').is_file()


def test_the_python_of_the_readme(place, capsys):
    lines, imports = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
    smaller = 'from llmshearing.search.settings import SearchSettings\n'
    settings = "'search', SearchSettings(candidates=2, multiple_of=8, tolerance=0.1, uneven=3.0))"
    exec(imports + smaller + lines.replace("'80M'", "'40k'").replace("'search')", settings), {})
    assert 'the best is L' in capsys.readouterr().out
