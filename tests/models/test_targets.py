"""Targets by shape, fraction and budget: exact results, the search against all shapes, all problems at once."""

import dataclasses
import itertools
import math

import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.families import family_of
from llmshearing.models.shapes import ModelShape, resolve_target, shape_of, with_shape
from llmshearing.models.targets import nearest_heads, target_shape
from tests.models.tiny import VARIANTS, tiny_model
from tests.tiny_run import tiny_source, tiny_trainer

LLAMA2_7B = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)
LLAMA31_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
HALVES = {'hidden_size': 0.5, 'num_attention_heads': 0.5, 'intermediate_size': 0.5}
UNEVEN = {'uneven_heads': True}
PYTHIA_410M = CONFIG_MAPPING['gpt_neox'](
    vocab_size=50304, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
)


def count(config, shape):
    return count_parameters(layout_of(config), shape).total


def test_a_shape_is_taken_as_it_is():
    target = {'hidden_size': 2060, 'num_attention_heads': 20, 'num_hidden_layers': 7}
    assert target_shape(LLAMA31_8B, target) == resolve_target(shape_of(LLAMA31_8B), target)


@pytest.mark.parametrize(
    'config, fraction, more, expected',
    [
        (LLAMA2_7B, {**HALVES, 'num_hidden_layers': 0.75}, {}, (24, 2048, 16, 16, 5504, 128)),
        (LLAMA2_7B, {'hidden_size': 0.61, 'num_hidden_layers': 0.01}, {}, (1, 2496, 32, 32, 11008, 128)),
        (LLAMA2_7B, {'hidden_size': 0.61}, {'multiple_of': 128}, (32, 2560, 32, 32, 11008, 128)),
        (LLAMA2_7B, {'hidden_size': 0.5}, {'intermediate_size': 5505}, (32, 2048, 32, 32, 5505, 128)),
        # grouped queries: the nearest of whole groups fewer (4, 8, ... 28) and fewer in every group (8, 16, 24)
        (LLAMA31_8B, {'num_attention_heads': 0.6}, UNEVEN, (32, 4096, 20, 5, 14336, 128)),
        # of those whose hidden size is a multiple of them, as newer releases of transformers ask for
        (LLAMA31_8B, {'num_attention_heads': 0.6}, {}, (32, 4096, 16, 4, 14336, 128)),
        (LLAMA31_8B, {'num_attention_heads': 0.8}, {'num_key_value_heads': 8}, (32, 4096, 32, 8, 14336, 128)),
        (LLAMA31_8B, {'hidden_size': 0.6, 'num_attention_heads': 0.6}, {}, (32, 2560, 20, 5, 14336, 128)),
        (LLAMA31_8B, {'hidden_size': 0.6}, {'num_key_value_heads': 3}, (32, 2496, 12, 3, 14336, 128)),
        (LLAMA31_8B, {'num_key_value_heads': 0.5}, {}, (32, 4096, 16, 4, 14336, 128)),
        (LLAMA31_8B, {'num_attention_heads': 0.7}, {'num_key_value_heads': 8, **UNEVEN}, (32, 4096, 24, 8, 14336, 128)),
        (LLAMA31_8B, {'num_attention_heads': 0.3, 'num_key_value_heads': 0.6}, UNEVEN, (32, 4096, 10, 5, 14336, 128)),
        # without head_dim, hidden size and heads follow one another
        (PYTHIA_410M, {'hidden_size': 0.75}, {}, (24, 768, 12, 12, 4096, 64)),
        (PYTHIA_410M, {'num_attention_heads': 0.3}, {}, (24, 320, 5, 5, 4096, 64)),
        (PYTHIA_410M, {'hidden_size': 0.75}, {'multiple_of': 256}, (24, 768, 12, 12, 4096, 64)),
        (PYTHIA_410M, {'intermediate_size': 0.5}, {'num_attention_heads': 8}, (24, 512, 8, 8, 2048, 64)),
    ],
)
def test_fractions_are_rounded_to_what_is_possible(config, fraction, more, expected):
    target = {'fraction': fraction, **more}
    if TRANSFORMERS_5 and target.get('uneven_heads'):  # no model of such a shape can be opened there
        with pytest.raises(ValueError, match='true with transformers 4 only'):
            target_shape(config, target)
        return
    assert target_shape(config, target) == ModelShape(*expected)


def test_a_whole_fraction_keeps_an_unaligned_size():
    config = LlamaConfig(
        hidden_size=100, intermediate_size=300, num_attention_heads=4, num_hidden_layers=4, head_dim=16
    )
    shape = target_shape(config, {'fraction': {'hidden_size': 1.0, 'intermediate_size': 0.99}})
    assert (shape.hidden_size, shape.intermediate_size) == (100, 256)


@pytest.mark.parametrize(
    'config, target, nearest',
    [
        (LLAMA2_7B, {'hidden_size': 2050, 'num_attention_heads': 16}, 'hidden_size=2048 or 2064'),
        (LLAMA2_7B, {'hidden_size': 2048, 'num_attention_heads': 17}, 'num_attention_heads=16'),
        (LLAMA31_8B, {'hidden_size': 4096, 'num_key_value_heads': 5}, 'hidden_size=4080'),
        (tiny_model('gemma2').config, {'hidden_size': 40, 'num_key_value_heads': 1}, 'hidden_size=39 or 42'),
    ],
)
def test_shapes_that_newer_transformers_refuses(config, target, nearest):
    with pytest.raises(ValueError, match=f'transformers 5.8 and newer open a .*nearest: .*{nearest}.*"mistral"'):
        target_shape(config, target)
    if not TRANSFORMERS_5:
        shape = target_shape(config, {**target, 'uneven_heads': True})
        assert shape.hidden_size == target['hidden_size']
    with pytest.raises(ValueError, match='uneven_heads=1 is not possible'):
        target_shape(config, {**target, 'uneven_heads': 1})


def test_rotary_factors_that_are_tied_to_a_size():
    """Phi-3's LongRoPE has one factor for two of hidden_size / num_attention_heads."""
    longrope = {'type': 'longrope', 'short_factor': [1.0] * 4, 'long_factor': [2.0] * 4}
    config = tiny_model('phi3', rope_scaling=longrope, original_max_position_embeddings=64).config
    for target in ({'hidden_size': 24}, {'num_attention_heads': 3}, {'num_key_value_heads': 1}):
        with pytest.raises(ValueError, match=r'(?s)takes no phi3 of the target .*keep that quotient, 48 / 6'):
            target_shape(config, target)
    shape = target_shape(config, {'hidden_size': 24, 'num_key_value_heads': 1, 'intermediate_size': 40})
    assert (shape.hidden_size, shape.num_attention_heads) == (24, 3)


@pytest.mark.skipif('lfm2' not in VARIANTS, reason='transformers 4 has no such model')
def test_a_finished_model_has_attention_somewhere():
    """transformers runs no model with a cache that has none; kinds of layers keep their order."""
    config = tiny_model('lfm2', layer_types=['conv', 'conv', 'full_attention', 'conv']).config
    assert target_shape(config, {'num_hidden_layers': 3}).num_hidden_layers == 3
    message = '=2 leaves no layer with attention.*conv, conv, full_attention, .*set at least 3'
    for target in ({'num_hidden_layers': 2}, {'fraction': {'num_hidden_layers': 0.5}}):
        with pytest.raises(ValueError, match=message):
            target_shape(config, target)
    for share in (0.3, 0.5, 0.7):
        found = target_shape(config, {'params': int(share * count(config, shape_of(config))), 'multiple_of': 1})
        assert found.num_hidden_layers > 2
    without = tiny_model('lfm2', layer_types=['conv'] * 4).config
    with pytest.raises(ValueError, match='no layer of the source has attention'):
        target_shape(without, {'hidden_size': 40})


@pytest.mark.skipif('granitemoehybrid' not in VARIANTS, reason='transformers 4 has no such model')
def test_hidden_sizes_of_granite_divide_the_channels_of_its_mixers():
    config = tiny_model('granitemoehybrid-mamba').config  # 288 channels
    for hidden in (36, 32, 24):
        shape = target_shape(config, {'hidden_size': hidden})
        cut = with_shape(config, shape)
        assert cut.mamba_expand * hidden == 288 and (cut.mamba_n_heads, cut.mamba_d_head) == (12, 24)
    with pytest.raises(ValueError, match='hidden_size=40: the Mamba mixers .* keep their 288 channels.*32, 36, 48'):
        target_shape(config, {'hidden_size': 40})
    without = tiny_model('granitemoehybrid').config  # attention alone
    cut = with_shape(without, target_shape(without, {'hidden_size': 40, 'shared_intermediate_size': 24}))
    type(cut).from_dict(cut.to_dict())  # whose settings of mixers are checked although there are none
    assert (cut.hidden_size, cut.shared_intermediate_size, cut.intermediate_size) == (40, 24, 24)
    mixture = tiny_model('granitemoehybrid-experts').config
    cut = with_shape(mixture, target_shape(mixture, {'num_local_experts': 4, 'intermediate_size': 24}))
    assert (cut.num_local_experts, cut.intermediate_size, cut.shared_intermediate_size) == (4, 24, 32)


def test_types_without_that_rule_take_any_shape():
    for variant in ('mistral', 'qwen2', 'granite'):
        assert target_shape(tiny_model(variant).config, {'hidden_size': 40, 'num_key_value_heads': 1}).hidden_size == 40


def test_heads_of_few_groups():
    few = dataclasses.replace(shape_of(LLAMA31_8B), num_attention_heads=16, num_key_value_heads=2)
    assert nearest_heads(few, 12) == (12, 2)
    assert nearest_heads(few, 8) == (8, 1)  # as near: whole groups
    assert nearest_heads(few, 1) == (2, 2)


def test_the_budget_of_the_papers_small_model_gives_its_shape():
    shape = target_shape(LLAMA2_7B, {'params': 1.35e9, 'num_hidden_layers': 24})
    assert shape == ModelShape(24, 2048, 16, 16, 5504, 128)
    assert target_shape(LLAMA2_7B, {'params': '1.35B', 'num_hidden_layers': 24}) == shape


def every_shape(source, multiple_of, has_head_dim):
    whole = [(n * source.group_size, n) for n in range(1, source.num_key_value_heads + 1)]
    inside = [(n * source.num_key_value_heads, source.num_key_value_heads) for n in range(1, source.group_size)]
    for layers, hidden, (heads, kv), intermediate in itertools.product(
        range(1, source.num_hidden_layers + 1),
        range(multiple_of, source.hidden_size + 1, multiple_of),
        whole + inside,
        range(multiple_of, source.intermediate_size + 1, multiple_of),
    ):
        if has_head_dim or hidden == heads * source.head_dim:
            experts = (source.num_experts, source.num_experts_per_tok)
            yield ModelShape(layers, hidden, heads, kv, intermediate, source.head_dim, *experts)


NEEDS_WHOLE_HEADS = ('arcee', 'cwm', 'gemma2', 'gemma3_text', 'hyperclovax', 'jais2', 'llama', 'vaultgemma')


def opens(config, shape):
    """Whether the newest transformers opens such a shape."""
    if config.model_type == 'granitemoehybrid' and 'linear_attention' in config.layer_types:
        return config.mamba_n_heads * config.mamba_d_head % shape.hidden_size == 0
    return config.model_type not in NEEDS_WHOLE_HEADS or (shape.hidden_size % shape.num_attention_heads == 0)


def spread_by_hand(source, shape, pinned=()):
    """Weighted variance of the logarithms of the ratios that are not pinned."""
    weights = {'num_hidden_layers': 1, 'hidden_size': 1, 'intermediate_size': 1}
    weights |= {'num_attention_heads': 0.5, 'num_key_value_heads': 0.5}
    pairs = [(w, math.log(getattr(shape, k) / getattr(source, k))) for k, w in weights.items() if k not in pinned]
    mean = sum(w * r for w, r in pairs) / sum(w for w, _ in pairs)
    return sum(w * (r - mean) ** 2 for w, r in pairs) / sum(w for w, _ in pairs)


@pytest.mark.parametrize('share, tolerance', [(0.2, 0.04), (0.45, 0.04), (0.7, 0.3)])
@pytest.mark.parametrize('variant', sorted(set(VARIANTS) - {'llama-rope3', 'gpt_neox-serial', 'mistral', 'granite'}))
def test_the_search_finds_the_best_of_all_shapes(variant, share, tolerance):
    config = tiny_model(variant, hidden_size=96, intermediate_size=128).config
    source, layout, has_head_dim = shape_of(config), layout_of(config), family_of(config).has_head_dim
    budget = int(count_parameters(layout, source).total * share)
    shapes = [shape for shape in every_shape(source, 8, has_head_dim) if opens(config, shape)]
    counted = {shape: count_parameters(layout, shape).total for shape in shapes}
    within = [shape for shape, n in counted.items() if (1 - tolerance) * budget <= n <= budget]
    target = {'params': budget, 'multiple_of': 8, 'tolerance': tolerance}
    if not within:
        with pytest.raises(ValueError, match='nearest below') as raised:
            target_shape(config, target)
        for n in (max(n for n in counted.values() if n <= budget), min(n for n in counted.values() if n > budget)):
            assert f'{n:,} parameters' in str(raised.value)
        return
    least = min(spread_by_hand(source, shape) for shape in within)
    shape = target_shape(config, target)
    assert shape in within
    assert spread_by_hand(source, shape) == pytest.approx(least, abs=1e-8)
    model = AutoModelForCausalLM.from_config(with_shape(config, shape, has_head_dim))
    assert model.num_parameters() == counted[shape]


@pytest.mark.parametrize(
    'pins, budget, tolerance',
    [
        ({'num_hidden_layers': 4, 'num_attention_heads': 3, 'num_key_value_heads': 1}, 80000, 0.03),
        ({'num_hidden_layers': 4, 'hidden_size': 96}, 100000, 0.5),  # the best intermediate size is below the ideal one
        ({'intermediate_size': 77}, 60000, 0.1),
        ({'hidden_size': 54, 'intermediate_size': 33}, 50000, 0.1),
    ],
)
def test_pins_are_kept_and_take_no_part_in_the_proportions(pins, budget, tolerance):
    config = tiny_model('llama', hidden_size=96, intermediate_size=128).config
    source, layout = shape_of(config), layout_of(config)
    pinned = {dataclasses.replace(shape, **pins) for shape in every_shape(source, 8, True)}
    counted = {shape: count_parameters(layout, shape).total for shape in pinned if opens(config, shape)}
    within = [shape for shape, n in counted.items() if (1 - tolerance) * budget <= n <= budget]
    least = min(spread_by_hand(source, other, pins) for other in within)
    shape = target_shape(config, {'params': budget, 'multiple_of': 8, 'tolerance': tolerance, **pins})
    assert shape in within
    assert spread_by_hand(source, shape, pins) == pytest.approx(least, abs=1e-8)


def test_with_one_free_size_the_budget_is_filled():
    target = {'params': 1.34e9, 'num_hidden_layers': 24, 'hidden_size': 2048, 'num_attention_heads': 16}
    shape = target_shape(LLAMA2_7B, target)
    more = dataclasses.replace(shape, intermediate_size=shape.intermediate_size + 64)
    assert count(LLAMA2_7B, shape) <= 1.34e9 < count(LLAMA2_7B, more)


@pytest.mark.parametrize(
    'size, dtype, parameters',
    [
        ('2.5GB', 'bfloat16', 1.25e9),
        ('2.5 GiB', 'float16', 1.25 * 2**30),
        ('5GB', 'float32', 1.25e9),
        (2500000000, 'bfloat16', 1.25e9),
    ],
)
def test_a_size_is_a_number_of_parameters_at_a_dtype(size, dtype, parameters):
    shape = target_shape(LLAMA2_7B, {'size': size, 'dtype': dtype})
    assert shape == target_shape(LLAMA2_7B, {'params': int(parameters)})
    assert 0.98 * parameters <= count(LLAMA2_7B, shape) <= parameters


@pytest.mark.parametrize(
    'target, messages',
    [
        ({'params': 1.3e9, 'hiden_size': 3}, ["unknown key 'hiden_size'. Did you mean 'hidden_size'?"]),
        ({'params': 1.3e9, 'size': '2GB'}, ['params and size both name the target']),
        ({'params': 'many'}, ["params: not a count: 'many'"]),
        ({'params': -5}, ['params: not a count: -5']),
        ({'params': True}, ['params: not a count: True']),
        ({'size': '2.5 furlongs'}, ["size: not a size: '2.5 furlongs'"]),
        ({'size': '2GB', 'dtype': 'int4'}, ["dtype='int4': must be one of bfloat16, float16, float32"]),
        ({'params': 1e9, 'dtype': 'bfloat16'}, ['dtype belongs to size']),
        ({'hidden_size': 2048, 'multiple_of': 64}, ['multiple_of belongs to fraction or params or size']),
        ({'fraction': {'hidden_size': 0.5}, 'tolerance': 0.1}, ['tolerance belongs to params or size']),
        ({'params': 1e9, 'tolerance': 2}, ['tolerance=2: must be between 0 and 1']),
        ({'params': 1e9, 'multiple_of': 6.5}, ['multiple_of=6.5: must be a whole number']),
        ({'fraction': 0.5}, ['fraction=0.5: must map some of num_hidden_layers']),
        ({'fraction': {'hidden_size': 1.5}}, ['fraction.hidden_size=1.5: must be above 0 and at most 1; nearest: 1.0']),
        ({'fraction': {'num_hidden_layers': 0}}, ['nearest: 0.031, which keeps one']),
        ({'fraction': {'hidden_size': 'half'}}, ["fraction.hidden_size='half': must be a number"]),
        ({'fraction': {'head_dim': 0.5}}, ["fraction: unknown key 'head_dim'"]),
        ({'fraction': {'hidden_size': 0.5}, 'hidden_size': 64}, ['hidden_size is given as a size and as a fraction']),
        ({'fraction': {'hidden_size': 0.5}, 'multiple_of': 5000}, ["no multiple of 5000 fits into the source's 4096"]),
        ({'params': 1e9, 'multiple_of': 5000}, ['multiples of multiple_of=5000; lower multiple_of']),
        ({'params': 8e9}, ['8,000,000,000 parameters, but the source has 6,738,415,616', 'name a smaller budget']),
        ({'params': 1e6}, ['nearest above: 4,141,248 parameters', 'lower multiple_of']),
        # everything at once
        (
            {
                'params': 'x',
                'sise': 3,
                'dtype': 'int4',
                'hidden_size': 5000,
                'intermediate_size': 2.5,
                'num_key_value_heads': 33,
                'multiple_of': 0,
                'fraction': {'hiden': 0.5, 'num_hidden_layers': 2},
            },
            [
                "unknown key 'sise'",
                'fraction and params both',
                'dtype belongs to size',
                "not a count: 'x'",
                "dtype='int4'",
                'multiple_of=0',
                "unknown key 'hiden'",
                'fraction.num_hidden_layers=2',
                'intermediate_size=2.5: must be a whole number',
                "hidden_size=5000 is larger than the source's 4096",
                "num_key_value_heads=33 is larger than the source's 32",
            ],
        ),
    ],
)
def test_what_is_not_possible_is_refused_with_what_is(target, messages):
    with pytest.raises(ValueError) as raised:
        target_shape(LLAMA2_7B, target)
    for message in messages:
        assert message in str(raised.value)


def test_coupled_sizes_are_refused_where_they_disagree():
    with pytest.raises(ValueError, match='give hidden_size alone'):
        target_shape(PYTHIA_410M, {'fraction': {'hidden_size': 0.75, 'num_attention_heads': 0.5}})
    with pytest.raises(ValueError, match='nearest: hidden_size=512, num_attention_heads=8'):
        target_shape(PYTHIA_410M, {'params': 2e8, 'hidden_size': 500})
    shape = target_shape(PYTHIA_410M, {'params': 1.9e8, 'num_attention_heads': 12})
    assert (shape.hidden_size, shape.num_attention_heads) == (768, 12)


def test_an_unreachable_budget_names_a_tolerance_that_reaches_it():
    sizes = {'num_hidden_layers': 24, 'hidden_size': 2048, 'num_attention_heads': 16, 'intermediate_size': 5504}
    target = {'params': 1.4e9, **sizes}
    with pytest.raises(ValueError, match='nearest below: 1,345,423,360') as raised:
        target_shape(LLAMA2_7B, target)
    assert 'set tolerance to at least 0.039' in str(raised.value)
    assert 'nearest above' not in str(raised.value)
    assert target_shape(LLAMA2_7B, {**target, 'tolerance': 0.039}) == ModelShape(24, 2048, 16, 16, 5504, 128)


@pytest.mark.parametrize(
    'target',
    [
        {'fraction': {'hidden_size': 0.5, 'num_hidden_layers': 0.5}, 'multiple_of': 8},
        {'params': 30000, 'multiple_of': 8, 'tolerance': 0.05},
    ],
)
def test_a_pruning_run_takes_every_way(tmp_path, target):
    source = tiny_source(tmp_path / 'source')
    pruning = TargetedPruning(target=target)
    tiny_trainer(source, [pruning])
    assert pruning.target == target_shape(tiny_model().config, target)
    assert pruning.plans['hidden'].keep == pruning.target.hidden_size < 48
