"""Shapes that can be reached and that servers, quantizers or newer transformers do not take."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig, Qwen2Config

from llmshearing.commands.plan import main
from llmshearing.models.shapes import ModelShape
from llmshearing.planning.serving import position_warnings, serving_warnings

SOURCE = ModelShape(28, 3584, 28, 4, 18944, 128)


def warnings_of(model_type, hidden, heads, intermediate=18944, source=SOURCE):
    return '\n'.join(serving_warnings(model_type, source, ModelShape(28, hidden, heads, 4, intermediate, 128)))


@pytest.mark.parametrize('model_type', ['qwen2', 'olmo2', 'starcoder2'])
def test_servers_that_take_head_dim_from_the_hidden_size(model_type):
    said = warnings_of(model_type, 2560, 28)
    assert f'for {model_type} and cannot load this shape; num_attention_heads=20 could be served' in said
    assert 'hidden_size=1536 could be served' in warnings_of(model_type, 5120, 12)  # 40 heads are more than there are
    assert not warnings_of(model_type, 2560, 20)


@pytest.mark.parametrize('model_type', ['llama', 'gemma2', 'gemma3_text'])
def test_configs_that_newer_transformers_refuses(model_type):
    said = warnings_of(model_type, 2560, 28)
    assert 'hidden_size=2560 is no multiple of num_attention_heads=28: transformers 5 refuses' in said
    assert not warnings_of(model_type, 2560, 16)  # a head_dim of its own, and still a multiple
    assert not warnings_of('qwen3', 2560, 28)


@pytest.mark.parametrize(
    'hidden, heads, intermediate, words',
    [
        (2048, 16, 5504, 'intermediate_size=5504: no multiple of 256'),
        (2112, 16, 5632, 'hidden_size=2112: no multiple of 256'),
        (2048, 15, 5632, 'num_attention_heads x head_dim=1920: no multiple of 256'),
        (2112, 15, 5504, 'hidden_size=2112, num_attention_heads x head_dim=1920, intermediate_size=5504: no multiple'),
    ],
)
def test_rows_that_k_quants_cannot_pack(hidden, heads, intermediate, words):
    said = warnings_of('qwen3', hidden, heads, intermediate)
    assert said.startswith(words) and 'multiple_of: 256' in said
    assert (f'intermediate_size nearest: {5504 // 256 * 256} or {5504 // 256 * 256 + 256}' in said) == (
        intermediate == 5504
    )


def test_a_plan_says_it(tmp_path, capsys):
    Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
    ).save_pretrained(tmp_path / 'qwen2')
    argv = ['--params', '3e9', '--json', str(tmp_path / 'plan.json'), '--seq-len', '64', '--micro-batch', '1']
    assert main([str(tmp_path / 'qwen2'), *argv]) == 0
    plan = json.loads((tmp_path / 'plan.json').read_text())
    shape, said = plan['target']['shape'], '\n'.join(plan['warnings'])
    assert ('cannot load this shape' in said) == (
        shape['hidden_size'] != shape['num_attention_heads'] * shape['head_dim']
    )
    # The advice for quantization is one that works.
    LlamaConfig(vocab_size=32000).save_pretrained(tmp_path / 'llama')
    target = ['fraction.hidden_size=0.5', 'fraction.num_attention_heads=0.5', 'fraction.intermediate_size=0.5']
    for extra, expected in (([], True), (['multiple_of=256'], False)):
        assert main([str(tmp_path / 'llama'), '--target', *target, *extra, '--seq-len', '64']) == 0
        assert ('K-quants' in capsys.readouterr().out) == expected


def test_small_models_have_small_units(tmp_path, capsys):
    LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ).save_pretrained(tmp_path)
    assert main([str(tmp_path), '--gpus', '1', '--sharding', 'ddp', '--micro-batch', '1', '--seq-len', '32']) == 0
    lines = capsys.readouterr().out.splitlines()
    parameters = 2 * 512 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    (size,) = (line.split()[-2:] for line in lines if line.startswith('size in bfloat16'))
    assert size == [f'{2 * parameters / 1e3:.2f}', 'kB']
    unit = next(line.split() for line in lines[lines.index('') :] if line.startswith('  ') and 'training' in line)
    assert unit == ['MiB', 'training']
    (total,) = (float(line.split()[-1]) for line in lines if line.startswith('  total'))
    assert 1 < total < 1024


@pytest.mark.parametrize(
    'model_type, name, right, wrong',
    [
        ('smollm3', 'no_rope_layers', [1, 1, 1, 0, 1], [1, 1, 0, 1]),
        ('gpt_oss', 'layer_types', ['sliding_attention', 'full_attention'], ['sliding_attention'] * 2),
    ],
)
def test_layers_that_programs_know_by_their_number(model_type, name, right, wrong):
    fewer = dataclasses.replace(SOURCE, num_hidden_layers=20)
    assert f'whatever {name} of the config says' in '\n'.join(serving_warnings(model_type, SOURCE, fewer))
    assert 'by its number' not in '\n'.join(serving_warnings(model_type, SOURCE, SOURCE))
    assert not position_warnings(SimpleNamespace(model_type=model_type, **{name: right}))
    (warning,) = position_warnings(SimpleNamespace(model_type=model_type, **{name: wrong}))
    assert f'{name} of this model is another list' in warning
    assert not position_warnings(SimpleNamespace(model_type='llama', **{name: wrong}))
