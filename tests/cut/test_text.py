"""Text of a cut: any format by its content, held-out passages apart from the others, and what is refused."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from llmshearing.cut import text as module
from llmshearing.cut.text import read_texts, token_batches
from llmshearing.prepare import beginning
from tests.tiny_run import tiny_tokenizer

DOCUMENTS = [' '.join(f'w{(7 * d + i) % 94}' for i in range(40)) for d in range(60)]


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizer')
    tiny_tokenizer().save_pretrained(folder)
    return folder


def read(tokenizer, *paths, seen=400, held_out=100, seed=17, length=20, vocabulary=97, **settings):
    return read_texts(paths, tokenizer, vocabulary, length, seen, held_out, seed, **settings)


def write_jsonl(path, key='text', documents=DOCUMENTS):
    path.write_text(''.join(json.dumps({key: document}) + '\n' for document in documents))
    return path


def rows(texts):
    return [[row.tolist() for row in kind] for text in texts for kind in (text.seen, text.held_out)]


def test_any_format_gives_the_same_sequences(tokenizer, tmp_path):
    expected = rows(read(tokenizer, write_jsonl(tmp_path / 'lines.jsonl')))
    (tmp_path / 'packed').write_bytes(gzip.compress((tmp_path / 'lines.jsonl').read_bytes()))
    parquet.write_table(pyarrow.table({'text': DOCUMENTS}), tmp_path / 'table.bin')
    (tmp_path / 'list.json').write_text(json.dumps([{'text': document} for document in DOCUMENTS[::-1]]))
    for name in ('packed', 'table.bin', 'list.json'):
        assert rows(read(tokenizer, tmp_path / name)) == expected
    assert [len(kind) for kind in expected] == [20, 5]


def test_no_passage_is_on_both_sides_and_the_seed_decides(tokenizer, tmp_path):
    # one token that names the document, in every place of it
    path = write_jsonl(tmp_path / 'a.jsonl', documents=[' '.join([f'w{d}'] * 30) for d in range(60)])
    (text,) = read(tokenizer, path)
    seen, held_out = ({*np.concatenate(kind)} - {2} for kind in (text.seen, text.held_out))
    assert seen and held_out and not seen & held_out
    assert rows(read(tokenizer, path)) == rows([text]) != rows(read(tokenizer, path, seed=18))
    twice = write_jsonl(tmp_path / 'twice.jsonl', documents=[' '.join([f'w{d // 2}'] * 30) for d in range(120)])
    assert rows(read(tokenizer, twice)) == rows([text])
    with pytest.raises(ValueError, match='give each text once'):  # nothing that the other file does not have
        read(tokenizer, path, twice)


def test_a_long_text_is_taken_apart_and_read_no_further_than_needed(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(beginning, 'PASSAGE', 50)
    path = tmp_path / 'book.txt'
    path.write_text(' '.join(f'w{(i * i + i // 90) % 94}' for i in range(5000)))
    assert [len(kind) for kind in rows(read(tokenizer, path))] == [20, 5]
    monkeypatch.setattr(module, 'READ_BYTES', 1000)
    (text,) = read(tokenizer, path)
    assert 0 < len(text.seen) < 20
    assert 3 < text.bytes_per_token < 4.5  # w12 and a space


def test_texts_take_turns_in_the_batches(tokenizer, tmp_path):
    first = write_jsonl(tmp_path / 'first.jsonl', documents=['w1 ' * 100, 'w1 ' * 90, 'w1 ' * 80])
    (tmp_path / 'more').mkdir()
    second = write_jsonl(tmp_path / 'more' / 'first.jsonl', documents=['w2 ' * 100, 'w2 ' * 90, 'w2 ' * 80])
    texts = read(tokenizer, first, second, seen=160, held_out=40)
    assert [text.name for text in texts] == [str(first), str(second)]
    batches = token_batches(texts, 3)
    assert [len(batch['input_ids']) for batch in batches] == [3, 3, 2]
    assert [row[0].item() for batch in batches for row in batch['input_ids']] == [4, 5] * 4
    assert read(tokenizer, first)[0].name == 'first'


@pytest.mark.parametrize(
    'content, message',
    [
        ('Übergröße '.encode('latin-1') * 50, 'not UTF-8 .*iconv'),
        (b'{"text": "Gr\xfc\xdfe"}\n', 'record 1: .*utf-8'),
        (b'w1 w2\x00\x01' * 20, 'NUL bytes'),
        (b'{"content": "w1 w2"}\n', 'only content; set --text-key to the one'),
        (b'{"text": 3}\n', 'record 1: the text is int'),
        (b'w1 w2 w3', r'holds too little: .* \[0, 0\] sequences of 20 tokens'),
        (b'', r'holds too little: .* of each. Give more text\.$'),
        (b'{"text": "w1 w2"}\n' * 50, 'too little: .*49 of its 50 passages repeat others, .* differs'),
        (b'PAR1 broken', 'broken|cannot be read|parquet'),
    ],
)
def test_what_is_no_text_is_refused_by_name(tokenizer, tmp_path, content, message):
    path = tmp_path / ('notes.txt' if not content.startswith(b'{') else 'notes.jsonl')
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'(?s)--text {path}.*({message})'):
        read(tokenizer, path)


def test_advice_is_for_whoever_names_a_path(tokenizer, tmp_path):
    (tmp_path / 'folder').mkdir()
    write_jsonl(tmp_path / 'folder' / 'a.jsonl')
    (tmp_path / 'folder' / 'b.txt').write_text('words ' * 2000)
    with pytest.raises(ValueError, match=r"name files of one kind, e.g. 'FOLDER/\*\*/\*.jsonl'$"):
        read(tokenizer, tmp_path / 'folder')
    assert read(tokenizer, tmp_path / 'folder' / '**' / '*.jsonl')
    (tmp_path / 'notes').write_text('words ' * 2000)
    with pytest.raises(ValueError, match=r'give it an ending that tells, such as .txt or .jsonl$'):
        read(tokenizer, tmp_path / 'notes')
    (tmp_path / 'notes').rename(tmp_path / 'notes.txt')
    assert read(tokenizer, tmp_path / 'notes.txt')


def test_another_field_and_another_tokenizer(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / 'a.jsonl', key='content')
    assert read(tokenizer, path, text_key='content')
    with pytest.raises(ValueError, match='made the token 9., but its embedding has 60 rows'):
        read(tokenizer, path, text_key='content', vocabulary=60)
