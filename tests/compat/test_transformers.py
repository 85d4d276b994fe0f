"""One canary for each thing that compat.transformers takes for granted: it fails by name when transformers changes."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from llmshearing.compat.transformers import (
    HEAD_OF_GPT_NEOX,
    PER_LAYER_LISTS,
    add_older_names,
    attention_implementation,
    dtype_of,
    forget_own_notes,
    layer_kinds,
    rotary_base,
    set_dtype,
    set_plain_rotary,
    without_packed_masks,
)
from llmshearing.compat.versions import TRANSFORMERS_5
from tests.models.tiny import COMMON, tiny_model

LLAMA3_ROPE = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 64,
}


def llama(**settings):
    return CONFIG_MAPPING['llama'](**{**COMMON, **settings})


def test_layer_kinds_is_the_configs_own_list():
    gemma2 = CONFIG_MAPPING['gemma2'](**COMMON)
    expected = ['sliding_attention', 'full_attention'] * 2 if TRANSFORMERS_5 else None
    assert layer_kinds(gemma2) == expected and layer_kinds(llama()) is None


def test_per_layer_lists_are_read_by_position():
    if TRANSFORMERS_5:
        assert len(CONFIG_MAPPING['gemma2'](**COMMON).layer_types) == COMMON['num_hidden_layers']
        assert len(CONFIG_MAPPING['smollm3'](**COMMON).no_rope_layers) == COMMON['num_hidden_layers']
    assert PER_LAYER_LISTS == ('layer_types', 'no_rope_layers')


def test_head_of_gpt_neox_is_where_the_model_has_it():
    assert tiny_model('gpt_neox').get_output_embeddings() is tiny_model('gpt_neox').get_submodule(HEAD_OF_GPT_NEOX) or (
        tiny_model('gpt_neox').get_submodule(HEAD_OF_GPT_NEOX).weight.shape == (97, 48)
    )


def test_set_dtype_is_what_from_config_reads_and_config_json_says(tmp_path):
    config = llama()
    set_dtype(config, torch.bfloat16)
    config.save_pretrained(tmp_path)
    assert dtype_of(AutoConfig.from_pretrained(tmp_path)) == torch.bfloat16


@pytest.mark.parametrize('scaling', [None, LLAMA3_ROPE])
def test_add_older_names_lets_other_readers_see_the_same_rotary_settings(tmp_path, scaling):
    config = llama(rope_theta=5e5, **({'rope_scaling': dict(scaling)} if scaling else {}))
    set_dtype(config, torch.float32)
    config.save_pretrained(tmp_path)
    add_older_names(tmp_path / 'config.json')
    content = json.loads((tmp_path / 'config.json').read_text())
    assert content['rope_theta'] == 5e5 and content['torch_dtype'] == 'float32'
    assert (content.get('rope_scaling') or {}).get('factor') == (scaling or {}).get('factor')
    again = AutoConfig.from_pretrained(tmp_path)
    assert rotary_base(again) == 5e5
    frequencies = AutoModelForCausalLM.from_config(again).model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq)


def test_set_plain_rotary_leaves_the_base():
    config = llama(rope_theta=5e5, rope_scaling=dict(LLAMA3_ROPE))
    set_plain_rotary(config)
    frequencies = AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 5e5 ** -(torch.arange(0, 8, 2) / 8))


def test_attention_implementation_soft_caps_where_the_config_asks():
    config = CONFIG_MAPPING['gemma2'](**COMMON, attn_logit_softcapping=50.0)
    assert attention_implementation(config) == 'eager' and attention_implementation(llama()) == 'sdpa'
    assert attention_implementation(config, 'flash_attention_2') == 'flash_attention_2'


def test_forget_own_notes_keeps_them_out_of_config_json(tmp_path):
    config = tiny_model().config
    config._attn_implementation_autoset = True
    forget_own_notes(config)
    config.save_pretrained(tmp_path)
    assert '_attn_implementation_autoset' not in (tmp_path / 'config.json').read_text()


def test_without_packed_masks_finds_the_function_it_replaces():
    if not TRANSFORMERS_5:
        with without_packed_masks():
            pass
        return
    from transformers import masking_utils

    stock = masking_utils.find_packed_sequence_indices
    with without_packed_masks():
        assert masking_utils.find_packed_sequence_indices(torch.zeros(1, 4)) is None
    assert masking_utils.find_packed_sequence_indices is stock
    assert stock(torch.tensor([[0, 1, 0, 1]])) is not None
