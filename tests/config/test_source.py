"""Sources that cannot be trained as they are: one sentence with the way to get one that can."""

import json
import logging

import pytest
from transformers import AutoConfig, Gemma3Config, LlavaConfig, MistralConfig

from llmshearing.config.source import check_source, read_config_at, refuse_unusable
from tests.tiny_run import tiny_source


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return tiny_source(tmp_path_factory.mktemp('source'))


def run(source, max_seq_len=16, **model):
    model = {'name': 'sheared_causal_lm', 'pretrained_model_name_or_path': str(source), **model}
    return {'max_seq_len': max_seq_len, 'model': model, 'tokenizer': {'name': str(source)}}


def test_longer_sequences_than_positions_are_told(source, caplog):
    longest = AutoConfig.from_pretrained(source).max_position_embeddings
    with caplog.at_level(logging.WARNING):
        check_source(run(source, longest))
        assert not caplog.text
        check_source(run(source, longest + 1))
    assert f'max_seq_len: {longest + 1} is more than the {longest} positions' in caplog.text


def test_positions_may_be_widened_by_an_override(source, caplog):
    changed = check_source(run(source, 9999, config_overrides={'max_position_embeddings': 9999}))
    assert changed.max_position_embeddings == 9999 and not caplog.text


@pytest.mark.parametrize(
    'overrides, message',
    [
        ({'hidden_size': 64}, "do not fit the source's weights"),
        ({'num_hidden_layers': 7}, "do not fit the source's weights"),
        ({'vocab_size': 12}, "do not fit the source's weights"),
        ({'num_attention_heads': 'four'}, 'num_attention_heads: expected int, as in the source'),
        ({'hidden_act': 'zzz'}, 'no model can be built with'),
        ({'hiden_size': 64}, "'hiden_size' is no key of the config of a llama"),
    ],
)
def test_overrides_that_fit_no_weights(source, overrides, message):
    with pytest.raises(ValueError, match=message):
        check_source(run(source, config_overrides=overrides))


def test_overrides_of_random_weights_are_free(source):
    assert check_source(run(source, config_overrides={'hidden_size': 64}, pretrained=False)).hidden_size == 64


@pytest.mark.parametrize('method', ['gptq', 'awq', 'bitsandbytes', 'fp8'])
def test_quantised_sources(source, tmp_path, method):
    config = json.loads((source / 'config.json').read_text())
    config['quantization_config'] = {'quant_method': method, 'bits': 4}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f'quantised weights \\({method}\\).*use the model that it was quantised from'):
        refuse_unusable(str(tmp_path), read_config_at('source', str(tmp_path)))


def test_multimodal_sources_say_how_to_take_the_text_part(tmp_path):
    for config in (Gemma3Config(), LlavaConfig(text_config=MistralConfig())):
        config.save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=f'multimodal model \\({config.model_type}\\).*{config.text_config.model_type}'
        ):
            refuse_unusable('source', read_config_at('source', str(tmp_path)))
