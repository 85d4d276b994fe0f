"""Sources that cannot be trained as they are: one sentence with the way to get one that can."""

import json
import logging
import re
import shutil

import pytest
import yaml
from transformers import AutoConfig, Gemma3Config, LlamaConfig, LlavaConfig, MistralConfig, MllamaConfig

from llmshearing.algorithms.distillation.distillation import Distillation
from llmshearing.checkpoints.weight_files import find_weights
from llmshearing.compat.transformers import rotary_of
from llmshearing.config.source import check_source, read_config_at, read_source, refuse_unusable
from llmshearing.export.text_part import write_text_part
from llmshearing.rotation.source_folder import SourceFolder
from tests.tiny_run import tiny_source

LINEAR = {'rope_type': 'linear', 'factor': 2.0}


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
        ({'rope_parameters': 5}, 'expected keys and values, as in the source|is no key'),
        ({'attention_dropout': 2.0}, 'config_overrides: attention_dropout: 2.0; .* at most 1; correct or remove it'),
        ({'rms_norm_eps': -1.0}, 'config_overrides: rms_norm_eps: -1.0; expected a number above 0'),
        (
            {'max_position_embeddings': -5},
            'config_overrides: max_position_embeddings: -5; expected a number of at least 1',
        ),
        ({'rope_theta': -1.0}, 'rope_theta: -1.0; expected a number above 0|has this elsewhere'),
        (
            {'tie_word_embeddings': True},
            "tie_word_embeddings: True, but the head of the source's weights is not the emb",
        ),
        ({'output_attentions': True}, 'output_attentions: a run decides this itself; remove it'),
    ],
)
def test_overrides_that_fit_no_weights(source, overrides, message):
    with pytest.raises(ValueError, match=message):
        check_source(run(source, config_overrides=overrides))


def test_a_head_of_its_own_is_not_made_up(tmp_path):
    tied = tiny_source(tmp_path / 'tied', tie_word_embeddings=True)
    assert check_source(run(tied, config_overrides={'tie_word_embeddings': True}))
    assert check_source(run(tied, config_overrides={'tie_word_embeddings': False}, pretrained=False))
    with pytest.raises(
        ValueError, match="tie_word_embeddings: False, but the source's weights hold no head of its own"
    ):
        check_source(run(tied, config_overrides={'tie_word_embeddings': False}))


@pytest.mark.parametrize('name', ['sheared_causal_lm', 'hf_causal_lm'])
@pytest.mark.parametrize(
    'overrides, expected',
    [
        ({'rope_theta': 5e5}, {'rope_theta': 5e5}),
        ({'rope_parameters': {'rope_theta': 5e5}}, {'rope_theta': 5e5}),
        ({'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'}}, {'rope_theta': 5e5}),
        ({'rope_scaling': LINEAR}, LINEAR),
        ({'rope_scaling': {'type': 'linear', 'factor': 2.0}}, LINEAR),
        ({'rope_parameters': {**LINEAR, 'rope_theta': 5e5}}, {**LINEAR, 'rope_theta': 5e5}),
    ],
)
def test_rotary_overrides_in_the_words_of_either_generation(source, tmp_path, name, overrides, expected):
    """They are taken, or refused with the way to write them, which is taken."""
    try:
        changed = check_source(run(source, name=name, config_overrides=overrides))
    except ValueError as error:
        place, written = re.search(r'write (config_overrides: )?(\{.*\})', str(error)).groups()
        written = yaml.safe_load(written)
        if place is None:
            assert "into a copy of the source's config.json, in the place of" in str(error)
            source = shutil.copytree(source, tmp_path / 'copy')
            content = json.loads((source / 'config.json').read_text())
            (source / 'config.json').write_text(json.dumps(content | written))
        changed = check_source(run(source, name=name, config_overrides=written if place else {}))
    rotary = rotary_of(changed)
    rotary.pop('type', None)
    assert rotary == {'rope_theta': 1e4, 'rope_type': 'default'} | expected


@pytest.mark.parametrize(
    'setting', [{'output_attentions': True}, {'output_hidden_states': True}, {'return_dict': False}]
)
def test_what_a_forward_pass_returns_is_no_setting_of_a_source(source, tmp_path, setting):
    source = shutil.copytree(source, tmp_path / 'copy')
    content = json.loads((source / 'config.json').read_text())
    (source / 'config.json').write_text(json.dumps(content | setting))
    (key,) = setting
    assert getattr(check_source(run(source)), key) == getattr(LlamaConfig(), key) != setting[key]


def test_what_no_model_can_be_built_with_is_no_fault_of_the_config_json(source):
    with pytest.raises(ValueError, match='model.config_overrides: .*; correct or remove them') as caught:
        check_source(run(source, config_overrides={'hidden_act': 'zzz'}, pretrained=False))
    assert 'config.json' not in str(caught.value)


def test_overrides_of_random_weights_are_free(source):
    assert check_source(run(source, config_overrides={'hidden_size': 64}, pretrained=False)).hidden_size == 64


@pytest.mark.parametrize('method', ['gptq', 'awq', 'bitsandbytes', 'fp8'])
def test_quantised_sources(source, tmp_path, method):
    config = json.loads((source / 'config.json').read_text())
    config['quantization_config'] = {'quant_method': method, 'bits': 4}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f'quantised weights \\({method}\\).*use the model that it was quantised from'):
        refuse_unusable(str(tmp_path), read_config_at('source', str(tmp_path)))


@pytest.mark.parametrize(
    'opened',
    [
        lambda place: read_source(str(place)),
        find_weights,
        SourceFolder,
        lambda place: Distillation(str(place)),
        lambda place: write_text_part(place, place.parent / 'out'),
        lambda place: check_source(run(place)),
    ],
)
def test_folders_that_are_taken_for_a_model_s(source, tmp_path, opened):
    shutil.copytree(source, tmp_path / 'models--a--b' / 'snapshots' / 'abc')
    with pytest.raises(ValueError, match=r'models--a--b is where .* cache .* the snapshot in it: \S*/snapshots/abc\.$'):
        opened(tmp_path / 'models--a--b')
    (tmp_path / 'adapter').mkdir()
    (tmp_path / 'adapter' / 'adapter_config.json').write_text('{}')
    with pytest.raises(ValueError, match='adapter holds an adapter .* merge it into its base model'):
        opened(tmp_path / 'adapter')


def test_multimodal_sources_say_how_to_take_the_text_part(tmp_path):
    for config in (Gemma3Config(), LlavaConfig(text_config=MistralConfig())):
        config.save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=f'multimodal model \\({config.model_type}\\).*{config.text_config.model_type}'
        ):
            refuse_unusable('source', read_config_at('source', str(tmp_path)))


def test_a_text_part_that_cannot_be_pruned_is_not_advised(tmp_path):
    """Its layers look at pictures, so there is no decoder of text alone to take."""
    MllamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'multimodal model \(mllama\), and its text part, .* is not supported\.$'):
        refuse_unusable('source', read_config_at('source', str(tmp_path)))
