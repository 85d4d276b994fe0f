"""Which axes a target may cut, and that heads stay with a budget unless they are let go."""

import pytest
from transformers import LlamaConfig

from llmshearing.cut.target import cut_shape
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.shapes import shape_of
from tests.models.tiny import tiny_model

FINE = {'multiple_of': 8, 'tolerance': 0.1}


def heads(shape):
    return shape.num_attention_heads, shape.num_key_value_heads


def test_a_budget_keeps_heads_unless_they_are_let_go():
    config = tiny_model().config
    budget = {'params': 40_000, **FINE}
    assert heads(cut_shape(config, budget)) == (6, 2)
    assert heads(cut_shape(config, budget, keep_heads=False)) != (6, 2)
    assert heads(cut_shape(config, {**budget, 'num_key_value_heads': 1})) == (3, 1)
    assert heads(cut_shape(config, {'fraction': {'num_attention_heads': 0.5}})) == (3, 1)  # not a budget
    assert count_parameters(layout_of(config), cut_shape(config, budget)).total <= 40_000


@pytest.mark.parametrize('axes', [['layer'], ['hidden'], ['intermediate'], ['head'], ['layer', 'intermediate']])
def test_only_the_axes_that_are_named_are_cut(axes):
    config = tiny_model().config
    source = shape_of(config)
    shape = cut_shape(config, {'params': 60_000, 'multiple_of': 1, 'tolerance': 0.2}, axes)
    keys = {'layer': 'num_hidden_layers', 'hidden': 'hidden_size', 'intermediate': 'intermediate_size'}
    for axis, key in {**keys, 'head': 'num_attention_heads'}.items():
        assert (getattr(shape, key) < getattr(source, key)) == (axis in axes), axis


def test_multiples_are_as_fine_as_it_takes_for_the_hidden_size_to_shrink():
    sizes = dict(vocab_size=500, hidden_size=576, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    config = LlamaConfig(**sizes, intermediate_size=1536, num_hidden_layers=30)
    budget = {'params': 0.6 * count_parameters(layout_of(config), shape_of(config)).total}
    shape = cut_shape(config, budget)
    assert heads(shape) == (9, 3) and shape.hidden_size < 576 and shape.hidden_size % 72 == 0
    assert cut_shape(config, {**budget, 'multiple_of': 64}).hidden_size == 576  # asked for
    config.num_attention_heads = config.num_key_value_heads = 8
    shape = cut_shape(config, budget)
    assert shape.hidden_size % 64 == 0 and shape.intermediate_size % 64 == 0


def test_heads_and_hidden_size_go_together_where_the_family_couples_them():
    config = tiny_model('gpt_neox').config
    assert cut_shape(config, {'params': 60_000, **FINE}).hidden_size == 48
    assert cut_shape(config, {'params': 60_000, **FINE}, keep_heads=False).hidden_size < 48


@pytest.mark.parametrize(
    'target, settings, message',
    [
        ({'params': 5000, **FINE}, {}, r'heads are kept; --no-keep-heads'),
        ({'params': 5000, **FINE}, {'keep_heads': True}, r'(?s)^(?!.*--no-keep-heads)'),
        ({'params': 10}, {}, r'(?s)nothing is smaller(?!.*--no-keep-heads)'),  # which would not help
        ({'params': 10**6}, {}, r'(?s)^(?!.*--no-keep-heads).*only removes'),
        ({'params': 70_000, 'multiple_of': 48}, {'axes': ['hidden']}, r'(?s)^(?!.*nearest above).*Lower multiple_of'),
        ({'hidden_size': 24}, {'axes': ['head'], 'keep_heads': True}, 'contradict each other'),
        ({'num_key_value_heads': 1}, {'keep_heads': True}, 'num_key_value_heads, which --keep-heads keeps'),
        ({'fraction': {'hidden_size': 0.5}}, {'axes': ['layer']}, 'hidden_size, which --axes keeps'),
        ({'num_hidden_layers': 4}, {}, 'target equals the source'),
        ({'sparsity': 0.5}, {}, 'sparsity names no shape'),
    ],
)
def test_what_contradicts_itself_is_refused(target, settings, message):
    with pytest.raises(ValueError, match=message):
        cut_shape(tiny_model().config, target, **settings)


def test_what_is_advised_is_possible():
    config = tiny_model().config
    assert cut_shape(config, {'params': 5000, **FINE}, keep_heads=False)
    uneven = tiny_model(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, head_dim=64).config
    budget = {'params': 0.05 * count_parameters(layout_of(uneven), shape_of(uneven)).total}
    with pytest.raises(ValueError, match='--no-keep-heads'):
        cut_shape(uneven, budget)
    assert cut_shape(uneven, budget, keep_heads=False)


def test_experts_are_an_axis_of_mixtures_alone():
    config = tiny_model('qwen3_moe').config
    half = cut_shape(config, {'fraction': {'num_experts': 0.5, 'moe_intermediate_size': 0.5}, 'multiple_of': 8})
    assert (half.num_experts, half.intermediate_size) == (3, 32)
    assert cut_shape(config, {'num_experts': 4}, axes=['expert']).num_experts == 4
    with pytest.raises(ValueError, match='--target names num_experts, which --axes keeps as in the source'):
        cut_shape(config, {'num_experts': 4, 'hidden_size': 24}, axes=['hidden'])
    with pytest.raises(ValueError, match=r"axes.*'expert'"):
        cut_shape(tiny_model('llama').config, {'hidden_size': 24}, axes=['expert'])
