"""Every format gives the same documents, in pieces of any size; broken files are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from llmshearing.prepare import sources as prepare_sources
from llmshearing.prepare.sources import find_sources, read_pieces
from llmshearing.prepare.spec import Domain
from llmshearing.prepare.worker import BadRecord, read_documents
from tests.prepare.prepare_inputs import make_documents, write_jsonl

TEXTS = [*make_documents(40, 1), 'line one\nline two\r\n', '  leading', 'x' * 5000]


def _read(domain: Domain, piece_bytes: int = 1000) -> list:
    pieces = list(read_pieces(domain, find_sources(domain), piece_bytes))
    documents = [d for piece in pieces for d in read_documents(piece, domain.text_key, domain.separator)]
    return [d if isinstance(d, BadRecord) else d[0] for d in documents]


def _jsonl(folder):
    return Domain('d', (write_jsonl(folder / 'a.jsonl', TEXTS),))


def _gz(folder):
    data = Path(write_jsonl(folder / 'a.jsonl', TEXTS, 'content')).read_bytes()
    (folder / 'b.jsonl.gz').write_bytes(gzip.compress(data[:3000]) + gzip.compress(data[3000:]))  # two members
    return Domain('d', (str(folder / 'b.jsonl.gz'),), text_key='content')


def _zst(folder):
    data = Path(write_jsonl(folder / 'a.jsonl', TEXTS)).read_bytes()
    frames = [pyarrow.compress(part, codec='zstd', asbytes=True) for part in (data[:3000], data[3000:])]
    (folder / 'b.jsonl.zst').write_bytes(b''.join(frames))
    return Domain('d', (str(folder / 'b.jsonl.zst'),))


def _parquet(folder):
    table = pyarrow.table({'id': range(len(TEXTS)), 'body': TEXTS})
    parquet.write_table(table, folder / 'a.parquet', row_group_size=7)
    return Domain('d', (str(folder / '*.parquet'),), text_key='body')


def _tree(folder):
    for i, text in enumerate(TEXTS):
        path = folder / f'{i // 9:02}' / f'{i:02}.py'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    (folder / '.hidden').write_text('not this')
    (folder / 'zz.md').write_text('nor this')
    return Domain('d', (str(folder),), glob='**/*.py')


def _txt(folder):
    names = []
    for i, text in enumerate(TEXTS):
        names.append(str(folder / f'{i:03}.txt'))
        Path(names[-1]).write_bytes(text.encode())
    return Domain('d', tuple(names))


def _separated(folder):
    (folder / 'all.txt').write_bytes('<|end|>'.join(TEXTS).encode())
    return Domain('d', (str(folder / 'all.txt'),), separator='<|end|>')


def _saved(folder):
    datasets.Dataset.from_dict({'id': range(len(TEXTS)), 'text': TEXTS}).save_to_disk(str(folder / 'ds'))
    return Domain('d', (str(folder / 'ds'),))


def _saved_splits(folder):
    parts = {'train': datasets.Dataset.from_dict({'text': TEXTS}), 'test': datasets.Dataset.from_dict({'text': ['no']})}
    datasets.DatasetDict(parts).save_to_disk(str(folder / 'ds'))
    return Domain('d', (str(folder / 'ds'),), hf_split='train')


def _several(folder):
    paths = [write_jsonl(folder / f'{i}.jsonl', TEXTS[i * 11 : (i + 1) * 11]) for i in range(4)]
    return Domain('d', (paths[0], str(folder / '[12].jsonl'), paths[3]))


@pytest.mark.parametrize('piece_bytes', [64, 1000, 1 << 20])
@pytest.mark.parametrize(
    'make', [_jsonl, _gz, _zst, _parquet, _tree, _txt, _separated, _saved, _saved_splits, _several]
)
def test_documents_of_every_format(tmp_path, make, piece_bytes):
    assert _read(make(tmp_path), piece_bytes) == TEXTS


@pytest.mark.parametrize('piece_bytes', range(1, 12))
def test_separators_that_overlap_themselves(tmp_path, piece_bytes):
    text = 'a\n\n\nb\n\n\n\n\nc\n\nd\n'
    (tmp_path / 'a.txt').write_text(text)
    expected = [part for part in text.split('\n\n') if part and not part.isspace()]
    assert _read(Domain('d', (str(tmp_path / 'a.txt'),), separator='\n\n'), piece_bytes) == expected


def test_a_folder_of_record_files(tmp_path):
    write_jsonl(tmp_path / 'x' / '1.jsonl', TEXTS[:5])
    write_jsonl(tmp_path / 'x' / '2.jsonl', TEXTS[5:])
    assert _read(Domain('d', (str(tmp_path),))) == TEXTS
    (tmp_path / 'README').write_text('about')
    with pytest.raises(ValueError, match='both record files .* and others .*README.*; choose with glob'):
        find_sources(Domain('d', (str(tmp_path),)))
    assert len(find_sources(Domain('d', (str(tmp_path),), glob='**/*.jsonl'))) == 2
    assert _read(Domain('d', (str(tmp_path),), format='folder'))[0] == 'about'


def test_bad_records_have_a_file_and_a_number(tmp_path):
    lines = [
        b'{"text": "one"}',
        b'{"text": "broken',
        b'',
        b'{"txt": "two"}',
        b'[1]',
        b'{"text": null}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'   ',
        b'{"text": "three"}',
        b'7',
    ]
    path = tmp_path / 'a.jsonl'
    path.write_bytes(b'\n'.join(lines))
    for piece_bytes in (1, 30, 1000):
        found = _read(Domain('d', (str(path),)), piece_bytes)
        assert [f for f in found if isinstance(f, str)] == ['one', 'three']
        bad = [f for f in found if not isinstance(f, str)]
        assert [b.number for b in bad] == [2, 4, 5, 6, 7, 8, 11] and {b.path for b in bad} == {str(path)}
        reasons = ['Unterminated string', "no 'text'", 'got list', 'NoneType', 'utf-8', 'surrogates', 'got int']
        assert all(reason in b.reason for reason, b in zip(reasons, bad))


def test_binary_file_in_a_folder_is_a_bad_record(tmp_path):
    (tmp_path / 'a.dat').write_bytes(b'\xff\xfe\x00')
    (tmp_path / 'b.dat').write_text('fine')
    bad, good = _read(Domain('d', (str(tmp_path),)))
    assert good == 'fine' and bad.path == str(tmp_path / 'a.dat') and 'utf-8' in bad.reason


@pytest.mark.parametrize('name', ['b.jsonl.gz', 'b.jsonl.zst'])
def test_truncated_and_broken_files(tmp_path, name):
    domain = (_gz if name.endswith('gz') else _zst)(tmp_path)
    data = (tmp_path / name).read_bytes()
    for broken in (data[:-9], data[:40] + b'garbage' + data[47:]):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=f'{name} is broken or truncated .*; fetch it again'):
            _read(domain)


def test_truncated_parquet(tmp_path):
    domain = _parquet(tmp_path)
    data = (tmp_path / 'a.parquet').read_bytes()
    (tmp_path / 'a.parquet').write_bytes(data[:-20])
    with pytest.raises(ValueError, match='a.parquet cannot be read .*; fetch it again'):
        _read(domain)


@pytest.mark.parametrize('make', [_jsonl, _parquet, _saved])
def test_wrong_text_key(tmp_path, make):
    domain = make(tmp_path)
    with pytest.raises(ValueError, match=r"domains.d: .* has no 'txt', only id, (text|body); set text_key"):
        _read(Domain('d', domain.path, text_key='txt'))


@pytest.mark.parametrize(
    ('domain', 'words'),
    [
        (Domain('d', ('none.jsonl',)), "domains.d: 'none.jsonl' does not exist; relative paths start at"),
        (Domain('d', ('no*.jsonl',)), "'no*.jsonl' matches no file"),
        (Domain('d', ('file.dat',)), 'cannot be told from its name; set format'),
        (Domain('d', ('file.dat',), format='hf'), 'is a file; format hf reads a folder'),
        (Domain('d', ('empty',)), "'empty' holds no file"),
        (Domain('d', ('full',), glob='*.c'), "'full' holds no file that matches glob '*.c'"),
        (Domain('d', ('full',), format='hf'), 'is not a data set on disk'),
        (Domain('d', ('array.json',)), 'array.json holds a JSON array; expected one object a line'),
        (Domain('d', ('ds',)), 'has the splits train, test; set hf_split'),
        (Domain('d', ('ds',), hf_split='dev'), "hf_split is 'dev'; ds has train, test"),
    ],
)
def test_unusable_paths(tmp_path, monkeypatch, domain, words):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    Path('full').mkdir()
    Path('full/a.txt').write_text('a')
    Path('file.dat').write_text('a')
    Path('array.json').write_text(json.dumps([{'text': 'a'}], indent=1))
    _saved_splits(tmp_path)
    with pytest.raises(ValueError) as error:
        _read(domain)
    assert words in str(error.value)


def test_a_line_longer_than_a_piece_is_searched_once(tmp_path, monkeypatch):
    write_jsonl(tmp_path / 'a.jsonl', ['y' * (1 << 20), 'z'])
    searched = 0

    class Counting(bytearray):
        def rfind(self, separator, start):
            nonlocal searched
            searched += len(self) - start
            return super().rfind(separator, start)

    monkeypatch.setattr(prepare_sources, 'bytearray', Counting, raising=False)
    assert len(_read(Domain('d', (str(tmp_path / 'a.jsonl'),)), 1 << 12)) == 2
    assert 1 << 20 <= searched < 1.1 * (1 << 20)
