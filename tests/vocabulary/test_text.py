"""Counting: every token of the passages that are not held out, whatever form the text has."""

from __future__ import annotations

import json

import numpy as np
import pytest
from streaming import MDSWriter
from transformers import AutoTokenizer

from llmshearing.prepare.beginning import mds_or_text
from llmshearing.prepare.tokenizer import plan_tokenizer
from llmshearing.scaling.measure import find_domains
from llmshearing.vocabulary import text as module
from llmshearing.vocabulary.text import count_tokens, find_texts
from tests.vocabulary.sources import make_text, make_tokenizer


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp('count')
    make_tokenizer('byte-level').save_pretrained(place / 'tokenizer')
    make_text(place / 'text')
    return place


def count(folder, data, **settings):
    name = folder / 'tokenizer'
    tokenizer, plan = AutoTokenizer.from_pretrained(name), plan_tokenizer(str(name), None, None)
    return count_tokens(find_texts([data]), tokenizer, plan, **settings), tokenizer


def test_counts_and_held_out_passages_are_the_text(folder):
    (code, pages), tokenizer = count(folder, folder / 'text')
    assert (code.name, pages.name) == ('code', 'pages')
    lines = [json.loads(line)['text'] for line in (folder / 'text' / 'pages.jsonl').read_text().splitlines()]
    assert pages.held_out == lines[7::8] and pages.size == sum(len(line.encode()) for line in pages.held_out)
    expected = [number for at, line in enumerate(lines) if at % 8 != 7 for number in tokenizer(line)['input_ids']]
    assert [int(count) for count in pages.counts] == [expected.count(number) for number in range(640)]
    whole = (folder / 'text' / 'code.txt').read_text()
    assert code.held_out == [whole[4096:8192]]  # of two passages the last one, which is counted as well
    assert int(code.counts.sum()) == sum(len(tokenizer(whole[at : at + 4096])['input_ids']) for at in (0, 4096))


def test_one_file_is_a_domain_and_no_more_is_read_than_wanted(folder):
    ((domain,), _) = count(folder, folder / 'text' / 'code.txt', limit=100)
    assert domain.name == 'code' and domain.held_out == [(folder / 'text' / 'code.txt').read_text()[:100]]


def test_several_files_and_folders_are_domains_of_one_text(folder, tmp_path):
    (tmp_path / 'void').mkdir()
    code, pages = folder / 'text' / 'code.txt', folder / 'text' / 'pages.jsonl'
    assert find_texts([code, str(pages)]) == {'code': [code], 'pages': [pages]} == find_texts([folder / 'text'])
    with pytest.raises(ValueError, match=f'--data {tmp_path}/void: the folder is empty'):
        find_texts([code, tmp_path / 'void'])


def test_what_is_held_out_has_an_end(folder, monkeypatch):
    monkeypatch.setattr(module, 'HELD_OUT_BYTES', 1)
    ((domain,), _) = count(folder, folder / 'text' / 'pages.jsonl')
    assert len(domain.held_out) == 1


def test_text_of_another_field_is_named(folder, tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"content": "x y"}\n')
    with pytest.raises(ValueError, match='--data .*--text-key'):
        count(folder, tmp_path)
    ((domain,), _) = count(folder, tmp_path, text_key='content')
    assert domain.counts.sum() == 3  # x, a blank, y
    (tmp_path / 'a.jsonl').write_text('\n')
    with pytest.raises(ValueError, match='--data'):
        count(folder, tmp_path)


def test_hidden_folders_are_unfinished(tmp_path):
    for name in ('continue/web', '.prepare/x.shards/continue', 'continue/.web.old'):
        write_mds(tmp_path / name)
    assert find_texts([tmp_path]) == {'web': [tmp_path / 'continue' / 'web']}
    assert find_domains(tmp_path, 'continue') == {'web': tmp_path / 'continue' / 'web'}
    assert mds_or_text(tmp_path) == ([tmp_path / 'continue' / 'web'], [])


def write_mds(folder):
    with MDSWriter(out=str(folder), columns={'tokens': 'ndarray:uint32'}) as writer:
        writer.write({'tokens': np.arange(8, dtype=np.uint32)})
