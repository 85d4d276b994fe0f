"""What of a ``tokenizer.json`` stays at any size, and which kinds are refused."""

from __future__ import annotations

import json

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from llmshearing.vocabulary.tokenizer_file import parse_tokenizer_file, read_tokenizer_file
from tests.vocabulary.sources import BYTES, KINDS, SPECIAL, tokenizer_json


def needed(kind: str) -> set[str]:
    file = parse_tokenizer_file(json.loads(tokenizer_json(kind)))
    names = {number: token for token, number in file.ids.items()}
    return {names[number] for number in file.needed_ids()}


@pytest.mark.parametrize('kind', KINDS)
def test_special_tokens_stay(kind):
    assert needed(kind) >= set(SPECIAL)


def test_bytes_stay():
    assert needed('byte-level') == {*SPECIAL, *ByteLevel.alphabet()}
    assert needed('llama3') == {*SPECIAL, '<reserved>', *ByteLevel.alphabet()}
    assert needed('byte-fallback') == {*SPECIAL, *BYTES}


def test_of_unigram_the_least_score_stays():
    scores = dict(json.loads(tokenizer_json('unigram-bytes'))['model']['vocab'])
    (least,) = needed('unigram-bytes') - {*SPECIAL, *BYTES}
    assert scores[least] == min(scores.values())


def test_characters_stay_where_there_are_no_bytes():
    vocab = [token for token, _ in json.loads(tokenizer_json('unigram'))['model']['vocab']]
    assert needed('unigram') >= {token for token in vocab if len(token) == 1}


@pytest.mark.parametrize('kind', ['byte-fallback', 'unigram-bytes'])
def test_characters_stay_where_bytes_are_missing(kind):
    content = json.loads(tokenizer_json(kind))
    vocab, absent = content['model']['vocab'], BYTES[200]
    if isinstance(vocab, dict):
        vocab['<other>'] = vocab.pop(absent)
    else:
        vocab[[token for token, _ in vocab].index(absent)][0] = '<other>'
    file = parse_tokenizer_file(content)
    characters = {number for token, number in file.model_ids.items() if len(token) == 1}
    assert characters and characters <= file.needed_ids()


@pytest.mark.parametrize(
    'change, message',
    [
        ({'type': 'WordPiece'}, 'made by WordPiece; only BPE and Unigram'),
        ({'type': 'WordLevel'}, 'made by WordLevel'),
        ({'dropout': 0.1}, 'sets dropout to 0.1'),
        ({'continuing_subword_prefix': '##'}, "sets continuing_subword_prefix to '##'"),
        ({'end_of_word_suffix': '</w>'}, 'sets end_of_word_suffix'),
        ({'vocab': {'a': 0, 'b': 0}}, 'two tokens have one id'),
    ],
)
def test_other_kinds_are_refused(tmp_path, change, message):
    content = json.loads(tokenizer_json('byte-level'))
    content['model'] |= change
    (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read_tokenizer_file(tmp_path)
    assert '\n' not in str(error.value) and 'cannot be trimmed' in str(error.value)


def test_a_folder_without_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match='holds no tokenizer.json'):
        read_tokenizer_file(tmp_path)


def test_merges_of_older_files():
    content = json.loads(tokenizer_json('byte-level'))
    pairs = parse_tokenizer_file(content).merges
    content['model']['merges'] = [' '.join(pair) for pair in pairs]
    del content['model']['type']
    assert parse_tokenizer_file(content).merges == pairs
