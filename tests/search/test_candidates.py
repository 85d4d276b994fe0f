"""Which shapes are proposed: within budget, limits and pins, far from each other, the same each time."""

import pytest
from transformers import GPT2Config, LlamaConfig, Qwen3Config

from llmshearing.cut.settings import CutSettings
from llmshearing.models.counting import count_parameters, kv_cache_bytes_per_token, layout_of
from llmshearing.models.shapes import shape_of
from llmshearing.models.targets import target_shape
from llmshearing.search.candidates import name_of, propose_shapes, target_of
from llmshearing.search.settings import SearchSettings

SMOLLM = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
QWEN = Qwen3Config(
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize(('config', 'budget', 'count'), [(SMOLLM, '80M', 80e6), (QWEN, '0.35B', 0.35e9)])
def test_all_candidates_fill_the_budget_and_differ(config, budget, count):
    source, shapes = shape_of(config), propose_shapes(config, budget, SearchSettings())
    assert len({name_of(shape) for shape in shapes}) == 12
    for shape in shapes:
        assert 0.98 * count <= count_parameters(layout_of(config), shape).total <= count
        assert shape.hidden_size % 8 == 0 and shape.group_size == source.group_size
        kept = [
            getattr(shape, key) / getattr(source, key)
            for key in ('num_hidden_layers', 'hidden_size', 'num_key_value_heads', 'intermediate_size')
        ]
        assert max(kept) <= 2 * min(kept)
        target_shape(config, target_of(shape))  # each can be asked for
    assert shapes == propose_shapes(config, budget, SearchSettings())
    assert shapes[:5] == propose_shapes(config, budget, SearchSettings(candidates=5))


def test_pins_limits_and_cache_are_kept_to():
    settings = SearchSettings(pins={'num_hidden_layers': 24}, least={'hidden_size': 400}, most={'hidden_size': 520})
    shapes = propose_shapes(SMOLLM, '80M', settings)
    assert shapes and all(shape.num_hidden_layers == 24 and 400 <= shape.hidden_size <= 520 for shape in shapes)
    cache = 12_000
    small = propose_shapes(SMOLLM, '80M', SearchSettings(kv_cache=cache))
    assert small and all(kv_cache_bytes_per_token(layout_of(SMOLLM), shape) <= cache for shape in small)
    heads = propose_shapes(SMOLLM, '80M', SearchSettings(cut=CutSettings(keep_heads=True)))
    assert {shape.num_attention_heads for shape in heads} == {9}
    # heads that stay do not count among what is to be even
    few = propose_shapes(SMOLLM, '45M', SearchSettings(cut=CutSettings(keep_heads=True)))
    assert any(shape.num_hidden_layers < 15 for shape in few)


@pytest.mark.parametrize(
    ('budget', 'settings', 'message'),
    [
        ('500M', {}, 'pruning only removes'),
        ('1M', {}, 'no shape lies'),
        ('80M', {'most': {'hidden_size': 64}}, 'none of the .* shapes of this size keeps to --limit'),
        ('80M', {'kv_cache': 1}, 'of this size keeps to --kv-cache; .* Widen a limit'),
        (
            '30M',
            {'uneven': 1.2},
            '--uneven 1.2. Sizes go in steps and heads in whole groups .of 3.* keeps 1.33 times .* --uneven 1.34',
        ),
        ('80M', {'pins': {'num_hidden_layers': 31}}, '31'),
        ('many', {}, 'many'),
    ],
)
def test_what_cannot_be_is_refused(budget, settings, message):
    with pytest.raises(ValueError, match=message):
        propose_shapes(SMOLLM, budget, SearchSettings(**settings))


def test_a_shape_that_no_search_of_whole_groups_finds_is_a_candidate(monkeypatch):
    (first, *_) = propose_shapes(SMOLLM, '80M', SearchSettings())
    monkeypatch.setattr('llmshearing.search.candidates.shapes_within', lambda *_: [])
    assert propose_shapes(SMOLLM, '80M', SearchSettings()) == [first]


def test_the_unevenness_that_a_refusal_asks_for_is_enough():
    assert propose_shapes(SMOLLM, '30M', SearchSettings(uneven=1.34))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'pins': {'hiden_size': 3}}, 'hidden_size'),
        ({'least': {'hidden_size': 9}, 'most': {'hidden_size': 8}}, 'smaller size comes first'),
        ({'pins': {'hidden_size': 9}, 'most': {'hidden_size': 8}}, 'pinned and limited'),
        ({'tokens': 10**9}, '--steps'),
        ({'tokens': 10**9, 'steps': 2}, '--tokens: .* curve of at least 3 steps; give --steps'),
        ({'candidates': 0}, '--candidates'),
        ({'uneven': 0.5}, '--uneven'),
        ({'latency': 0}, '--latency'),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(**settings)


def test_a_source_of_a_type_without_a_table_is_refused_by_its_type():
    with pytest.raises(ValueError, match="'gpt2'.*not supported"):
        propose_shapes(GPT2Config(), '80M', SearchSettings())


def test_a_vocabulary_is_pinned_and_not_limited():
    assert SearchSettings(pins={'vocab_size': 64})
    with pytest.raises(ValueError, match='--limit: vocab_size is pinned or left as it is; --pin vocab_size=N trims'):
        SearchSettings(most={'vocab_size': 64})
