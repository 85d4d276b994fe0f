"""The same texts as files of several formats, and reading them back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow
from pyarrow import parquet

from llmshearing.prepare.pieces import read_pieces
from llmshearing.prepare.sources import find_sources
from llmshearing.prepare.spec import Domain
from llmshearing.prepare.worker import BadRecord, read_documents
from tests.prepare.prepare_inputs import make_documents, write_jsonl

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


def _saved(folder):
    datasets.Dataset.from_dict({'id': range(len(TEXTS)), 'text': TEXTS}).save_to_disk(str(folder / 'ds'))
    return domain_at(folder / 'ds')


def _saved_splits(folder):
    parts = {'train': datasets.Dataset.from_dict({'text': TEXTS}), 'test': datasets.Dataset.from_dict({'text': ['no']})}
    datasets.DatasetDict(parts).save_to_disk(str(folder / 'ds'))
    return domain_at(folder / 'ds', hf_split='train')


def _records() -> list[dict]:
    return [{'id': i, 'text': text} for i, text in enumerate(TEXTS)]


def lines(records) -> bytes:
    return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode()


def a_list_with_indents(records) -> bytes:
    return json.dumps(records, indent=2, ensure_ascii=False).encode()


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec='zstd', asbytes=True)
