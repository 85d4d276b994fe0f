"""Keys of a config.json that a type does not read: passed, refused by name, or told."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.utils.logging import get_logger as transformers_logger

from llmshearing.compat.configs import dump_config
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.export.model_folder import exported_config
from llmshearing.models.cutting import CutPlan
from llmshearing.models.families import family_of
from llmshearing.models.family_tables import TABLES
from llmshearing.models.shapes import shape_of
from llmshearing.models.source_config import config_from, read_config
from tests.models.tiny import CONFIGS, VARIANTS, tiny_model

WRITTEN_4, WRITTEN = (
    json.loads(Path(__file__).with_name(f'configs_of_transformers_{generation}.json').read_text())
    for generation in (4, 5)
)


@pytest.mark.parametrize(
    'settings',
    [
        {'attn_logit_softcapping': 50.0},
        {'residual_multiplier': 0.5},
        {'no_rope_layers': [1, 1, 1, 0]},
        {'logits_soft_cap': 30.0},
    ],
)
def test_settings_of_other_families_are_refused_by_name(settings):
    ((key, value),) = settings.items()
    content = json.loads(tiny_model('llama').config.to_json_string(use_diff=False))
    with pytest.raises(ValueError, match=rf'{key}: .*which transformers does not compute in a llama'):
        config_from({**content, **settings})
    assert config_from({**content, 'attn_logit_softcapping': None, 'residual_multiplier': 1.0, 'alibi': False})
    family = {'attn_logit_softcapping': 'gemma2', 'residual_multiplier': 'granite'}.get(key)
    if family is not None:
        content = json.loads(tiny_model(family).config.to_json_string(use_diff=False))
        assert getattr(config_from({**content, **settings}), key) == value


SHARE = {'rope_type': 'default', 'rope_theta': 1e4, 'partial_rotary_factor': 0.5}


@pytest.mark.parametrize(
    ('variant', 'settings', 'named'),
    [
        ('llama', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor: 0.5'),
        ('llama', {'rotary_pct': 0.25}, 'rotary_pct: 0.25'),
        ('qwen2', {'clip_qkv': 8.0}, 'clip_qkv: 8.0'),
        ('mistral', {'logit_scale': 0.1}, 'logit_scale: 0.1'),
        ('gemma', {'query_pre_attn_scalar': 24}, 'query_pre_attn_scalar: 24'),
        ('phi3', {'rotary_pct': 0.25}, 'rotary_pct: 0.25'),
        pytest.param(
            *('olmo2', {'rope_parameters': SHARE}, 'rope_parameters.partial_rotary_factor: 0.5'),
            marks=pytest.mark.skipif(not TRANSFORMERS_5, reason='refused as what transformers 4 does not compute'),
        ),
        pytest.param(
            *('gemma3_text', {'rope_parameters': {'full_attention': SHARE}}, 'full_attention.partial_rotary_factor'),
            marks=pytest.mark.skipif(not TRANSFORMERS_5, reason='refused as what transformers 4 does not compute'),
        ),
    ],
)
def test_settings_that_few_families_compute_are_refused_by_name(variant, settings, named):
    content = {**WRITTEN[variant], **settings}
    with pytest.raises(ValueError, match=f'{named}.*does not compute in a {variant}'):
        config_from(content)
    (key,) = settings
    if key != 'rope_parameters':
        assert config_from({**content, key: None})


LEFT_OUT = [
    ('llama', {'sliding_window': 4}),
    ('llama', {'no_rope_layer_interval': 4}),
    ('llama', {'use_qk_norm': True}),
    ('llama', {'qk_layernorm': True}),
    ('llama', {'scale_emb': 12}),
    ('llama', {'attention_chunk_size': 8}),
    ('llama', {'rope_interleaved': True}),
    ('llama', {'rotary_dim': 4}),
    ('llama', {'position_embedding_type': 'alibi'}),
    ('llama', {'lm_head_multiplier': 0.1}),
    ('llama', {'mup_width_multiplier': 4.0}),
    ('llama', {'rope_ratio': 500}),
    ('llama', {'use_parallel_residual': True}),
    ('llama', {'is_causal': False}),
    ('llama', {'rope_local_base_freq': 1e4}),
    ('llama', {'attn_temperature_tuning': True}),
    ('llama', {'rope_percent': 0.5}),
    ('llama', {'use_rotary_pos_emb': False}),
    ('llama', {'post_norm': True}),
    ('llama', {'scale_embeddings': True}),
    ('llama', {'rotary_interleaved': True}),
    ('qwen3', {'routed_scaling_factor': 2.5}),
    ('mistral', {'scoring_func': 'sigmoid'}),
    ('qwen2', {'dual_chunk_attention_config': {'chunk_size': 16}}),
    ('qwen2', {'use_logn_attn': True}),
    ('granite', {'logits_scale': 3}),
]


@pytest.mark.parametrize(('variant', 'settings'), LEFT_OUT, ids=[f'{one}-{next(iter(key))}' for one, key in LEFT_OUT])
def test_settings_that_no_code_of_a_type_reads_are_refused_by_name(variant, settings):
    (key,) = settings
    with pytest.raises(ValueError, match=f'{key}: .*which transformers does not compute in a {variant}'):
        config_from({**WRITTEN[variant], **settings})


def test_a_setting_by_another_type_s_name():
    content = {key: value for key, value in WRITTEN['llama'].items() if key not in ('rms_norm_eps', 'hidden_act')}
    with pytest.raises(
        ValueError, match='norm_eps: 0.001, which a llama calls rms_norm_eps; without it, 1e-06 is .*: rename'
    ):
        config_from({**content, 'norm_eps': 1e-3})
    with pytest.raises(ValueError, match="hidden_activation: 'gelu', which a llama calls hidden_act"):
        config_from({**content, 'hidden_activation': 'gelu'})
    assert config_from({**content, 'norm_eps': 1e-6, 'hidden_activation': 'silu'})
    content = {key: value for key, value in content.items() if key != 'rope_parameters'}
    for name in ('rotary_emb_base', 'rotary_base', 'rope_base'):
        with pytest.raises(ValueError, match=f'{name}: 500000, which a llama calls rope_theta; without it, 10000.0 is'):
            config_from({**content, name: 500000})
        assert config_from({**content, name: 500000, 'rope_theta': 500000})


# What config.json files that people have say besides, and what a llama computes the same without.
HARMLESS = {
    '_name_or_path': 'x',
    'attn_implementation': 'sdpa',
    'auto_map': {'AutoModel': 'x.Y'},
    'do_sample': True,
    'embd_pdrop': 0.1,
    'is_causal': True,
    'is_llama_config': True,
    'lm_head_multiplier': 1.0,
    'max_sequence_length': 2048,
    'pretraining_tp': 2,
    'qk_layernorm': False,
    'rope_interleaved': False,
    'scale_emb': 1,
    'sliding_window': 4096,
    'temperature': 0.5,
    'tokenizer_class': 'LlamaTokenizer',
    'transformers.js_config': {'dtype': 'q4'},
    'unsloth_fixed': True,
    'unsloth_version': '2025.1',
    'use_logn_attn': None,
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_what_an_export_says_is_read_without_a_word(variant, tmp_path, caplog):
    config = tiny_model(variant).config
    family = family_of(config)
    exported = exported_config(config, CutPlan(family, shape_of(config), {}), torch.float32)
    if variant == 'qwen3_5_moe_text':
        del exported.intermediate_size  # which the tests' config has, and no config of the type
    dump_config(exported.to_dict(), tmp_path / 'config.json')
    written = json.loads((tmp_path / 'config.json').read_text())
    assert 'head_dim' in written or not family.has_head_dim
    caplog.clear()
    read_config(tmp_path)
    assert not [record.message for record in caplog.records if record.name.startswith('llmshearing')]


def test_what_changes_nothing_passes_without_a_word(caplog):
    config_from({**WRITTEN['llama'], **HARMLESS})
    config_from({**WRITTEN['qwen3'], 'use_qk_norm': True})  # which a Qwen 3 is anyway
    config_from({**WRITTEN['llama'], 'sliding_window': 8, 'use_sliding_window': False})
    for written in (WRITTEN_4, WRITTEN):
        for variant in set(written) & {*VARIANTS, *CONFIGS}:
            config_from(written[variant])
    # transformers has words of its own, which reach here where nothing else was imported before.
    assert not [record.message for record in caplog.records if record.name.startswith('llmshearing')]


# What the first folders of a type say besides, and transformers does not read.
RELEASED = json.loads(Path(__file__).with_name('keys_of_released_configs.json').read_text())


@pytest.mark.parametrize('variant', [name for name in RELEASED if name in VARIANTS])
def test_released_configs_are_read_without_a_word(variant, tmp_path, caplog):
    file = tmp_path / 'config.json'
    tiny_model(variant).config.to_json_file(file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **RELEASED[variant]}))
    read_config(tmp_path)
    assert not [record.message for record in caplog.records if record.name.startswith('llmshearing')]
    for key in {'attn_output_gate', 'linear_use_gate', 'use_parallel_block'} & RELEASED[variant].keys():
        with pytest.raises(ValueError, match=f'{key}: False, which transformers does not compute'):
            config_from({**content, key: False})


STARCODER2 = {
    'activation_function': 'gelu',
    'attention_softmax_in_fp32': True,
    'embedding_dropout': 0.1,
    'layer_norm_epsilon': 1e-5,
    'norm_type': 'layer_norm',
}


def test_what_nobody_knows_is_told_once(caplog):
    for _ in range(2):
        config_from({**WRITTEN['llama'], 'is_of_tomorrow': 7})
        config_from({**WRITTEN['starcoder2'], **STARCODER2})  # as its authors wrote it
    assert caplog.text.count('is_of_tomorrow: 7, which transformers does not read in a llama: it is left out') == 1
    assert caplog.text.count("activation_function: 'gelu'") == 1


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'attention_dropout': 2.0}, 'attention_dropout: 2.0; expected a number of at least 0 and at most 1: correct'),
        ({'rms_norm_eps': -1.0}, 'rms_norm_eps: -1.0; expected a number above 0: correct its config.json'),
        ({'rms_norm_eps': math.inf}, 'rms_norm_eps: inf; expected a number above 0'),
        ({'max_position_embeddings': -5}, 'max_position_embeddings: -5; expected a number of at least 1'),
    ],
)
def test_numbers_that_nothing_can_be_computed_with(settings, message):
    with pytest.raises(ValueError, match=message):
        config_from({**WRITTEN['llama'], **settings})


@pytest.mark.parametrize('model_type', [name for name in TABLES if name in CONFIG_MAPPING])
def test_what_a_type_says_of_itself_is_taken(model_type, tmp_path):
    config = CONFIG_MAPPING[model_type]()
    config.to_json_file(tmp_path / 'config.json', use_diff=False)
    again = read_config(tmp_path)
    assert type(again) is type(config) and shape_of(again) == shape_of(config)


def test_half_a_head_is_rotated_where_the_family_has_it():
    without = {key: value for key, value in WRITTEN['gpt_neox'].items() if key not in ('rope_parameters', 'rotary_pct')}
    for content in ({**without, 'rotary_pct': 0.5}, {**without, 'rope_parameters': SHARE}):
        model = AutoModelForCausalLM.from_config(config_from(content))
        assert len(model.gpt_neox.rotary_emb.inv_freq) == 2


@pytest.mark.parametrize(
    ('variant', 'changes'),
    [('phi3', {'sliding_window': 8}), ('llama', {'layer_types': ['full_attention', 'sliding_attention'] * 2})],
)
def test_kinds_that_a_model_would_leave_out_are_refused(variant, changes):
    content = {**WRITTEN[variant], 'layer_types': ['sliding_attention', 'full_attention'] * 2, **changes}
    with pytest.raises(ValueError, match='layer_types: .*does not compute'):
        config_from(content)
    assert config_from({**content, 'sliding_window': None, 'layer_types': ['full_attention'] * 4})


@pytest.mark.parametrize('key', ['dtype', 'torch_dtype'])
def test_a_type_that_is_none(key):
    content = {name: value for name, value in WRITTEN['llama'].items() if name not in ('dtype', 'torch_dtype')}
    with pytest.raises(ValueError, match=f"the config has {key}: 'auto'; expected a type such as bfloat16"):
        config_from({**content, key: 'auto'})
    assert config_from({**content, key: 'bfloat16'})


def test_reading_an_export_s_config_is_silent(caplog):
    """It has the type by both names, and transformers 5 warns, once in a process, of the older one."""
    said = transformers_logger('transformers')
    getattr(type(said), 'warning_once', said.warning_once).cache_clear()
    said.addHandler(caplog.handler)
    try:
        config_from({**WRITTEN['llama'], 'dtype': 'float32', 'torch_dtype': 'float32'})
    finally:
        said.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize('variant', ['gemma', 'gemma2', 'gemma3_text', 'llama'])
def test_a_model_that_sees_what_it_is_to_predict_is_refused(variant):
    """As EmbeddingGemma does, whose type has a table; trained as a decoder it learns to copy."""
    with pytest.raises(ValueError, match='use_bidirectional_attention: True: tokens see .* set it to false'):
        config_from({**WRITTEN[variant], 'use_bidirectional_attention': True})
    config_from({**WRITTEN[variant], 'use_bidirectional_attention': False})
