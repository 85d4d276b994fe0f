"""Small inputs for the tests of prepare: a tokenizer, documents, a spec, and reading back what was written.

The fixtures at the end are imported by the test modules that use them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from data_prep.make_example import train_tokenizer
from llmshearing.prepare import pipeline, stages

WORDS = (
    'alpha beta gamma delta epsilon the of and to in is that for it as was with be by on not he his but at are '
    'this have from which model layer token weight d\u00e9j\u00e0 \u4f60\u597d \U0001f600 42 2024'
).split()


def make_documents(count: int, seed: int, words: tuple[int, int] = (20, 200)) -> list[str]:
    """Distinct texts of random words."""
    rng = random.Random(seed)
    return [f'{seed}/{i} ' + ' '.join(rng.choices(WORDS, k=rng.randint(*words))) for i in range(count)]


def make_tokenizer(folder: Path, vocab_size: int = 400) -> str:
    """Trains and saves a byte-level BPE tokenizer with ``<s>`` and ``</s>``."""
    return train_tokenizer(make_documents(50, 0), vocab_size, folder)


def write_jsonl(path: Path, documents: list[str], key: str = 'text') -> str:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps({'id': i, key: text}) + '\n' for i, text in enumerate(documents)))
    return str(path)


def parquet_of(records: list[dict]) -> bytes:
    """A file of a row for each record."""
    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(records), stream)
    return stream.getvalue()


def read_tokens(folder: Path) -> np.ndarray:
    """All samples of an MDS folder, decoded here from the file format: [samples, max_seq_len]."""
    rows = []
    for shard in json.loads((folder / 'index.json').read_text())['shards']:
        (encoding,) = shard['column_encodings']
        _, dtype, length = encoding.split(':')
        data = (folder / shard['raw_data']['basename']).read_bytes()
        count = int(np.frombuffer(data, np.uint32, 1)[0])
        offsets = np.frombuffer(data, np.uint32, count + 1, 4)
        rows += [np.frombuffer(data[a:b], dtype) for a, b in zip(offsets[:-1], offsets[1:])]
        assert all(len(row) == int(length) for row in rows)
    return np.stack(rows)


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, by content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def make_spec(folder: Path, tokenizer: str) -> dict:
    """Two domains with duplicates inside and between them."""
    web, code = make_documents(60, 1), make_documents(50, 2)
    write_jsonl(folder / 'in' / 'web' / '0.jsonl', [*web[:30], web[3], *code[:4]])
    write_jsonl(folder / 'in' / 'web' / '1.jsonl', [*web[30:], web[50]])
    write_jsonl(folder / 'in' / 'code.jsonl', [code[9], *code])
    return {
        'tokenizer': tokenizer,
        'max_seq_len': 32,
        'out': str(folder / 'out'),
        'seed': 3,
        'domains': {'web': str(folder / 'in' / 'web'), 'code': str(folder / 'in' / 'code.jsonl')},
        'splits': {'eval': {'fraction': 0.2}, 'prune': {'fraction': 0.3, 'tokens': 900}, 'continue': {}},
    }


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp('tokenizer'))


def set_piece_bytes(monkeypatch, size: int) -> None:
    """Cuts inputs into pieces of that size."""
    find = lambda domain: dataclasses.replace(stages.find_input(domain), piece_bytes=size)  # noqa: E731
    monkeypatch.setattr(pipeline, 'find_input', find)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Cuts small inputs into several pieces, as large ones are."""
    set_piece_bytes(monkeypatch, 8000)


@pytest.fixture
def spec(tmp_path, tokenizer):
    """See ``make_spec``."""
    return make_spec(tmp_path, tokenizer)
