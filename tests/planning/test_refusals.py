"""Budgets that no model has, configs that no model can be built from: refused in one line, in a plan and in a run."""

import json
import re

import pytest
from transformers import LlamaConfig

from llmshearing import cli
from llmshearing.commands.plan import main
from llmshearing.compat.transformers import STRICT_ERROR
from llmshearing.models.targets import target_shape

TINY = {
    'model_type': 'llama',
    'vocab_size': 320,
    'hidden_size': 64,
    'intermediate_size': 128,
    'num_hidden_layers': 4,
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'max_position_embeddings': 64,
}


@pytest.mark.parametrize(
    'option, value, message',
    [
        ('--size', '1B', "size: '1B' is 1 bytes, less than any model has; .* params: 1B for a billion parameters"),
        ('--size', '0.5', "size: '0.5' is 0 bytes"),
        ('--size', '1e400', "size: not a size: '1e400'"),
        ('--size', '1e308TB', "size: not a size: '1e308TB'"),
        ('--params', '0.5', "params: '0.5' is less than one parameter"),
        ('--params', '1', 'params=1 is 1 parameters; .*nearest above'),
        ('--params', '1e400', "params: not a count: '1e400'"),
    ],
)
def test_budgets_that_no_model_has(tmp_path, option, value, message):
    (tmp_path / 'config.json').write_text(json.dumps(TINY))
    with pytest.raises(ValueError, match=f'(?s){message}'):
        main([str(tmp_path), option, value])


@pytest.mark.parametrize(
    'wrong, message',
    [
        (
            {'num_attention_heads': 6},
            'num_attention_heads=6 and num_key_value_heads=4: .* 6 must be a multiple of 4|multiple of the number',
        ),
        ({'num_key_value_heads': 16}, 'num_attention_heads=8 and num_key_value_heads=16'),
        ({'hidden_act': 'swiglu'}, "builds no llama model .*KeyError: 'swiglu'.* one of hidden_act='swiglu'"),
        (
            {'rope_scaling': {'rope_type': 'foo', 'factor': 2}},
            "has rope_scaling.rope_type: 'foo'|KeyError: 'foo'.* rope_scaling={'rope_type': 'foo'",
        ),
        ({'pad_token_id': 500}, 'AssertionError: Padding_idx.* vocab_size=320, pad_token_id=500'),
        ({'rope_theta': 'x'}, "rope_theta.*'x'"),
        ({'initializer_range': 'x'}, 'TypeError: .*initializer_range'),
    ],
)
def test_configs_that_no_model_can_be_built_from(tmp_path, capsys, wrong, message):
    (tmp_path / 'config.json').write_text(json.dumps({**TINY, **wrong}))
    for target in ([], ['--params', '60000'], ['--target', 'num_hidden_layers=2']):
        assert cli.main(['plan', str(tmp_path), *target]) == 1
        error = capsys.readouterr().err
        assert error.startswith('llmshearing plan: ') and error.count('\n') == 1
        assert re.search(message, error)
    config = {key: value for key, value in {**TINY, **wrong}.items() if key != 'model_type'}
    with pytest.raises((ValueError, STRICT_ERROR), match=f'(?s){message}'):
        target_shape(LlamaConfig(**config), {'params': 60000})
