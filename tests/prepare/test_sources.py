"""Every format gives the same documents, in pieces of any size; broken files are named."""

from __future__ import annotations

import bz2
import codecs
import dataclasses
import gzip
import json
import lzma
import re
import subprocess
import tarfile
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet
from streaming import MDSWriter

from llmshearing.prepare import pieces
from llmshearing.prepare.beginning import read_beginning
from llmshearing.prepare.contents import HEAD
from llmshearing.prepare.pieces import read_pieces
from llmshearing.prepare.sources import find_sources
from llmshearing.prepare.spec import Domain
from llmshearing.prepare.stages import find_input
from llmshearing.prepare.worker import BadRecord, read_documents
from tests.prepare.prepare_inputs import make_documents, parquet_of, write_jsonl

TEXTS = [*make_documents(40, 1), 'line one\nline two\r\n', '  leading', 'x' * 5000]


def _read(domain: Domain, piece_bytes: int = 1000) -> list:
    found = read_pieces(domain, find_sources(domain), piece_bytes)
    documents = [d for piece in found for d in read_documents(piece, domain.text_key, domain.separator)]
    return [d if isinstance(d, BadRecord) else d[0] for d in documents]


def domain_at(*paths: Path | str, **settings) -> Domain:
    return Domain('d', tuple(map(str, paths)), **settings)


def _jsonl(folder):
    return domain_at(write_jsonl(folder / 'a.jsonl', TEXTS))


def _gz(folder):
    data = Path(write_jsonl(folder / 'a.jsonl', TEXTS, 'content')).read_bytes()
    (folder / 'b.jsonl.gz').write_bytes(gzip.compress(data[:3000]) + gzip.compress(data[3000:]))  # two members
    return domain_at(folder / 'b.jsonl.gz', text_key='content')


def _zst(folder):
    data = Path(write_jsonl(folder / 'a.jsonl', TEXTS)).read_bytes()
    (folder / 'b.jsonl.zst').write_bytes(zstd(data[:3000]) + zstd(data[3000:]))  # two frames
    return domain_at(folder / 'b.jsonl.zst')


def _parquet(folder):
    table = pyarrow.table({'id': range(len(TEXTS)), 'body': TEXTS})
    parquet.write_table(table, folder / 'a.parquet', row_group_size=7)
    return domain_at(folder / '*.parquet', text_key='body')


def _tree(folder):
    for i, text in enumerate(TEXTS):
        path = folder / f'{i // 9:02}' / f'{i:02}.py'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    (folder / '.hidden').write_text('not this')
    (folder / 'zz.md').write_text('nor this')
    return domain_at(folder, glob='**/*.py')


def _txt(folder):
    paths = [folder / f'{i:03}.txt' for i in range(len(TEXTS))]
    for path, text in zip(paths, TEXTS):
        path.write_bytes(text.encode())
    return domain_at(*paths)


def _separated(folder):
    (folder / 'all.txt').write_bytes('<|end|>'.join(TEXTS).encode())
    return domain_at(folder / 'all.txt', separator='<|end|>')


def _saved(folder):
    datasets.Dataset.from_dict({'id': range(len(TEXTS)), 'text': TEXTS}).save_to_disk(str(folder / 'ds'))
    return domain_at(folder / 'ds')


def _saved_splits(folder):
    parts = {'train': datasets.Dataset.from_dict({'text': TEXTS}), 'test': datasets.Dataset.from_dict({'text': ['no']})}
    datasets.DatasetDict(parts).save_to_disk(str(folder / 'ds'))
    return domain_at(folder / 'ds', hf_split='train')


def _several(folder):
    paths = [write_jsonl(folder / f'{i}.jsonl', TEXTS[i * 11 : (i + 1) * 11]) for i in range(4)]
    return domain_at(paths[0], folder / '[12].jsonl', paths[3])


def _records() -> list[dict]:
    return [{'id': i, 'text': text} for i, text in enumerate(TEXTS)]


def lines(records) -> bytes:
    return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode()


def a_list_with_indents(records) -> bytes:
    return json.dumps(records, indent=2, ensure_ascii=False).encode()


def pzstd_lines(records) -> bytes:
    """A frame that says the size of the next, before each, as the parallel compressor writes it."""
    frames = [zstd(lines([record])) for record in records]
    sizes = (b'\x50\x2a\x4d\x18' + bytes([4, 0, 0, 0]) + len(frame).to_bytes(4, 'little') for frame in frames)
    return b''.join(size + frame for size, frame in zip(sizes, frames))


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec='zstd', asbytes=True)


def marked(data: bytes) -> bytes:
    return b''.join(codecs.BOM_UTF8 + line for line in data.splitlines(keepends=True))


# Names and contents of record files as people have them.
BY_CONTENT = {
    'lines-in-json': ('c4-train.{:05}-of-00002.json', lines),
    'list': ('{}.json', lambda records: json.dumps(records).encode()),
    'list-with-indents': ('{}.json', a_list_with_indents),
    'objects-over-lines': ('{}.json', lambda records: '\n'.join(json.dumps(one, indent=2) for one in records).encode()),
    'list-in-jsonl': ('{}.jsonl', a_list_with_indents),
    'lines-without-ending': ('part-{:05}', lines),
    'gzip-without-ending': ('part-{:05}', lambda records: gzip.compress(lines(records))),
    'zstd-in-jsonl': ('{}.jsonl', lambda records: zstd(lines(records))),
    'pzstd': ('{}.jsonl.zst', pzstd_lines),
    'bz2-list': ('{}.data', lambda records: bz2.compress(json.dumps(records).encode())),
    'xz': ('{}.jsonl.xz', lambda records: lzma.compress(lines(records))),
    'lines-in-gz': ('{}.jsonl.gz', lines),  # unpacked by a downloader that kept the name
    'mark': ('{}.jsonl', lambda records: codecs.BOM_UTF8 + lines(records)),
    'mark-in-every-line': ('{}.json', lambda records: marked(lines(records))),
    'utf-16': ('{}.jsonl', lambda records: codecs.BOM_UTF16_BE + lines(records).decode().encode('utf-16-be')),
    'utf-16-list': ('{}.json', lambda records: gzip.compress(a_list_with_indents(records).decode().encode('utf-16'))),
    'utf-32-in-txt': ('{}.txt', lambda records: lines(records).decode().encode('utf-32')),
    'parquet-without-ending': ('{}', parquet_of),
    'parquet-in-jsonl': ('{}.jsonl', parquet_of),
}


def _marked_texts(folder):
    """Text files as other systems write them: a byte order mark, or UTF-16; and compressed without an ending."""
    encodings = ('utf-8', 'utf-8-sig', 'utf-16', 'utf-32')
    for i, text in enumerate(TEXTS):
        data = text.encode(encodings[i % 4])
        (folder / f'{i:03}.txt').write_bytes(gzip.compress(data) if i % 3 == 0 else data)
    return domain_at(folder)


def _separated_marked(folder):
    (folder / 'all.txt').write_bytes('<|end|>'.join(['\ufeff' + text for text in TEXTS]).encode('utf-8-sig'))
    return domain_at(folder / 'all.txt', separator='<|end|>')


def _nested(folder):
    records = [{'id': i, 'meta': {'text.en': text, 'n': None}} for i, text in enumerate(TEXTS)]
    (folder / 'a.jsonl').write_bytes(lines(records))
    return domain_at(folder / 'a.jsonl', text_key='meta.text.en')


def _nested_columns(folder):
    records = [{'id': i, 'meta': {'text': text, 'url': 'x'}} for i, text in enumerate(TEXTS)]
    (folder / 'a.parquet').write_bytes(parquet_of(records[:20]))
    datasets.Dataset.from_list(records[20:]).save_to_disk(str(folder / 'ds'))
    return domain_at(folder / 'a.parquet', folder / 'ds', text_key='meta.text')


def _mds(folder):
    compressions = (None, 'zstd:3', 'bz2', 'gz', 'br', 'snappy')
    share = -(-len(TEXTS) // len(compressions))
    for number, compression in enumerate(compressions):
        columns, options = {'id': 'int', 'text': 'str'}, {'compression': compression, 'hashes': ['sha1']}
        with MDSWriter(out=str(folder / str(number)), columns=columns, size_limit=4000, **options) as writer:
            for i, text in enumerate(TEXTS[number * share : (number + 1) * share]):
                writer.write({'id': i, 'text': text})
    return domain_at(*(folder / str(number) for number in range(len(compressions))))


def _linked(folder):
    """Shards that lie elsewhere, in a folder that is linked and holds a link to itself."""
    (folder / 'store' / 'deep').mkdir(parents=True)
    for i, name in enumerate(('store/0.jsonl', 'store/deep/1.jsonl')):
        write_jsonl(folder / name, TEXTS[i * 20 : 20 if i == 0 else None])
    (folder / 'in').mkdir()
    (folder / 'in' / 'shards').symlink_to(folder / 'store')
    (folder / 'store' / 'deep' / 'again').symlink_to(folder / 'in')
    return domain_at(folder / 'in')


def _linked_pattern(folder):
    return domain_at(Path(_linked(folder).path[0], '**', '*.jsonl'))


@pytest.mark.parametrize('piece_bytes', [64, 1000, 1 << 20])
@pytest.mark.parametrize(
    'make',
    [_jsonl, _gz, _zst, _parquet, _tree, _txt, _separated, _saved, _saved_splits, _several, _marked_texts]
    + [_separated_marked, _nested, _nested_columns, _mds, _linked, _linked_pattern],
    ids=lambda make: make.__name__,
)
def test_documents_of_every_format(tmp_path, make, piece_bytes):
    assert _read(make(tmp_path), piece_bytes) == TEXTS


@pytest.mark.parametrize('piece_bytes', [64, 1000, 1 << 20])
@pytest.mark.parametrize('kind', BY_CONTENT)
def test_records_by_their_content(tmp_path, kind, piece_bytes):
    """In a folder with two files of a kind."""
    name, data = BY_CONTENT[kind]
    for number, part in enumerate((_records()[:11], _records()[11:])):
        (tmp_path / name.format(number)).write_bytes(data(part))
    assert _read(domain_at(tmp_path), piece_bytes) == TEXTS


@pytest.mark.parametrize('piece_bytes', range(1, 12))
def test_separators_that_overlap_themselves(tmp_path, piece_bytes):
    text = 'a\n\n\nb\n\n\n\n\nc\n\nd\n'
    (tmp_path / 'a.txt').write_text(text)
    expected = [part for part in text.split('\n\n') if part and not part.isspace()]
    assert _read(domain_at(tmp_path / 'a.txt', separator='\n\n'), piece_bytes) == expected


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


@pytest.mark.parametrize('written', ['lines', 'list'])
def test_records_that_are_longer_than_what_is_looked_at(tmp_path, written):
    (tmp_path / 'x').mkdir()
    records = [{'text': 'w ' * HEAD}, {'text': 'short'}]
    lines = '\n'.join(map(json.dumps, records))
    (tmp_path / 'x' / 'part-000.json').write_text(lines if written == 'lines' else json.dumps(records))
    assert _read(domain_at(tmp_path / 'x')) == [record['text'] for record in records]


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
        found = _read(domain_at(path), piece_bytes)
        assert [f for f in found if isinstance(f, str)] == ['one', 'three']
        bad = [f for f in found if not isinstance(f, str)]
        assert [b.number for b in bad] == [2, 4, 5, 6, 7, 8, 11] and {b.path for b in bad} == {str(path)}
        reasons = [
            'Unterminated string',
            "no 'text'",
            'got list',
            'is null, not a string',
            'utf-8',
            'surrogates',
            'got int',
        ]
        assert all(reason in b.reason for reason, b in zip(reasons, bad))


def test_binary_file_in_a_folder_is_a_bad_record(tmp_path):
    (tmp_path / 'a.dat').write_bytes(b'\xff\xfe\x00')
    (tmp_path / 'b.dat').write_text('fine')
    bad, good = _read(domain_at(tmp_path))
    assert good == 'fine' and bad.path == str(tmp_path / 'a.dat') and 'not the UTF-16 or UTF-32' in bad.reason


@pytest.mark.parametrize('name', ['b.jsonl.gz', 'b.jsonl.zst'])
def test_truncated_and_broken_files(tmp_path, name):
    domain = (_gz if name.endswith('gz') else _zst)(tmp_path)
    data = (tmp_path / name).read_bytes()
    for broken in (data[:-9], data[:40] + b'garbage' + data[47:]):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=f'{name} is broken or truncated .*; fetch it again'):
            _read(domain)


def test_bytes_after_gzip_data_are_told_and_the_advice_leaves_them_out(tmp_path):
    write_jsonl(tmp_path / 'a.jsonl', ['x' * 50, 'y'])
    path, text = tmp_path / 'a.jsonl.gz', (tmp_path / 'a.jsonl').read_bytes()
    path.write_bytes(gzip.compress(text) + b'rest of a download')
    with pytest.raises(ValueError, match=r'a.jsonl.gz holds other bytes after its gzip data; .* gzip -dc FILE.gz > FI'):
        _read(domain_at(path))
    assert subprocess.run(['gzip', '-dc', path], capture_output=True).stdout == text


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


def test_a_line_longer_than_a_piece_is_searched_once(tmp_path, monkeypatch):
    write_jsonl(tmp_path / 'a.jsonl', ['y' * (1 << 20), 'z'])
    searched = 0

    class Counting(bytearray):
        def rfind(self, separator, start):
            nonlocal searched
            searched += len(self) - start
            return super().rfind(separator, start)

    monkeypatch.setattr(pieces, 'bytearray', Counting, raising=False)
    assert len(_read(domain_at(tmp_path / 'a.jsonl'), 1 << 12)) == 2
    assert 1 << 20 <= searched < 1.1 * (1 << 20)


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


@pytest.mark.parametrize('cut', [1, 200])
def test_a_json_list_that_is_broken(tmp_path, cut):
    data = a_list_with_indents(_records())
    for broken in (data[:-cut], data[: len(data) // 2] + b'"}}' + data[len(data) // 2 :]):
        (tmp_path / 'a.json').write_bytes(broken)
        with pytest.raises(ValueError, match=r'a.json is broken after \d+ records'):
            _read(domain_at(tmp_path / 'a.json'))


def test_text_without_a_byte_order_mark_in_utf_16(tmp_path):
    (tmp_path / 'a.txt').write_bytes('text'.encode('utf-16-le'))
    (tmp_path / 'lines').mkdir()
    (tmp_path / 'lines/a.jsonl').write_bytes('{"text": "a"}'.encode('utf-16-le'))
    for path in (tmp_path / 'a.txt', tmp_path / 'lines', tmp_path / 'lines/a.jsonl'):
        (bad,) = _read(domain_at(path))
        assert 'NUL bytes: it is no text, or UTF-16 without' in bad.reason


def test_a_zstd_window_that_is_too_large(tmp_path):
    """A frame as `zstd --long=31` begins it."""
    block = b'{"text": "a"}\n'
    head = b'\x28\xb5\x2f\xfd' + bytes([0, 31 - 10 << 3]) + (len(block) << 3 | 1).to_bytes(3, 'little')
    (tmp_path / 'a.jsonl.zst').write_bytes(head + block)
    with pytest.raises(ValueError, match='a window of more than 128 MB .*`zstd -d --long=31`'):
        _read(domain_at(tmp_path / 'a.jsonl.zst'))


def test_token_ids_are_no_text(tmp_path):
    with MDSWriter(out=str(tmp_path), columns={'tokens': 'bytes'}) as writer:
        writer.write({'tokens': b'12345678'})
    with pytest.raises(ValueError, match='holds token ids already; name its folders as domains of dynamic_text'):
        _read(domain_at(tmp_path))


POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'


@pytest.mark.parametrize('name', ['a.txt', 'a.jsonl', 'a.json', 'a.parquet', 'a.py', 'a.jsonl.zst'])
@pytest.mark.parametrize('settings', [{}, {'format': 'folder'}, {'format': 'txt'}, {'format': 'jsonl'}])
def test_files_that_git_has_not_fetched(tmp_path, name, settings):
    (tmp_path / name).write_text(POINTER)
    for place in (tmp_path, tmp_path / name, f'{tmp_path}/*'):
        with pytest.raises(ValueError, match=f'{name} is a pointer of git-lfs, .*; run `git lfs pull`'):
            _read(domain_at(place, **settings))
    with pytest.raises(ValueError, match=f'^--text {tmp_path}: .*{name} is a pointer of git-lfs'):
        list(read_beginning('--text', str(tmp_path), 'text', 100))  # also what cut, search and rotate read


def test_data_sets_that_git_has_not_fetched(tmp_path):
    datasets.Dataset.from_dict({'text': TEXTS}).save_to_disk(tmp_path / 'hf')
    next((tmp_path / 'hf').glob('*.arrow')).write_text(POINTER)
    with MDSWriter(out=str(tmp_path / 'mds'), columns={'text': 'str'}) as writer:
        writer.write({'text': 'a'})
    (tmp_path / 'mds' / 'shard.00000.mds').write_text(POINTER)
    for folder in ('hf', 'mds'):
        with pytest.raises(ValueError, match='is a pointer of git-lfs'):
            _read(domain_at(tmp_path / folder))
    (tmp_path / 'mds' / 'index.json').write_text(POINTER)
    with pytest.raises(ValueError, match='index.json is a pointer of git-lfs'):
        _read(domain_at(tmp_path / 'mds'))


def test_a_folder_of_empty_files_alone_goes_by_any_setting(tmp_path):
    """Without a document in sight no setting is wrong; the domain that has none is refused later, as without it."""
    (tmp_path / 'a.txt').touch()
    skipped: dict[str, list[str]] = {}
    for settings in ({'separator': '---'}, {'text_key': 'body'}, {'glob': '*.txt'}):
        assert find_sources(domain_at(tmp_path, **settings), skipped) == []
    assert skipped['empty'] == [str(tmp_path / 'a.txt')] * 3
