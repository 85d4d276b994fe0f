"""Counts against transformers' own, built on the meta device: the paper's shapes, current models, every family."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

import llmshearing.models.counting as counting
from llmshearing.models.families import families, family_of
from llmshearing.models.shapes import ModelShape, shape_of, with_shape
from tests.models.tiny import VARIANTS, tiny_model


def numbers(model_type, vocab_size, layers, hidden, intermediate, heads, kv_heads=None, **more):
    more = {**more, **({'num_key_value_heads': kv_heads} if kv_heads else {})}
    return CONFIG_MAPPING[model_type](
        vocab_size=vocab_size,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        **more,
    )


# Parameters as published with the models, and as the paper has them.
PUBLISHED = {
    'LLaMA2-7B': (6_738_415_616, numbers('llama', 32000, 32, 4096, 11008, 32)),
    'Sheared-LLaMA-2.7B': (2_701_560_320, numbers('llama', 32000, 32, 2560, 6912, 20)),
    'Sheared-LLaMA-1.3B': (1_345_423_360, numbers('llama', 32000, 24, 2048, 5504, 16)),
    '370M': (373_867_520, numbers('llama', 32000, 24, 1024, 2816, 8, head_dim=128)),
    'Llama-3.1-8B': (8_030_261_248, numbers('llama', 128256, 32, 4096, 14336, 32, 8)),
    'Llama-3.2-3B': (3_212_749_824, numbers('llama', 128256, 28, 3072, 8192, 24, 8, tie_word_embeddings=True)),
    'Mistral-7B-v0.3': (7_248_023_552, numbers('mistral', 32768, 32, 4096, 14336, 32, 8)),
    'Qwen2.5-7B': (7_615_616_512, numbers('qwen2', 152064, 28, 3584, 18944, 28, 4)),
    'Qwen3-8B': (8_190_735_360, numbers('qwen3', 151936, 36, 4096, 12288, 32, 8, head_dim=128)),
    'Gemma-2-9B': (9_241_705_984, numbers('gemma2', 256000, 42, 3584, 14336, 16, 8, head_dim=256)),
    'Phi-3-mini': (3_821_079_552, numbers('phi3', 32064, 32, 3072, 8192, 32, 32)),
    'Pythia-410M': (405_334_016, numbers('gpt_neox', 50304, 24, 1024, 4096, 16)),
}


def on_meta(config):
    MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # imports the modelling code outside the meta device
    with torch.device('meta'):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_counts(name):
    published, config = PUBLISHED[name]
    model = on_meta(config)
    counts = counting.count_parameters(counting.layout_of(config), shape_of(config))
    assert counts.total == published == model.num_parameters()
    without = model.num_parameters(exclude_embeddings=True) - counts.head
    assert counts.without_embeddings == without < published


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_family_at_its_own_and_another_shape(variant):
    config = tiny_model(variant).config
    layout, has_head_dim = counting.layout_of(config), family_of(config).has_head_dim
    source = shape_of(config)
    heads = 3 if source.group_size == 1 else 4
    kv_heads = heads if source.group_size == 1 else 2
    hidden = 36 if has_head_dim else heads * source.head_dim
    other = ModelShape(3, hidden, heads, kv_heads, 56, source.head_dim)
    if source.num_experts:
        other = dataclasses.replace(other, num_experts=4, num_experts_per_tok=source.num_experts_per_tok)
    for shape in (source, other):
        model = on_meta(with_shape(config, shape, has_head_dim))
        assert counting.count_parameters(layout, shape).total == model.num_parameters()
        matrices = sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if (parameter.dim() == 2 or '.experts.' in name)
            and not name.endswith('bias')
            and model.get_submodule(name.rsplit('.', 1)[0]) is not model.get_input_embeddings()
        )
        tied = model.get_input_embeddings().weight.numel() if config.tie_word_embeddings else 0
        every_expert = dataclasses.replace(shape, num_experts_per_tok=shape.num_experts)
        assert counting.training_flops_per_token(layout, every_expert, seq_len=0) == 6 * (matrices + tied)


def test_arrays_of_shapes_are_counted_at_once():
    import numpy as np

    config = tiny_model('qwen2').config
    layout, source = counting.layout_of(config), shape_of(config)
    hidden = np.array([8, 16, 48])
    together = counting.count_parameters(layout, dataclasses.replace(source, hidden_size=hidden)).total
    alone = [counting.count_parameters(layout, dataclasses.replace(source, hidden_size=int(h))).total for h in hidden]
    assert together.tolist() == alone


def test_a_table_that_misses_a_parameter_is_refused(monkeypatch):
    config = tiny_model('qwen3').config
    monkeypatch.setattr(counting, 'family_of', lambda config: families.get('llama'))  # without the norms over q and k
    with pytest.raises(RuntimeError, match='accounts for .* of the .* parameters'):
        counting.layout_of(config)


def test_flops_and_cache_of_llama2_7b_by_hand():
    config = PUBLISHED['LLaMA2-7B'][1]
    layout, shape = counting.layout_of(config), shape_of(config)
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000
    assert counting.training_flops_per_token(layout, shape, 4096) == 6 * matrices + 12 * 32 * 4096 * 4096
    assert counting.kv_cache_bytes_per_token(layout, shape) == 2 * 32 * 4096 * 2
    grouped = PUBLISHED['Llama-3.1-8B'][1]
    layout = counting.layout_of(grouped)
    assert counting.kv_cache_bytes_per_token(layout, shape_of(grouped)) == 2 * 32 * 8 * 128 * 2


@pytest.mark.parametrize('variant, windowed', [('gemma2', 2), ('gemma3_text', 2), ('mistral', 4), ('llama', 0)])
def test_layers_with_a_sliding_window_keep_no_more_than_it_holds(variant, windowed):
    config = tiny_model(variant).config
    layout, shape = counting.layout_of(config), shape_of(config)
    per_layer = 2 * shape.num_key_value_heads * shape.head_dim * 2
    assert counting.kv_cache_bytes_per_token(layout, shape) == (4 - windowed) * per_layer
    assert counting.kv_cache_window_bytes(layout, shape) == windowed * 8 * per_layer
    assert np.array_equal(layout.windowed_layers(np.arange(5)), [layout.windowed_layers(n) for n in range(5)])
    if windowed:
        config.sliding_window = config.max_position_embeddings  # which no context leaves
        assert counting.kv_cache_bytes_per_token(counting.layout_of(config), shape) == 4 * per_layer


@pytest.mark.skipif('olmo3' not in VARIANTS, reason='transformers 4 keeps all tokens')
def test_the_cache_is_transformers_own():
    model = tiny_model('olmo3').eval()
    layout, shape = counting.layout_of(model.config), shape_of(model.config)
    with torch.no_grad():
        layers = model(torch.arange(3, 43)[None], use_cache=True).past_key_values.layers
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    per_token, windows = (
        2 * count(layout, shape)  # float32 here
        for count in (counting.kv_cache_bytes_per_token, counting.kv_cache_window_bytes)
    )
    # Of its window of 8 transformers keeps 7 tokens from one to the next.
    assert kept == 40 * per_token + windows * 7 // 8 > windows > 0


@pytest.mark.skipif('qwen3_5_text' not in VARIANTS, reason='transformers 4 has no such model')
def test_a_hybrid_counts_its_cache_in_layers_with_attention_alone():
    config = tiny_model('qwen3_5_text').config
    layout, shape = counting.layout_of(config), shape_of(config)
    assert [layout.attention_layers(n) for n in range(1, 5)] == [0, 1, 1, 2]
    assert counting.kv_cache_bytes_per_token(layout, shape) == 2 * 2 * shape.num_key_value_heads * shape.head_dim * 2
