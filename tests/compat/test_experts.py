"""One canary for each thing that compat.experts takes for granted: it fails by name when transformers changes."""

import dataclasses
import importlib
import inspect
import json

import pytest
import torch
from transformers import CONFIG_MAPPING

from llmshearing.compat.configs import add_older_names, normalise_config
from llmshearing.compat.experts import even_routing
from llmshearing.compat.transformers import EXPERTS_ARE_MODULES, NO_SDPA
from llmshearing.models.families import family_of
from llmshearing.models.shapes import shape_of, with_shape
from llmshearing.models.source_config import read_config
from tests.models.tiny import MIXTURES, VARIANTS, tiny_model


def block_of(variant):
    model = tiny_model(variant)
    family = family_of(model.config)
    return model.model.layers[0].get_submodule(family.mlp), family


@pytest.mark.parametrize('variant', MIXTURES)
def test_experts_are_where_they_are_taken_for_granted(variant):
    block, family = block_of(variant)
    assert isinstance(block.experts, torch.nn.ModuleList) == EXPERTS_ARE_MODULES
    if EXPERTS_ARE_MODULES:
        assert block.top_k == 2 and block.num_experts == 6
        assert all(hasattr(block.experts[0], name) for name in (*family.expert_names, 'act_fn'))
    else:
        router = block.router if hasattr(block, 'router') else block.gate
        assert router.top_k == 2 and router.num_experts == block.experts.num_experts == 6
        assert getattr(router, 'hidden_dim', 48) == getattr(block, 'input_size', 48) == 48
        assert callable(block.experts._apply_gate)
        for name in ('is_transposed', 'is_concatenated', 'has_bias'):
            assert getattr(block.experts, name) == (variant == 'gpt_oss') ^ (name == 'is_concatenated')
        parameters = list(inspect.signature(type(block.experts).forward.__wrapped__).parameters)[1:]
        assert parameters[1:] in (['top_k_index', 'top_k_weights'], ['router_indices', 'routing_weights'])


@pytest.mark.skipif(EXPERTS_ARE_MODULES, reason='transformers 4 has modules of experts')
def test_the_kernel_of_experts_can_be_refused_and_wants_aligned_rows():
    moe = importlib.import_module('transformers.integrations.moe')
    with even_routing(6):
        assert moe._can_use_grouped_mm(None, None, None) is False
    model = tiny_model('mixtral', hidden_size=36, num_attention_heads=6)
    assert model.config._experts_implementation == 'grouped_mm'
    with pytest.raises(RuntimeError, match='multiple of 16 bytes'):  # which ALIGNED_EXPERTS is for
        tiny_model('mixtral', hidden_size=42)(torch.ones(1, 5, dtype=torch.long))


@pytest.mark.skipif(EXPERTS_ARE_MODULES, reason='transformers 4 returns them')
def test_recorded_outputs_are_found_by_the_name_of_the_class():
    capturing = importlib.import_module('transformers.utils.output_capturing')
    decoder = tiny_model('mixtral').model
    assert 'router_logits' in dict.get(capturing._CAN_RECORD_REGISTRY, str(type(decoder)))
    capturing.maybe_install_capturing_hooks(decoder)
    assert decoder.layers[0].mlp.gate._forward_hooks


@pytest.mark.skipif('gpt_oss' not in VARIANTS, reason='transformers 4 has no such model')
def test_models_with_sinks_have_no_sdpa():
    assert NO_SDPA == ('gpt_oss', 'granite_swa')
    assert not any(tiny_model(variant)._supports_sdpa for variant in NO_SDPA if variant in VARIANTS)


def test_a_config_has_the_name_of_the_number_of_experts_that_either_generation_reads(tmp_path):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({'model_type': 'qwen3_moe', 'num_local_experts': 3}))  # as transformers 5 writes it
    add_older_names(path)
    content = json.loads(path.read_text())
    assert content['num_experts'] == content['num_local_experts'] == 3
    config = CONFIG_MAPPING['qwen3_moe'].from_dict(
        normalise_config({'model_type': 'qwen3_moe', 'num_local_experts': 3})
    )
    assert config.num_experts == 3


def test_a_smaller_mixture_says_its_number_of_experts_once(tmp_path):
    either = {'num_experts': 6, 'num_local_experts': 6}
    config = CONFIG_MAPPING['qwen3_moe'].from_dict(
        normalise_config({**VARIANTS['qwen3_moe'], 'model_type': 'qwen3_moe', **either})
    )
    with_shape(config, dataclasses.replace(shape_of(config), num_experts=4)).save_pretrained(tmp_path)
    add_older_names(tmp_path / 'config.json')
    content = json.loads((tmp_path / 'config.json').read_text())
    assert {content[key] for key in either if key in content} == {4} and content['num_experts'] == 4
    assert shape_of(read_config(tmp_path)).num_experts == 4
