"""BPE on one word as `tokenizers` does it, and that closed sets of tokens change no word made of them."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, models

from llmshearing.vocabulary.derivation import Derivations, derive
from llmshearing.vocabulary.rewriting import with_new_ids_in_tokenizer
from llmshearing.vocabulary.tokenizer_file import parse_tokenizer_file

MERGES = [('b', 'c'), ('a', 'b'), ('a', 'bc'), ('ab', 'a')]


def content_of(merges: list[tuple[str, str]], **settings) -> dict:
    tokens = dict.fromkeys([*'abcd', *(left + right for left, right in merges)])
    vocab = {token: number for number, token in enumerate(tokens)}
    return {'added_tokens': [], 'model': {'type': 'BPE', 'vocab': vocab, 'merges': merges, **settings}}


def tokens_of(content: dict, word: str) -> list[str]:
    model = content['model']
    merges = [tuple(merge) for merge in model['merges']]
    tokenizer = Tokenizer(models.BPE(model['vocab'], merges, ignore_merges=model.get('ignore_merges', False)))
    return [tokenizer.id_to_token(number) for number in tokenizer.encode(word).ids]


@pytest.mark.parametrize(
    'word, tokens, made',
    [
        ('abc', ['abc'], [('bc', 0), ('abc', 2)]),
        ('aba', ['aba'], [('ab', 1), ('aba', 3)]),
        ('abab', ['ab', 'ab'], [('ab', 1), ('ab', 1)]),  # both before the last merge comes up
        ('d', ['d'], []),
        ('', [], []),
    ],
)
def test_a_word_step_by_step(word, tokens, made):
    ranks = {pair: rank for rank, pair in enumerate(MERGES)}
    assert derive(word, ranks) == (tokens, made)


def random_merges(rng: random.Random, count: int = 14) -> list[tuple[str, str]]:
    known, merges = list('abc'), []
    while len(merges) < count:
        pair = (rng.choice(known), rng.choice(known))
        if pair not in merges and len(pair[0] + pair[1]) < 7:
            merges.append(pair)
            known.append(pair[0] + pair[1])
    rng.shuffle(merges)  # some tokens are then never made
    return merges


@pytest.mark.parametrize('seed', range(10))
def test_the_words_of_tokenizers(seed):
    rng = random.Random(seed)
    content = content_of(random_merges(rng))
    derivations = Derivations(parse_tokenizer_file(content))
    for _ in range(100):
        word = ''.join(rng.choices('abc', k=rng.randrange(1, 14)))
        assert derive(word, derivations.ranks)[0] == tokens_of(content, word)


def test_uses_count_parts_too():
    derivations = Derivations(parse_tokenizer_file(content_of(MERGES)))
    uses = derivations.uses({'abc': 3, 'bc': 1, 'aba': 2, 'd': 5})
    assert uses == {'abc': 3, 'bc': 4, 'aba': 2, 'ab': 2, 'a': 7, 'b': 6, 'c': 4, 'd': 5}
    assert derivations.last_rank('a') == -1 and derivations.last_rank('abc') == 2


def test_a_token_that_merges_never_make_has_no_derivation():
    content = content_of([('b', 'c'), ('a', 'b'), ('ab', 'c')])  # abc is always a, bc
    derivations = Derivations(parse_tokenizer_file(content))
    assert derivations.of('abc') is None and tokens_of(content, 'abc') == ['a', 'bc']
    assert derivations.last_rank('abc') == 3


@pytest.mark.parametrize('ignore_merges', [False, True])
@pytest.mark.parametrize('seed', range(12))
def test_words_of_a_closed_set_keep_their_tokens(seed, ignore_merges):
    rng = random.Random(seed)
    content = content_of(random_merges(rng), ignore_merges=ignore_merges)
    file = parse_tokenizer_file(content)
    derivations = Derivations(file)
    kept = set('abcd')
    for token in rng.sample(sorted(file.ids), 6):
        kept.update(derivations.of(token) or [token])
    trimmed = with_new_ids_in_tokenizer(content, sorted(file.ids[token] for token in kept))
    same = other = 0
    for _ in range(150):
        word = ''.join(rng.choices('abc', k=rng.randrange(1, 14)))
        tokens = tokens_of(content, word)
        if set(tokens) <= kept:
            assert tokens_of(trimmed, word) == tokens, word
            same += 1
        else:
            assert set(tokens_of(trimmed, word)) <= kept
            other += 1
    assert same and other
    for token in kept:  # every kept token that could be made can be made still
        if derivations.of(token):
            assert tokens_of(trimmed, token) == [token]
