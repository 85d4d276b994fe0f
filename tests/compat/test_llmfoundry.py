"""Canaries of compat.llmfoundry."""

import importlib
import inspect

import torch
from composer import Trainer
from llmfoundry.models.hf import ComposerHFCausalLM

from llmshearing.compat import llmfoundry
from llmshearing.compat.versions import TRANSFORMERS_5
from tests.tiny_run import tiny_source, tiny_tokenizer


def test_install_lets_llm_foundry_load_a_folder_with_its_weights(tmp_path):
    llmfoundry.install()
    source = tiny_source(tmp_path / 'source')
    model = ComposerHFCausalLM(tiny_tokenizer(), str(source), use_auth_token=False)
    saved = torch.nn.Module.state_dict(model)
    assert len(saved) > 20 and all(not tensor.is_meta for tensor in saved.values())


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
