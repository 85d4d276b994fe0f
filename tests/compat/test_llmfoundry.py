"""Canaries of compat.llmfoundry."""

import inspect

import torch
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
