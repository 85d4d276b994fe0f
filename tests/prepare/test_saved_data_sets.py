"""What the datasets library leaves on a disk: data sets as they were saved, conversations by columns, its cache."""

from __future__ import annotations

import json
import re
import shutil

import datasets
import pyarrow
import pytest

from llmshearing.prepare.pieces import read_pieces
from llmshearing.prepare.sources import find_sources
from llmshearing.prepare.spec import Domain
from llmshearing.prepare.worker import BadRecord
from tests.prepare.prepare_inputs import make_documents, parquet_of
from tests.prepare.test_fields import TURNS, chat, read  # noqa: F401  # a fixture
from tests.prepare.test_sources import _read, domain_at

TEXTS = make_documents(30, 1)
COLUMNS = {'role': ['user', 'assistant'], 'content': ['why', 'so']}


@pytest.mark.parametrize('form', ['arrow', 'numpy', 'pandas', 'torch'])
def test_a_data_set_saved_for_another_reader(tmp_path, form):
    """Its format, and the columns that this is for, are kept with it."""
    saved = datasets.Dataset.from_dict({'text': TEXTS, 'lists': [['a', 'b']] * len(TEXTS)})
    saved.set_format(form, columns=['lists'] if form == 'torch' else None)
    saved.save_to_disk(str(tmp_path / 'set'))
    assert _read(domain_at(tmp_path / 'set')) == TEXTS


def test_a_folder_that_describes_its_data_in_a_file_of_that_name(tmp_path):
    """As collections of instructions do."""
    (tmp_path / 'dataset_info.json').write_text(json.dumps({'one': {'file_name': 'one.jsonl'}}))
    (tmp_path / 'one.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in TEXTS))
    assert _read(domain_at(tmp_path, glob='*.jsonl')) == TEXTS
    with pytest.raises(ValueError, match='holds both record files .*one.jsonl.* and others .*dataset_info.json'):
        _read(domain_at(tmp_path))
    with pytest.raises(ValueError, match='is not a data set on disk .no dataset_dict.json, nor dataset_info.json bes'):
        _read(domain_at(tmp_path, format='hf'))


def test_the_cache_of_the_datasets_library_is_told_and_the_advice_works(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({'text': TEXTS}).save_to_disk(str(tmp_path / 'set'))
    (file,) = (tmp_path / 'set').glob('*.arrow')
    cache = tmp_path / 'cache' / 'one-default'
    cache.mkdir(parents=True)
    shutil.copy(file, cache / 'one-train.arrow')
    shutil.copy(tmp_path / 'set' / 'dataset_info.json', cache)
    for place in (cache, tmp_path / 'cache', cache / 'one-train.arrow'):
        with pytest.raises(ValueError, match='one-train.arrow is an Arrow file; write it') as error:
            _read(domain_at(place))
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'other'))
    monkeypatch.chdir(tmp_path)
    advice = re.search(r'with (datasets\.load_dataset.*)', str(error.value))[1]
    eval(advice, {'datasets': datasets})
    assert _read(domain_at('FOLDER')) == TEXTS


def test_a_conversation_with_a_list_for_each_key(chat):  # noqa: F811
    ((by_turn, _),) = read(chat, {'messages': TURNS})
    given = {'from': ['human', 'gpt'], 'value': ['why', 'so']}
    ((by_column, _), (shared, _)) = read(chat, {'messages': COLUMNS}, {'messages': given})
    assert by_column == shared == by_turn
    for odd in ({**COLUMNS, 'content': ['why']}, {'en': 'why', 'fr': 'quoi'}, {}):
        (bad,) = read(chat, {'messages': odd})
        assert isinstance(bad, BadRecord) and 'the text is a record of its own; set text_key to one of' in bad.reason
    (bad,) = read(chat, {'text': {'en': 'why', 'fr': 'quoi'}}, key='text')
    assert bad.reason.endswith('one of text.en, text.fr')


@pytest.mark.parametrize('kind', ['jsonl', 'parquet', 'hf'])
def test_what_stands_beside_a_conversation_is_told_once(tmp_path, caplog, kind):
    records = [{'conversations': TURNS, 'system': 'be short', 'id': number} for number in range(9)]
    if kind == 'jsonl':
        (tmp_path / 'a').write_text(''.join(json.dumps(record) + '\n' for record in records))
    elif kind == 'parquet':
        (tmp_path / 'a').write_bytes(parquet_of(records))
    else:
        datasets.Dataset(pyarrow.Table.from_pylist(records)).save_to_disk(str(tmp_path / 'a'))
    domain = Domain(kind, (str(tmp_path / 'a'),), text_key='conversations')
    for _ in range(2):
        list(read_pieces(domain, find_sources(domain), 100))
    (told,) = [record.getMessage() for record in caplog.records if 'is left out' in record.getMessage()]
    assert told.startswith(f"domains.{kind}: beside 'conversations' its records have 'system', which is left out;")
    caplog.clear()
    plain = Domain(f'plain {kind}', domain.path, text_key='id')
    list(read_pieces(plain, find_sources(plain), 100))
    assert not caplog.records
