"""Which files and folders are read, which settings mean something for them, and what is refused by name."""

from __future__ import annotations

import dataclasses
import json
import re
import tarfile
from pathlib import Path

import datasets
import pytest
from streaming import MDSWriter

from llmshearing.prepare.sources import find_sources
from llmshearing.prepare.stages import find_input
from tests.prepare.formats import (
    TEXTS,
    _jsonl,
    _parquet,
    _read,
    _saved,
    _saved_splits,
    a_list_with_indents,
    domain_at,
    lines,
)
from tests.prepare.prepare_inputs import write_jsonl


def test_a_separator_that_is_nowhere_is_refused(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'one\r\n\r\ntwo\r\n')
    (tmp_path / 'b.txt').write_bytes(b'three')
    domain = domain_at(tmp_path / '*.txt', separator='\n\n')
    with pytest.raises(ValueError, match=r'nowhere in .*a.txt; its lines end with "\\r\\n"; correct it'):
        _read(domain)
    with pytest.raises(ValueError, match=r"domains.d.separator is '\\n\\n', which is nowhere in .*b.txt; correct it"):
        _read(dataclasses.replace(domain, path=(str(tmp_path / 'b.txt'),)))
    assert _read(dataclasses.replace(domain, separator='\r\n\r\n')) == ['one', 'two\r\n', 'three']


def test_one_file_with_other_line_ends_is_not_one_document(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'one\n\ntwo\n\n')
    (tmp_path / 'b.txt').write_bytes(b'three\r\n\r\nfour\r\n')
    (tmp_path / 'c.txt').write_bytes(b'five')  # a single document is none of these
    with pytest.raises(ValueError, match=r'nowhere in .*b.txt; its lines end with "\\r\\n"'):
        _read(domain_at(tmp_path / '*.txt', separator='\n\n'))
    assert _read(domain_at(tmp_path / '[ac].txt', separator='\n\n')) == ['one', 'two', 'five']


def test_folders_that_a_pattern_matches_are_told(tmp_path):
    write_jsonl(tmp_path / 'a.jsonl', TEXTS[:2])
    write_jsonl(tmp_path / 'sub' / 'b.jsonl', TEXTS[2:])
    skipped = {}
    find_sources(domain_at(tmp_path / '*'), skipped)
    ((reason, paths),) = skipped.items()
    assert 'of which a pattern takes none' in reason and paths == [str(tmp_path / 'sub')]
    assert len(_read(domain_at(tmp_path / '**'))) == len(TEXTS)
    (tmp_path / 'a.jsonl').unlink()
    with pytest.raises(ValueError, match='matches folders alone, such as .*sub; name .*, or end .* with /\\*\\*'):
        _read(domain_at(tmp_path / '*'))


@pytest.mark.parametrize('kind', ['hf', 'mds'])
def test_a_folder_of_data_sets_is_no_folder_of_text(tmp_path, kind):
    if kind == 'hf':
        datasets.Dataset.from_dict({'text': TEXTS}).save_to_disk(str(tmp_path / 'sets' / 'one'))
    else:
        with MDSWriter(out=str(tmp_path / 'sets' / 'one'), columns={'text': 'str'}) as writer:
            for text in TEXTS:
                writer.write({'text': text})
    with pytest.raises(ValueError, match='holds data sets, such as .*one, whose files are no text; list each'):
        _read(domain_at(tmp_path / 'sets'))
    assert _read(domain_at(tmp_path / 'sets' / 'one')) == TEXTS


def test_a_folder_of_record_files(tmp_path):
    write_jsonl(tmp_path / 'x' / '1.jsonl', TEXTS[:5])
    write_jsonl(tmp_path / 'x' / '2.jsonl', TEXTS[5:])
    assert _read(domain_at(tmp_path)) == TEXTS
    (tmp_path / 'README').write_text('about')
    with pytest.raises(ValueError, match='both record files .* and others .*README.*; choose with glob'):
        find_sources(domain_at(tmp_path))
    assert len(find_sources(domain_at(tmp_path, glob='**/*.jsonl'))) == 2
    assert _read(domain_at(tmp_path, format='folder'))[0] == 'about'


@pytest.mark.parametrize('make', [_jsonl, _parquet, _saved])
def test_wrong_text_key(tmp_path, make):
    domain = make(tmp_path)
    with pytest.raises(ValueError, match=r"domains.d: .* has no 'txt', only id, (text|body); set text_key"):
        _read(dataclasses.replace(domain, text_key='txt'))


@pytest.mark.parametrize(
    ('domain', 'words'),
    [
        (domain_at('none.jsonl'), "domains.d: 'none.jsonl' does not exist; relative paths start at"),
        (domain_at('no*.jsonl'), "'no*.jsonl' matches no file"),
        (domain_at('file.dat'), 'cannot be told from its name or content; set format'),
        (domain_at('shards.tar.gz'), r'cannot be read as text \(it holds NUL bytes.*unpack an archive'),
        (domain_at('data.arrow'), r'data.arrow is an Arrow file; write it as a data set first, with datasets'),
        (domain_at('records.txt'), "records.txt has no 'text', only body; set text_key to the one"),
        (domain_at('*.txt'), 'more.txt has no .text., only body; set text_key .*, or format: txt'),
        (domain_at('tables'), 'a.csv is a table, .*; write it as JSON lines'),
        (domain_at('tables/b.csv'), 'b.csv is a table'),
        (domain_at('file.dat', format='hf'), 'is a file; format hf reads a folder'),
        (domain_at('empty'), "'empty' holds no file"),
        (domain_at('full', glob='*.c'), "'full' holds no file that matches glob '*.c'"),
        (domain_at('full', format='hf'), 'is not a data set on disk'),
        (domain_at('array.json'), "array.json has no 'text', only id, meta, meta.body; set text_key"),
        (domain_at('nested.json'), "only data; its records are in the list 'data': .* jq -c '.data\\[\\]' FILE"),
        (domain_at('full', format='mds'), 'full has no index.json: it is not an MDS folder'),
        (domain_at('array.json', format='parquet'), 'format is parquet, but array.json is no Parquet file; set'),
        (domain_at('ds'), 'has the splits train, test; set hf_split'),
        (domain_at('ds', hf_split='dev'), "hf_split is 'dev'; ds has train, test"),
        (domain_at('full', hf_split='dev'), "d.hf_split is 'dev', which is for data sets of .* read as plain text"),
        (domain_at('full', text_key='body'), "text_key is 'body', which is for records, .* read as plain text; rem"),
        (domain_at('full/a.txt', glob='*.txt'), "glob is '*.txt', which is for folders of files, but"),
        (domain_at('ds', glob='*.arrow', hf_split='test'), 'glob is .* what was found is read as a Hugging Face'),
        (domain_at('array.json', text_key='id', separator='%'), "separator is '%', which is for plain text .* JSON"),
        (domain_at('full', format='folder', separator='%'), 'separator is .* read as files that are a document each'),
    ],
)
def test_unusable_paths(tmp_path, monkeypatch, domain, words):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    Path('full').mkdir()
    Path('full/a.txt').write_text('a')
    Path('file.dat').write_text('a')
    for name in ('records', 'more'):
        Path(f'{name}.txt').write_text('{"body": "a b c"}\n' * 9)
    for name in ('tables/a.csv', 'tables/b.csv', 'mixed/a.csv', 'mixed/b.py'):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('id,text\n0,a b\n')
    assert _read(domain_at('records.txt', format='txt')) and len(_read(domain_at('mixed'))) == 2
    Path('array.json').write_text(json.dumps([{'id': 1, 'meta': {'body': 'a'}}], indent=1))
    Path('nested.json').write_text(json.dumps({'data': [{'text': 'a'}, {'text': 'b'}]}))
    Path('data.arrow').write_bytes(b'ARROW1\0\0')
    with tarfile.open('shards.tar.gz', 'w:gz') as archive:
        archive.add('array.json')
    _saved_splits(tmp_path)
    with pytest.raises(ValueError) as error:
        _read(domain)
    assert words in str(error.value) or re.search(words, str(error.value))


def test_what_is_not_read_is_counted_and_shown(tmp_path, caplog):
    write_jsonl(tmp_path / 'in' / 'a.jsonl', TEXTS)
    for name in ('.cache/x.jsonl', '.cache/y.jsonl', '_SUCCESS', 'README.md'):
        (tmp_path / 'in' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'in' / name).touch()
    (tmp_path / 'in' / 'lost.jsonl').symlink_to(tmp_path / 'nowhere')
    item = find_input(domain_at(tmp_path / 'in', glob='[!R]*'))
    folder = str(tmp_path / 'in')
    assert item.skipped == {
        'hidden': [f'{folder}/.cache/x.jsonl', f'{folder}/.cache/y.jsonl'],
        "not matched by glob '[!R]*'": [f'{folder}/README.md'],
        'empty': [f'{folder}/_SUCCESS'],
        'links to nothing or no files': [f'{folder}/lost.jsonl'],
    }
    assert 'domains.d: not all files are read: 2 hidden, such as ' in caplog.text and len(caplog.records) == 1
    assert [source.path for source in item.sources] == [f'{folder}/a.jsonl']


def test_json_of_a_source_tree_is_a_document_like_the_others(tmp_path):
    (tmp_path / 'a.py').write_text('import json')
    (tmp_path / 'package.json').write_bytes(a_list_with_indents({'name': 'x'}))
    (tmp_path / 'rows.json').write_bytes(lines([{'a': 1}, {'a': 2}]))
    assert _read(domain_at(tmp_path)) == ['import json', '{\n  "name": "x"\n}', '{"a": 1}\n{"a": 2}\n']
    (tmp_path / 'a.py').unlink()
    with pytest.raises(ValueError, match="package.json has no 'text', only name; set text_key .* or format: folder"):
        find_sources(domain_at(tmp_path))
    assert len(_read(domain_at(tmp_path, format='folder'))) == 2


def test_token_ids_are_no_text(tmp_path):
    with MDSWriter(out=str(tmp_path), columns={'tokens': 'bytes'}) as writer:
        writer.write({'tokens': b'12345678'})
    with pytest.raises(ValueError, match='holds token ids already; name its folders as domains of dynamic_text'):
        _read(domain_at(tmp_path))


def test_a_folder_of_empty_files_alone_goes_by_any_setting(tmp_path):
    """Without a document in sight no setting is wrong; the domain that has none is refused later, as without it."""
    (tmp_path / 'a.txt').touch()
    skipped: dict[str, list[str]] = {}
    for settings in ({'separator': '---'}, {'text_key': 'body'}, {'glob': '*.txt'}):
        assert find_sources(domain_at(tmp_path, **settings), skipped) == []
    assert skipped['empty'] == [str(tmp_path / 'a.txt')] * 3
