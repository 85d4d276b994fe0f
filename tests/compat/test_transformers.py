"""One canary for each thing that compat.transformers takes for granted: it fails by name when transformers changes."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from llmshearing.compat.transformers import (
    HEAD_OF_GPT_NEOX,
    LEFT_OUT,
    OPENS_UNEVEN_HEADS,
    PER_LAYER_LISTS,
    STRICT_ERROR,
    WINDOWS_BY_LAYER,
    attention_implementation,
    attention_of,
    dtype_argument,
    dtype_of,
    forget_own_notes,
    layer_kinds,
    left_out_names,
    load_causal_lm,
    load_complete_causal_lm,
    read_tokenizer,
    set_attention,
    set_dtype,
    set_plain_rotary,
    tied_names,
    without_packed_masks,
)
from llmshearing.compat.versions import TRANSFORMERS_5
from tests.models.tiny import COMMON, tiny_model
from tests.tiny_run import tiny_tokenizer

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
    if 'granite_swa' in CONFIG_MAPPING:
        assert len(CONFIG_MAPPING['granite_swa'](**COMMON).layer_rope_theta) == COMMON['num_hidden_layers']
    assert PER_LAYER_LISTS == ('layer_rope_theta', 'layer_types', 'no_rope_layers')


def test_head_of_gpt_neox_is_where_the_model_has_it():
    assert tiny_model('gpt_neox').get_output_embeddings() is tiny_model('gpt_neox').get_submodule(HEAD_OF_GPT_NEOX) or (
        tiny_model('gpt_neox').get_submodule(HEAD_OF_GPT_NEOX).weight.shape == (97, 48)
    )


def test_attention_of_types_that_are_left_out_returns_three_values():
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING['nemotron'](**COMMON, head_dim=12))
    returned = []
    model.model.layers[0].self_attn.register_forward_hook(lambda module, args, out: returned.append(len(out)))
    model(torch.arange(3, 9)[None], use_cache=False)
    assert returned == [3 if 'nemotron' in LEFT_OUT else 2]


def test_set_dtype_is_what_from_config_reads_and_config_json_says(tmp_path):
    config = llama()
    set_dtype(config, torch.bfloat16)
    config.save_pretrained(tmp_path)
    assert dtype_of(AutoConfig.from_pretrained(tmp_path)) == torch.bfloat16


def test_set_plain_rotary_leaves_the_base():
    config = llama(rope_theta=5e5, rope_scaling=dict(LLAMA3_ROPE))
    set_plain_rotary(config)
    frequencies = AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 5e5 ** -(torch.arange(0, 8, 2) / 8))


def test_attention_implementation_soft_caps_where_the_config_asks():
    config = CONFIG_MAPPING['gemma2'](**COMMON, attn_logit_softcapping=50.0)
    assert attention_implementation(config) == 'eager' and attention_implementation(llama()) == 'sdpa'
    assert attention_implementation(config, 'flash_attention_2') == 'flash_attention_2'


def test_set_attention_is_what_the_model_computes_with():
    model = AutoModelForCausalLM.from_config(llama(), attn_implementation='eager')
    assert attention_of(model.config) == 'eager'
    set_attention(model.config, 'nothing of this name')
    with pytest.raises((KeyError, ValueError), match='nothing of this name'):
        model(torch.arange(3, 9)[None])


def test_tied_names_are_those_of_the_shared_tensor():
    model = AutoModelForCausalLM.from_config(llama(tie_word_embeddings=True))
    assert tied_names(model) == ('lm_head.weight',)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_left_out_names_are_patterns_of_tensors_that_loading_leaves_out():
    assert 'attention.bias' in left_out_names(tiny_model('gpt_neox')) and left_out_names(tiny_model()) == ()


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


def test_read_tokenizer_opens_what_either_generation_saved(tmp_path):
    tokenizer = tiny_tokenizer()
    expected = tokenizer('w1 w7')['input_ids']
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / 'tokenizer_config.json').read_text())
    for name in ('TokenizersBackend', 'PreTrainedTokenizerFast'):
        (tmp_path / 'tokenizer_config.json').write_text(json.dumps({**settings, 'tokenizer_class': name}))
        assert read_tokenizer(tmp_path)('w1 w7')['input_ids'] == expected


@pytest.mark.parametrize('content', ['{}', '[]', '{"model": 3}', 'x'])
def test_read_tokenizer_refuses_damaged_files_as_it_does_missing_ones(tmp_path, content):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / 'tokenizer.json').write_text(content)
    with pytest.raises((OSError, ValueError)):
        read_tokenizer(tmp_path)


def test_load_causal_lm_tells_what_is_amiss(tmp_path):
    model = AutoModelForCausalLM.from_config(llama())
    model.save_pretrained(tmp_path)
    whole, amiss = load_causal_lm(tmp_path)
    assert torch.equal(whole.lm_head.weight, model.lm_head.weight) and not any(amiss.values())
    left = {name: tensor for name, tensor in model.state_dict().items() if name != 'model.norm.weight'}
    model.save_pretrained(tmp_path, state_dict=left)
    _, amiss = load_causal_lm(tmp_path)
    assert list(amiss['missing_keys']) == ['model.norm.weight']
    with pytest.raises(ValueError, match='the model does not open as a stock model: .*missing_keys.*norm.weight'):
        load_complete_causal_lm('the model', tmp_path)


def test_strict_error_is_what_a_config_of_odd_heads_raises():
    if TRANSFORMERS_5:
        with pytest.raises(STRICT_ERROR, match='multiple of the number of attention'):
            llama(hidden_size=32, num_attention_heads=3, num_key_value_heads=3)


def test_dtype_argument_is_the_keyword_that_from_config_takes():
    model = AutoModelForCausalLM.from_config(llama(), **dtype_argument(torch.bfloat16))
    assert model.dtype == torch.bfloat16


def test_opens_uneven_heads_is_whether_such_a_model_opens():
    try:
        AutoModelForCausalLM.from_config(
            llama(hidden_size=32, num_attention_heads=3, num_key_value_heads=3, head_dim=8)
        )
        opens = True
    except STRICT_ERROR:
        opens = False
    assert opens == OPENS_UNEVEN_HEADS


def test_windows_by_layer_is_whether_the_first_layers_of_qwen_see_everything():
    """One layer that is to see everything, in a model with windows of 4 tokens, 11 tokens after a change."""
    settings = {'use_sliding_window': True, 'sliding_window': 4, 'num_hidden_layers': 1, 'max_window_layers': 1}
    config = CONFIG_MAPPING['qwen2'](**{**COMMON, **settings})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(3, 15)[None]
    other = ids.clone()
    other[0, 0] = 90
    with torch.no_grad():
        sees = not torch.equal(model(ids).logits[0, -1], model(other).logits[0, -1])
    assert sees == WINDOWS_BY_LAYER


def test_strict_error_is_what_a_config_raises():
    wrong = {'num_attention_heads': 'four'} if TRANSFORMERS_5 else {'rope_scaling': {'factor': 2.0}}
    with pytest.raises(Exception) as raised:  # noqa: PT011 - its type is what is looked at
        CONFIG_MAPPING['olmo2'](**{**COMMON, **wrong})
    assert isinstance(raised.value, STRICT_ERROR)


def test_no_bar_is_drawn_where_a_model_is_loaded(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr('transformers.utils.logging._tqdm_active', True)  # whatever ran before in this process
    tiny_model('llama').save_pretrained(tmp_path)
    capfd.readouterr()
    load_causal_lm(tmp_path)
    assert 'Loading' not in capfd.readouterr().err
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert TRANSFORMERS_5 == ('Loading' in capfd.readouterr().err)  # as long as it is needed
