"""Which tokens stay: the most useful, closed at any size; and that Unigram's kept pieces keep their texts."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from tokenizers import Tokenizer, models

from llmshearing.vocabulary.choice import rank_tokens
from llmshearing.vocabulary.derivation import Derivations
from llmshearing.vocabulary.rewriting import with_new_ids_in_tokenizer
from llmshearing.vocabulary.tokenizer_file import parse_tokenizer_file
from tests.vocabulary.sources import KINDS, pages, tokenizer_json
from tests.vocabulary.test_derivation import MERGES, content_of


def counted(kind: str) -> tuple[dict, Counter]:
    content = json.loads(tokenizer_json(kind))
    ids = Tokenizer.from_str(tokenizer_json(kind)).encode(pages()[1], add_special_tokens=False).ids
    return content, Counter(ids)


def test_the_most_made_tokens_stay():
    file = parse_tokenizer_file(content_of(MERGES))
    counts = {file.ids['abc']: 3, file.ids['aba']: 2}
    ranking = rank_tokens(file, counts, [], [])
    names = {number: token for token, number in file.ids.items()}
    assert [names[number] for number in ranking.needed] == list('abcd')  # no bytes: characters stay
    # Made 3, 3, 2 and 2 times; of equals the earlier merge.
    assert [names[number] for number in ranking.others] == ['bc', 'abc', 'ab', 'aba']


def test_what_is_wished_brings_its_parts():
    file = parse_tokenizer_file(content_of(MERGES))
    ranking = rank_tokens(file, {}, [], ['aba'])
    assert set(ranking.needed) == {file.ids[token] for token in [*'abcd', 'ab', 'aba']}
    with pytest.raises(ValueError, match="--keep: the tokenizer has no token 'xyz'"):
        rank_tokens(file, {}, [], ['aba', 'xyz'])


@pytest.mark.parametrize('kind', ['byte-level', 'llama3', 'byte-fallback'])
def test_every_size_is_closed_and_met_exactly(kind):
    content, counts = counted(kind)
    file = parse_tokenizer_file(content)
    ranking, derivations = rank_tokens(file, counts, [], []), Derivations(file)
    assert sorted([*ranking.needed, *ranking.others]) == sorted(file.ids.values())
    for size in range(len(ranking.needed), len(file.ids) + 1, 7):
        kept = ranking.kept(size)
        assert len(set(kept)) == size
        names = {token for token, number in file.ids.items() if number in set(kept)}
        assert all(names.issuperset(derivations.of(token) or ()) for token in names - file.added_ids.keys())


@pytest.mark.parametrize('kind', KINDS)
def test_fewer_tokens_never_make_a_text_shorter(kind):
    content, counts = counted(kind)
    ranking = rank_tokens(parse_tokenizer_file(content), counts, [], [])
    lengths, text = [], pages()[1][:6000]
    for size in range(len(ranking.needed), len(ranking.needed) + len(ranking.others) + 1, 40):
        tokenizer = Tokenizer.from_str(json.dumps(with_new_ids_in_tokenizer(content, ranking.kept(size))))
        lengths.append(len(tokenizer.encode(text).ids))
    assert lengths[0] > lengths[-1] and all(after <= 1.01 * before for before, after in zip(lengths, lengths[1:]))


def test_new_ids_follow_the_old_order_with_added_tokens_last():
    content, counts = counted('llama3')
    file = parse_tokenizer_file(content)
    ranking = rank_tokens(file, counts, [700], [])  # a row without a token, which a config names
    kept = ranking.kept(400)
    added = sorted(file.added_ids.values())
    assert kept == [*sorted(set(kept) - {700, *added}), *added, 700]


def unigram(scores: dict[str, float]) -> dict:
    vocab = [[piece, score] for piece, score in {'<unk>': 0.0, **scores}.items()]
    return {'added_tokens': [], 'model': {'type': 'Unigram', 'unk_id': 0, 'vocab': vocab, 'byte_fallback': True}}


def tokenizer_of(content: dict) -> Tokenizer:
    model = content['model']
    return Tokenizer(models.Unigram([tuple(entry) for entry in model['vocab']], model['unk_id'], True))


def path_of(content: dict, text: str) -> list[str]:
    tokenizer = tokenizer_of(content)
    return [tokenizer.id_to_token(number) for number in tokenizer.encode(text).ids]


def test_the_most_used_pieces_stay_and_of_equals_the_likelier():
    file = parse_tokenizer_file(unigram({'aa': -3.0, 'bb': -9.0, 'ab': -4.0, 'ba': -2.0, 'cc': -5.0}))
    ranking = rank_tokens(file, {file.ids['ab']: 7, file.ids['aa']: 2}, [], [])
    names = {number: token for token, number in file.ids.items()}
    assert [names[number] for number in ranking.needed] == ['<unk>', 'bb']
    assert [names[number] for number in ranking.others] == ['ab', 'aa', 'ba', 'cc']


def test_the_piece_of_least_score_decides_what_an_unknown_character_costs():
    """Of xayz the path x, ay, z has -25; x, unknown, yz has -12 less than the least score."""
    content = unigram({'x': -1.0, 'ay': -12.0, 'z': -12.0, 'yz': -1.0, 'q': -100.0, 'w': -2.0})
    file = parse_tokenizer_file(content)
    path = ['x', 'ay', 'z']
    assert path_of(content, 'xayz') == path
    kept = sorted({*file.needed_ids(), *(file.ids[piece] for piece in [*path, 'yz'])})
    assert path_of(with_new_ids_in_tokenizer(content, kept), 'xayz') == path
    kept.remove(file.ids['q'])
    assert path_of(with_new_ids_in_tokenizer(content, kept), 'xayz') == ['x', '<unk>', 'yz']


@pytest.mark.parametrize('seed', range(12))
def test_a_path_of_kept_pieces_stays_the_best(seed):
    """Random scores with many ties, characters that lose their own piece, and unknown ones."""
    rng = random.Random(seed)
    pieces = dict.fromkeys(['b', 'c', *(''.join(rng.choices('abc', k=rng.randrange(1, 5))) for _ in range(30))])
    content = unigram({piece: -float(rng.randrange(1, 6)) for piece in pieces})
    needed, size = parse_tokenizer_file(content).needed_ids(), len(content['model']['vocab'])
    kept = sorted({*needed, *rng.sample(range(size), size // 2)})
    before, after = tokenizer_of(content), tokenizer_of(with_new_ids_in_tokenizer(content, kept))
    same = 0
    for _ in range(300):
        word = ''.join(rng.choices('abcx', [5, 5, 5, 1], k=rng.randrange(1, 10)))
        ids = before.encode(word).ids
        if set(ids) <= set(kept):
            assert [kept[number] for number in after.encode(word).ids] == ids, word
            same += 1
    assert same
