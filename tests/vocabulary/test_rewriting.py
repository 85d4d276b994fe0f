"""Every number of a token in a folder's JSON is the new one, and nothing else changes."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from llmshearing.vocabulary.rewriting import ids_named, with_new_ids, with_new_ids_in_tokenizer
from tests.vocabulary.sources import tokenizer_json

CONFIG = {
    'bos_token_id': 1,
    'eos_token_id': [2, 7],
    'pad_token_id': -1,
    'vocab_size': 9,
    'num_hidden_layers': 2,
    'decoder_start_token_id': None,
    'text_config': {'image_token_index': 5, 'hidden_size': 7},
    'suppress_tokens': [4],
    'bad_words_ids': [[3, 2]],
    'use_cache': True,
    'forced_decoder_ids': [[1, 2]],  # the token 2 at position 1
    'sequence_bias': [[[4, 8], -10.0], [[3], 2.0]],
    'pad_id': 0,
    'im_start_id': 3,
    'im_newline_id': 4,
    'mask_init_id': 5,  # as Hunyuan calls them
    'layer_id': 3,
    'grid_id': 2,
    'num_bos_ids': 1,  # numbers of something else
}


def test_ids_in_a_config():
    assert ids_named(CONFIG, 9) == {0, 1, 2, 3, 4, 5, 7, 8}
    assert ids_named(CONFIG, 6) == {0, 1, 2, 3, 4, 5}  # 7 is no row


def test_a_config_with_new_ids():
    changed = with_new_ids(CONFIG, {0: 7, 1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 7: 5, 8: 6})
    assert changed == {
        **CONFIG,
        'bos_token_id': 0,
        'eos_token_id': [1, 5],
        'text_config': {'image_token_index': 4, 'hidden_size': 7},
        'suppress_tokens': [3],
        'bad_words_ids': [[2, 1]],
        'forced_decoder_ids': [[1, 1]],
        'sequence_bias': [[[3, 6], -10.0], [[2], 2.0]],
        'pad_id': 7,
        'im_start_id': 2,
        'im_newline_id': 3,
        'mask_init_id': 4,
    }


@pytest.mark.parametrize(
    'processor, expected',
    [
        ({'type': 'RobertaProcessing', 'sep': ['</s>', 2], 'cls': ['<s>', 1]}, {'sep': ['</s>', 1], 'cls': ['<s>', 0]}),
        (
            {'type': 'TemplateProcessing', 'special_tokens': {'<s>': {'id': '<s>', 'ids': [1], 'tokens': ['<s>']}}},
            {'special_tokens': {'<s>': {'id': '<s>', 'ids': [0], 'tokens': ['<s>']}}},
        ),
        ({'type': 'Sequence', 'processors': [{'ids': [2]}]}, {'processors': [{'ids': [1]}]}),
        (None, None),
    ],
)
def test_post_processors(processor, expected):
    content = {'model': {'type': 'BPE', 'vocab': {'a': 0, '<s>': 1, '</s>': 2}, 'merges': []}}
    content |= {'added_tokens': [], 'post_processor': processor}
    changed = with_new_ids_in_tokenizer(content, [1, 2])['post_processor']
    assert changed == (processor and {**processor, **expected})


def test_a_bpe_of_some_tokens():
    vocab = {token: number for number, token in enumerate(['a', 'b', 'c', 'bc', 'ab', 'abc', 'cc'])}
    model = {'type': 'BPE', 'vocab': vocab, 'merges': ['b c', 'a b', 'a bc', 'ab c', 'c c'], 'unk_token': None}
    added = [{'content': '<t>', 'id': 8}, {'content': '<s>', 'id': 7}]
    content = {'model': model, 'added_tokens': added, 'padding': {'pad_id': 7, 'pad_token': '<s>'}}
    changed = with_new_ids_in_tokenizer(content, [0, 1, 2, 3, 5, 7, 8])
    assert changed['model']['vocab'] == {'a': 0, 'b': 1, 'c': 2, 'bc': 3, 'abc': 4}
    assert changed['model']['merges'] == ['b c', 'a bc'] and changed['model']['type'] == 'BPE'
    assert changed['added_tokens'] == [{'content': '<s>', 'id': 5}, {'content': '<t>', 'id': 6}]
    assert changed['padding'] == {'pad_id': 5, 'pad_token': '<s>'}
    assert content['model']['vocab'] == vocab and len(content['model']['merges']) == 5  # the source's is as it was


def test_a_unigram_of_some_pieces():
    content = json.loads(tokenizer_json('unigram'))
    content['model']['vocab'].insert(0, ['zzz', -9.0])
    content['model']['unk_id'] = 1
    for token in content['added_tokens']:
        token['id'] += 1
    kept = [*range(1, len(content['model']['vocab']), 2), 2, 4]
    changed = with_new_ids_in_tokenizer(content, sorted(kept))
    assert changed['model']['unk_id'] == 0
    tokenizer = Tokenizer.from_str(json.dumps(changed))
    names = [content['model']['vocab'][number][0] for number in sorted(kept)]
    assert [tokenizer.id_to_token(number) for number in range(len(kept))] == names
