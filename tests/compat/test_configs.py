"""What compat.configs writes for older readers: transformers 5 reads it as before, others the same numbers."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, configuration_utils

from llmshearing.compat.configs import add_older_names, normalise_config
from llmshearing.compat.rotary import main_rotary
from llmshearing.compat.transformers import set_dtype
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.models.source_config import check_stock_reading, read_config
from tests.models.tiny import OWN_ROTARY, ROTARY, ROTARY_BASE, VARIANTS, rotary_model, tiny_model


@pytest.mark.parametrize('variant', [name for name in (*VARIANTS, *ROTARY) if name not in OWN_ROTARY])
def test_add_older_names_adds_and_changes_nothing(variant, tmp_path, monkeypatch):
    config, path = rotary_model(variant).config, tmp_path / 'config.json'
    set_dtype(config, torch.float32)
    config.save_pretrained(tmp_path)
    before = json.loads(path.read_text())
    add_older_names(path)
    after = json.loads(path.read_text())
    changed = {key for key, value in before.items() if after[key] != value}
    allowed = set() if before.get('use_sliding_window', True) else {'sliding_window'}  # which is not in use
    if variant.startswith('granitemoehybrid'):  # whose kinds of layers have older words, which both generations read
        allowed = {'layer_types'}
    assert changed <= allowed
    assert normalise_config(after)  # no contradiction in it
    said = []
    monkeypatch.setattr(configuration_utils.logger, 'warning_once', lambda message, *rest: said.append(message))
    again = AutoConfig.from_pretrained(tmp_path)
    assert not [message for message in said if 'torch_dtype' in message]  # both spellings are read silently
    assert (main_rotary(again.rope_parameters)['rope_theta'] if TRANSFORMERS_5 else again.rope_theta) == ROTARY_BASE
    if TRANSFORMERS_5:
        assert again.rope_parameters == config.rope_parameters
        assert getattr(again, 'layer_types', None) == getattr(config, 'layer_types', None)
        assert after['torch_dtype'] == after['dtype'] == 'float32'
        assert {'rope_theta', 'rotary_emb_base'} & after.keys()


@pytest.mark.skipif(not TRANSFORMERS_5, reason='transformers 4 writes no such config')
def test_what_transformers_4_does_not_compute_is_written_as_it_is(tmp_path):
    rotary = {'rope_type': 'yarn', 'rope_theta': 5e5, 'factor': 2.0, 'truncate': False}
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'llama', 'rope_parameters': rotary}))
    add_older_names(tmp_path / 'config.json')
    content = json.loads((tmp_path / 'config.json').read_text())
    assert content['rope_theta'] == 5e5 and content['rope_parameters'] == rotary
    assert content['rope_scaling'] == {'rope_type': 'yarn', 'factor': 2.0, 'truncate': False}


@pytest.mark.parametrize('model_type', ['olmo', 'olmo2'])
@pytest.mark.parametrize('kind', ['linear', 'dynamic', 'yarn'])
def test_olmo_has_words_of_its_own_for_rotary_settings(model_type, kind, tmp_path, caplog):
    path = tmp_path / 'config.json'
    rotary = {'rope_type': kind, 'rope_theta': 5e5, 'factor': 2}
    path.write_text(json.dumps({'model_type': model_type, 'rope_parameters': rotary}))
    add_older_names(path)
    content = json.loads(path.read_text())
    if kind == 'yarn':
        assert f"rope_parameters.rope_type: '{kind}'" in caplog.text
    else:
        assert content['rope_scaling'] == {'type': kind, 'factor': 2.0} and not caplog.records
    if kind != 'yarn' or TRANSFORMERS_5:
        assert AutoConfig.from_pretrained(tmp_path).model_type == model_type
    older = {'model_type': model_type, 'rope_scaling': {'rope_type': kind, 'factor': 2.0}}
    if TRANSFORMERS_5:
        assert normalise_config(older) == older
    elif kind == 'yarn':
        with pytest.raises(ValueError, match="rope_scaling.rope_type: 'yarn', which transformers 4 does not compute"):
            normalise_config(older)
    else:
        assert normalise_config(older)['rope_scaling'] == {'type': kind, 'factor': 2.0}


def test_the_gelu_of_the_first_gemmas_is_the_tanh_approximation(tmp_path):
    content = {**tiny_model('gemma').config.to_dict(), 'hidden_act': 'gelu', 'hidden_activation': None}
    path, values = tmp_path / 'config.json', torch.linspace(-3, 3, 50)
    path.write_text(json.dumps(content, default=str))
    config = read_config(tmp_path)
    act = AutoModelForCausalLM.from_config(config).model.layers[0].mlp.act_fn
    assert torch.equal(act(values), torch.nn.functional.gelu(values, approximate='tanh'))
    if not TRANSFORMERS_5:
        with pytest.raises(ValueError, match='compute with hidden_act: .gelu. instead of .gelu_pytorch_tanh.'):
            check_stock_reading(tmp_path, config)
    add_older_names(path)  # as what copies a config.json does
    check_stock_reading(tmp_path, config)
    assert normalise_config({**content, 'model_type': 'gpt_neox'})['hidden_act'] == 'gelu'


@pytest.mark.parametrize('key', ['attn_implementation', '_attn_implementation', '_attn_implementation_internal'])
def test_the_attention_of_another_machine_is_not_looked_for(key, tmp_path):
    content = {**tiny_model('llama').config.to_dict(), key: 'flash_attention_2'}
    (tmp_path / 'config.json').write_text(json.dumps(content, default=str))
    model = AutoModelForCausalLM.from_config(read_config(tmp_path))
    assert model.config._attn_implementation in ('eager', 'sdpa')


def test_main_rotary_is_that_of_full_attention():
    one = {'rope_theta': 1e4}
    assert main_rotary(one) == main_rotary({'full_attention': one, 'sliding_attention': {'rope_theta': 5.0}}) == one


@pytest.mark.parametrize(
    'settings, words',
    [
        ({'rope_scaling': {'factor': 2.0}}, 'without a rope_type'),
        ({'rope_scaling': {'rope_type': 'default', 'type': 'linear', 'factor': 2.0}}, 'two kinds at once'),
        ({'rope_scaling': {'type': 'linear', 'factor': '2'}}, "rope_scaling.factor: '2'; expected a number above 0"),
        ({'rope_parameters': {'rope_type': 'default', 'rope_theta': None}}, 'rope_parameters.rope_theta: None'),
        (
            {'rope_parameters': {'full_attention': {'rope_type': 'default', 'rope_theta': 0}}},
            'rope_parameters of full_attention',
        ),
        ({'rope_theta': -1e4}, 'the config has rope_theta: -10000.0'),
        ({'rope_theta': True}, 'the config has rope_theta: True'),
    ],
)
def test_rotary_settings_that_no_model_computes_with(settings, words):
    with pytest.raises(ValueError, match=words):
        normalise_config({'model_type': 'llama', **settings})


@pytest.mark.parametrize(
    'settings',
    [
        {'rope_scaling': None, 'rope_theta': 10000},
        {'rope_scaling': {'type': 'linear', 'rope_type': 'linear', 'factor': 2}},
        {'rope_scaling': {'rope_type': 'default'}},
    ],
)
def test_rotary_settings_that_are_fine(settings):
    assert normalise_config({'model_type': 'llama', **settings})
