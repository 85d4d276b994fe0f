"""Tokens per byte, in closed form on a tokenizer of bytes, and the table and picture of them."""

from __future__ import annotations

import json

import numpy as np
from tokenizers import Tokenizer

from llmshearing.vocabulary.choice import rank_tokens
from llmshearing.vocabulary.growth import (
    growth_picture,
    growth_table,
    measure_growth,
    size_table,
    sizes_between,
    tokens_per_byte,
)
from llmshearing.vocabulary.text import DomainText
from llmshearing.vocabulary.tokenizer_file import parse_tokenizer_file
from tests.vocabulary.sources import pages, tokenizer_json


def domain(*passages: str) -> DomainText:
    text = DomainText('some', np.zeros(1, np.int64))
    for passage in passages:
        text.hold_out(passage)
    return text


def test_bytes_alone_take_one_token_per_byte():
    content = json.loads(tokenizer_json('byte-level'))
    ranking = rank_tokens(parse_tokenizer_file(content), {}, [], [])
    text = domain('naïve 你好', pages()[1][:500])
    least = len(ranking.needed)
    measured = measure_growth(content, ranking, [least, 640], [text])['some']
    assert measured[0] == 1.0
    whole = Tokenizer.from_str(tokenizer_json('byte-level'))
    assert measured[1] == sum(len(whole.encode(one).ids) for one in text.held_out) / text.size


def test_both_tables_are_of_the_whole_held_out_text():
    content = json.loads(tokenizer_json('byte-level'))
    ranking = rank_tokens(parse_tokenizer_file(content), {}, [], [])
    text = domain('你好' * 50_000, *pages())  # the beginning is other text than the rest
    everything = len(ranking.needed) + len(ranking.others)
    measured = measure_growth(content, ranking, [everything], [text])['some']
    assert measured == [tokens_per_byte(Tokenizer.from_str(tokenizer_json('byte-level')), text)]


def test_sizes_between():
    eight = [1, 10, 100, 1000, 10**4, 10**5, 10**6, 10**7]
    assert sizes_between(1, 10**7, 70) == sorted([70, *eight])
    assert sizes_between(1, 10**7, 100) == eight


def test_the_table():
    assert growth_table({'web': 0.25, 'code': 0.4}, {'web': 0.3, 'code': 0.4}).splitlines()[2:] == [
        '| web | 0.2500 | 0.3000 | +20.00 % |',
        '| code | 0.4000 | 0.4000 | +0.00 % |',
    ]


def test_the_table_of_sizes():
    assert size_table([260, 1000], {'web': [1.0, 0.25], 'code': [1.0, 0.5]}).splitlines() == [
        '| tokens | web | code |',
        '|---|---|---|',
        '| 260 | 1.0000 | 1.0000 |',
        '| 1,000 | 0.2500 | 0.5000 |',
    ]


def test_the_picture_marks_the_size():
    svg = growth_picture([10, 100, 1000], {'web': [1.0, 0.5, 0.3]}, 100)
    assert svg.startswith('<svg xmlns') and '100 tokens' in svg and 'vocabulary size' in svg and 'web' in svg
