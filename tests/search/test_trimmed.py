"""A pinned vocabulary: the source is trimmed first, on the text of the search, and that is searched."""

from __future__ import annotations

import json
import math
from statistics import mean

import pytest
from transformers import AutoTokenizer

from llmshearing import cli
from llmshearing.config.source import read_source
from llmshearing.cut.settings import CutSettings
from llmshearing.cut.text import read_texts
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.search import search_shapes as stages
from llmshearing.search import trimmed
from llmshearing.search.search_shapes import search_shapes
from llmshearing.search.settings import SearchSettings
from tests.vocabulary.sources import SIZES, make_source, make_text

KIND = 'byte-level'
CUT = {'tokens': 320, 'held_out': 80, 'seq_len': 20}
COMMON = {'candidates': 2, 'multiple_of': 8, 'tolerance': 0.1, 'uneven': 4.0}
BUDGET = '45K'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('search')
    make_source(folder / 'source', KIND)
    make_text(folder / 'text')
    return folder


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    monkeypatch.setattr(stages, 'speed_of', lambda *_: {'forward': 1000.0, 'generate': 100.0})


def run(place, output, source='source', **pins):
    text = [place / 'text' / 'pages.jsonl', place / 'text' / 'code.txt']
    settings = SearchSettings(**COMMON, pins=pins, cut=CutSettings(**CUT))
    return search_shapes(place / source, [BUDGET], text, output, settings, 'cpu')


def test_the_source_is_trimmed_once_and_searched(place, tmp_path, monkeypatch):
    result = run(place, tmp_path / 'search', vocab_size=400)
    folder = tmp_path / 'search' / 'trimmed-400'
    assert len(AutoTokenizer.from_pretrained(folder)) == 400
    record = json.loads((folder / 'vocabulary.json').read_text())
    assert sorted(record['tokens_per_byte']['before']) == ['code', 'pages']
    layout = layout_of(read_source(str(folder)))
    sizes = {count_parameters(layout, each.shape).total for each in result.candidates}
    assert sizes == {each.parameters for each in result.candidates}
    assert 0.9 * 45_000 <= min(sizes) <= max(sizes) <= 45_000
    said = '\n'.join(result.lines())
    assert f'with 400 of the {SIZES[KIND]} tokens of the source: {folder}' in said and 'prepare the data with' in said
    texts = read_texts(
        [place / 'text' / 'pages.jsonl', place / 'text' / 'code.txt'], folder, 400, 20, 320, 80, CutSettings(**CUT).seed
    )
    best = result.best(BUDGET)
    bits = [
        mean(losses[text.name] / math.log(2) / text.bytes_per_token for text in texts)
        for losses in (result.source_losses, best.losses)
    ]
    assert f'with those of another vocabulary: source {bits[0]:.3f}, cut {bits[1]:.3f}' in said
    monkeypatch.setattr(trimmed, 'trim_source', lambda *_, **__: pytest.fail('trimmed again'))
    monkeypatch.setattr(stages, 'Judge', lambda *_: pytest.fail('measured again'))
    assert run(place, tmp_path / 'search', vocab_size=400) == result
    make_source(place / 'other', KIND, hidden_size=96)
    with pytest.raises(ValueError, match='a search that differs in .*trimmed_from'):
        run(place, tmp_path / 'search', 'other', vocab_size=400)


def test_what_is_not_possible_is_said_before_any_work(place, tmp_path):
    with pytest.raises(ValueError, match='--pin vocab_size=64: .*260 tokens stay at any size'):
        run(place, tmp_path / 'search', vocab_size=64)
    with pytest.raises(ValueError, match='vocab_size=641 is not possible; a whole number from 1 to 640'):
        run(place, tmp_path / 'search', vocab_size=641)
    with pytest.raises(ValueError, match='hidden_size=4800'):
        run(place, tmp_path / 'search', vocab_size=400, hidden_size=4800)
    assert not (tmp_path / 'search' / 'trimmed-400').exists()
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'file').write_text('')
    with pytest.raises(ValueError, match='exists already and holds no search'):
        run(place, tmp_path / 'other', vocab_size=400)
    assert [path.name for path in (tmp_path / 'other').iterdir()] == ['file']


def test_the_command(place, tmp_path, capsys):
    shapes = ['--candidates', '1', '--multiple-of', '8', '--tolerance', '0.1', '--uneven', '4', '--seq-len', '20']
    where = ['--text', str(place / 'text' / 'pages.jsonl'), '--output', str(tmp_path / 'out'), '--device', 'cpu']
    pin = ['--pin', 'vocab_size=400']
    assert cli.main(['search', str(place / 'source'), '--params', BUDGET, *where, *shapes, *pin]) == 0
    assert 'bits per byte, which compare' in capsys.readouterr().out
