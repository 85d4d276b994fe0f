"""Every format gives the same documents, in pieces of any size."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pytest
from streaming import MDSWriter

from llmshearing.prepare import pieces
from llmshearing.prepare.contents import HEAD
from tests.prepare.formats import (
    TEXTS,
    _gz,
    _jsonl,
    _parquet,
    _read,
    _records,
    _saved,
    _saved_splits,
    _zst,
    a_list_with_indents,
    domain_at,
    lines,
    zstd,
)
from tests.prepare.prepare_inputs import parquet_of, write_jsonl


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


def _several(folder):
    paths = [write_jsonl(folder / f'{i}.jsonl', TEXTS[i * 11 : (i + 1) * 11]) for i in range(4)]
    return domain_at(paths[0], folder / '[12].jsonl', paths[3])


def pzstd_lines(records) -> bytes:
    """A frame that says the size of the next, before each, as the parallel compressor writes it."""
    frames = [zstd(lines([record])) for record in records]
    sizes = (b'\x50\x2a\x4d\x18' + bytes([4, 0, 0, 0]) + len(frame).to_bytes(4, 'little') for frame in frames)
    return b''.join(size + frame for size, frame in zip(sizes, frames))


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


@pytest.mark.parametrize('written', ['lines', 'list'])
def test_records_that_are_longer_than_what_is_looked_at(tmp_path, written):
    (tmp_path / 'x').mkdir()
    records = [{'text': 'w ' * HEAD}, {'text': 'short'}]
    lines = '\n'.join(map(json.dumps, records))
    (tmp_path / 'x' / 'part-000.json').write_text(lines if written == 'lines' else json.dumps(records))
    assert _read(domain_at(tmp_path / 'x')) == [record['text'] for record in records]


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
