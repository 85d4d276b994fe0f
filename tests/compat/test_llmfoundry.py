"""Canaries of compat.llmfoundry."""

import importlib
import inspect
import json
import logging

import pytest
import torch
import transformers.configuration_utils as transformers_configs
import transformers.modeling_utils as transformers_models
from composer import Trainer
from llmfoundry.models.hf import ComposerHFCausalLM
from llmfoundry.utils.builders import build_tokenizer

from llmshearing.compat import llmfoundry, transformers
from llmshearing.compat.configs import add_older_names
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.tiny_run import tiny_source, tiny_tokenizer


def test_install_lets_llm_foundry_load_a_folder_with_its_weights(tmp_path):
    llmfoundry.install()
    source = tiny_source(tmp_path / 'source')
    model = ComposerHFCausalLM(tiny_tokenizer(), str(source), use_auth_token=False)
    saved = torch.nn.Module.state_dict(model)
    assert len(saved) > 20 and all(not tensor.is_meta for tensor in saved.values())


@pytest.mark.parametrize('model_class', [ComposerHFCausalLM, ShearedCausalLM])
def test_llm_foundry_builds_models_whose_config_asks_for_more_outputs(model_class, tmp_path):
    llmfoundry.install()
    source = tiny_source(tmp_path / 'source')
    more = {'output_attentions': True, 'output_hidden_states': True, 'return_dict': False}
    content = json.loads((source / 'config.json').read_text())
    (source / 'config.json').write_text(json.dumps(content | more))
    model = model_class(tiny_tokenizer(), str(source), attn_implementation='sdpa')
    assert not any(getattr(model.config, key) == value for key, value in more.items())
    ids = torch.arange(3, 9)[None]
    outputs = model({'input_ids': ids, 'labels': ids})
    assert outputs.get('hidden_states') is None and torch.isfinite(model.loss(outputs, {'labels': ids}))


def deprecated_words(monkeypatch):
    """What transformers complains of in the words of a call or a config, said once and else never again."""
    said = []
    for module in (transformers_configs, transformers_models):
        monkeypatch.setattr(module.logger, 'warning_once', lambda message, *rest: said.append(message), raising=False)
    return said


def test_building_a_model_on_either_stack_warns_of_no_older_word(tmp_path, monkeypatch):
    llmfoundry.install()
    source = tiny_source(tmp_path / 'source')
    add_older_names(source / 'config.json')
    said = deprecated_words(monkeypatch)
    model = ComposerHFCausalLM(tiny_tokenizer(), str(source), attn_implementation='sdpa')
    assert transformers.dtype_of(model.config) == torch.float32
    assert [message for message in said if 'dtype' in message] == []
    assert 'torch_dtype=' in inspect.getsource(ComposerHFCausalLM.build_config)


def test_llm_foundry_still_passes_what_the_adapter_takes_away():
    text = inspect.getsource(ComposerHFCausalLM.build_inner_model)
    assert 'use_auth_token=use_auth_token' in text and 'load_in_8bit=load_in_8bit' in text
    assert 'cls.model_cls' in text
    if TRANSFORMERS_5:
        assert ComposerHFCausalLM.model_cls is llmfoundry.ModelLoader


def test_keep_sharding_replaces_the_trainer_that_train_builds_and_puts_it_back():
    module = importlib.import_module('llmfoundry.command_utils.train')
    assert module.Trainer is Trainer and 'Trainer(' in inspect.getsource(module.train)
    llmfoundry.keep_sharding({'state_dict_type': 'sharded'})
    try:
        assert module.Trainer is not Trainer
    finally:
        llmfoundry.keep_sharding(None)
    assert module.Trainer is Trainer


def test_llm_foundry_opens_a_tokenizer_of_another_class_without_alarm(tmp_path):
    transformers.install()
    llmfoundry.install()
    tokenizer, config = tiny_tokenizer(), tiny_source(tmp_path / 'source') / 'tokenizer_config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'tokenizer_class': 'TokenizersBackend'}))
    heard = []
    log = logging.getLogger('transformers.tokenization_utils_base')
    handler = logging.Handler()
    handler.emit = heard.append
    log.addHandler(handler)
    try:
        opened = build_tokenizer(str(tmp_path / 'source'), {})
    finally:
        log.removeHandler(handler)
    assert opened('w1 w2')['input_ids'] == tokenizer('w1 w2')['input_ids']
    assert not [record.getMessage() for record in heard]
