"""Configs and tokenizers of either generation mean the same on either stack, or are refused by the key's name.

``configs_of_transformers_4.json`` and ``..._5.json`` hold what 4.51 and 5.24 save of every variant of the tiny models.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmshearing.compat.configs import add_older_names
from llmshearing.compat.transformers import attention_implementation, read_tokenizer, set_attention
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.models.source_config import (
    check_attention,
    check_stock_reading,
    config_from,
    layer_windows,
    read_config,
)
from tests.export.cut_folder import AXES, export, uniform_soft_masks
from tests.models.tiny import CONFIGS, VARIANTS, tiny_model
from tests.tiny_run import tiny_tokenizer

WRITTEN_4, WRITTEN = (
    json.loads(Path(__file__).with_name(f'configs_of_transformers_{generation}.json').read_text())
    for generation in (4, 5)
)
IDS = torch.randint(3, 97, (2, 21), generator=torch.Generator().manual_seed(4))
UNUSED = ('transformers_version', 'cache_implementation')  # transformers 5 takes the second back
UNREAD = {'qwen3_moe': 'max_window_layers'}  # which 4.51 writes and no code reads
only_4 = pytest.mark.skipif(TRANSFORMERS_5, reason='transformers 5 computes it')


def built(config, weights):
    set_attention(config, attention_implementation(config))
    model = AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(weights)
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize('variant', [name for name in (*VARIANTS, *CONFIGS) if name in WRITTEN_4])
def test_either_generation_s_config_is_the_same_model_and_the_same_export(variant, tmp_path):
    source = tiny_model(variant)
    source.save_pretrained(tmp_path / 'saved')
    masks = uniform_soft_masks(source.config, AXES if variant in VARIANTS else ('intermediate',))
    exported = []
    for name, config in (
        ('own', source.config),
        ('saved', read_config(tmp_path / 'saved')),
        ('of_4', config_from(WRITTEN_4[variant])),
        ('of_5', config_from(WRITTEN[variant])),
    ):
        model = built(config, source.state_dict())
        assert torch.equal(logits(model), logits(source)), name
        export(model, masks, tmp_path / name / 'out')
        said = json.loads((tmp_path / name / 'out' / 'config.json').read_text())
        said.pop(UNREAD.get(variant), None)
        exported.append({key: value for key, value in said.items() if value is not None and key not in UNUSED})
    assert exported[1:] == exported[:-1]


@pytest.mark.parametrize('variant', [name for name in (*VARIANTS, *CONFIGS) if name in WRITTEN_4])
def test_an_export_says_in_the_words_of_transformers_4_what_4_would(variant, tmp_path):
    export(built(config_from(WRITTEN[variant]), tiny_model(variant).state_dict()), {}, tmp_path / 'out')
    said = json.loads((tmp_path / 'out' / 'config.json').read_text())
    of_4 = {key: value for key, value in WRITTEN_4[variant].items() if value is not None and key not in UNUSED}
    if not of_4.get('use_sliding_window', True):
        of_4 = {key: value for key, value in of_4.items() if key not in ('sliding_window', 'max_window_layers')}
    if not said.get('rope_scaling'):
        of_4.pop('original_max_position_embeddings', None)
    assert {key: said.get(key) for key in of_4} == of_4


def rope(rope_type, rope_theta=1e4, **more):
    """Rotary settings in the words of transformers 5."""
    return {'rope_parameters': {'rope_type': rope_type, 'rope_theta': rope_theta, **more}}


def inverse_frequencies(config):
    model = AutoModelForCausalLM.from_config(config)
    return model.model.rotary_emb.inv_freq, model.model.rotary_emb.attention_scaling


@pytest.mark.parametrize(
    ('rotary', 'expected'),
    [(rope('default', 5e5), lambda base: base), (rope('linear', 5e5, factor=4.0), lambda base: base / 4)],
    ids=['default', 'linear'],
)
def test_the_rotary_base_is_the_source_s(rotary, expected):
    got, _ = inverse_frequencies(config_from({**WRITTEN['llama'], **rotary}))
    torch.testing.assert_close(got, expected(5e5 ** -(torch.arange(0, 8, 2) / 8)))


def test_rotary_settings_in_both_words_keep_their_base():
    scaling = {'rope_type': 'linear', 'factor': 4.0}
    content = {key: value for key, value in WRITTEN['llama'].items() if key != 'rope_theta'}
    both = {**content, 'rope_scaling': scaling, 'rope_parameters': {**scaling, 'rope_theta': 5e5}}
    got, _ = inverse_frequencies(config_from(both))
    torch.testing.assert_close(got, 5e5 ** -(torch.arange(0, 8, 2) / 8) / 4)


def test_what_transformers_4_cannot_open_is_told(tmp_path, caplog):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({**WRITTEN['llama'], 'rope_parameters': {'rope_type': 'proportional'}}))
    add_older_names(path)
    assert 'opened by transformers 5 only' in caplog.text and 'rope_type' in caplog.text
    assert json.loads(path.read_text())['rope_parameters'] == {'rope_type': 'proportional'}


@pytest.mark.parametrize(
    ('rotary', 'message'),
    [
        ({'type': 'yarn2', 'factor': 2.0}, "rope_scaling.rope_type: 'yarn2'"),
        ({'type': 'linear'}, 'Missing required keys.*factor'),
        ('linear', "rope_scaling: 'linear'; expected a mapping"),
    ],
)
def test_rotary_settings_that_nobody_computes(rotary, message):
    content = {key: value for key, value in WRITTEN['llama'].items() if key != 'rope_parameters'}
    with pytest.raises(ValueError, match=message):
        config_from({**content, 'rope_scaling': rotary})


@pytest.mark.parametrize('place', ['rope_parameters', 'rope_scaling'])
@pytest.mark.parametrize(
    ('rotary', 'message'),
    [
        (
            {'rope_type': 'default', 'scale': 4},
            r'scale: 4, which rope_type: default does not read\. It reads rope_theta',
        ),
        (
            {'rope_type': 'yarn', 'factor': 2.0, 'original_max_position_embedding': 64},
            "original_max_position_embedding: 64, which .* Did you mean 'original_max_position_embeddings'",
        ),
        (
            {'rope_type': 'linear', 'factor': 2.0, 'low_freq_factor': 1.0},
            'low_freq_factor: 1.0, which rope_type: linear',
        ),
        ({'rope_type': 'default', 'factor': 2.0}, 'factor: 2.0, which rope_type: default'),
    ],
)
def test_a_rotary_key_that_its_kind_does_not_read(place, rotary, message):
    content = {key: value for key, value in WRITTEN['llama'].items() if key != 'rope_parameters'}
    base = {'rope_theta': 1e4}
    with pytest.raises(ValueError, match=f'{place}.{message}'):
        config_from({**content, **base, place: {**rotary, **base}})


@pytest.mark.parametrize(
    'beside',
    [
        {'beta_fast': 32, 'beta_slow': 1, 'mscale': 1.0, 'mscale_all_dim': 0, 'attention_factor': None},
        {'mrope_section': [1, 1, 2], 'finetuned': True, 'original_max_position_embeddings': 128},
    ],
)
def test_rotary_keys_that_say_nothing_may_stand_beside_others(beside):
    content = {key: value for key, value in WRITTEN['llama'].items() if key != 'rope_parameters'}
    config = config_from({**content, 'rope_scaling': {'type': 'dynamic', 'factor': 2.0, **beside}})
    assert torch.equal(inverse_frequencies(config)[0], inverse_frequencies(tiny_model('llama').config)[0])


def test_rotary_settings_by_kind_where_layers_have_none():
    kinds = {'full_attention': {'rope_type': 'default', 'rope_theta': 5e5}}
    message = (
        'rope_parameters of full_attention, and every layer of a llama has the same; write the settings themselves'
    )
    with pytest.raises(ValueError, match=message):
        config_from({**WRITTEN['llama'], 'rope_parameters': kinds})
    with pytest.raises(ValueError, match=message):
        config_from({**WRITTEN['llama'], 'rope_parameters': {**kinds, 'rope_type': 'default', 'rope_theta': 1e4}})


@pytest.mark.parametrize('base', [float('nan'), float('inf'), 0])
def test_a_base_that_is_none(base):
    content = {key: value for key, value in WRITTEN['llama'].items() if key != 'rope_parameters'}
    with pytest.raises(ValueError, match='rope_theta: .*expected a number above 0'):
        config_from({**content, 'rope_theta': base})


def test_su_is_longrope_by_its_first_name():
    content = {key: value for key, value in WRITTEN['phi3'].items() if key != 'rope_parameters'}
    content['original_max_position_embeddings'] = 64
    factors = {'short_factor': [1.0, 2.0, 3.0, 4.0], 'long_factor': [2.0] * 4}
    both = [config_from({**content, 'rope_scaling': {'type': kind, **factors}}) for kind in ('su', 'longrope')]
    assert both[0].rope_scaling == both[1].rope_scaling
    for got, expected in zip(*map(inverse_frequencies, both)):
        torch.testing.assert_close(got, expected)


def test_longrope_of_phi3():
    factors = {'short_factor': [1.0, 2.0, 3.0, 4.0], 'long_factor': [2.0] * 4}
    positions = {'original_max_position_embeddings': 64}
    rotary = rope('longrope', partial_rotary_factor=1.0, **factors, **positions)
    got, scaling = inverse_frequencies(config_from({**WRITTEN['phi3'], **positions, **rotary}))
    torch.testing.assert_close(got, 1e4 ** -(torch.arange(0, 8, 2) / 8) / torch.tensor(factors['short_factor']))
    assert scaling == pytest.approx((1 + torch.log(torch.tensor(2.0)) / torch.log(torch.tensor(64.0))).sqrt().item())


ALIKE = {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1e4}


@pytest.mark.parametrize(
    ('variant', 'changes', 'named'),
    [
        ('llama', {'rope_theta': 10000.0, **rope('default', 5e5)}, 'rope_theta'),
        ('gpt_neox', {'rotary_pct': 0.5}, 'rotary_pct'),
        (
            'llama',
            {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}, **rope('linear', factor=4.0)},
            'rope_scaling',
        ),
        pytest.param(
            'llama',
            {'rope_parameters': None, 'rope_theta': 5e5, 'rope_scaling': ALIKE},
            r'rope_theta.*rope_scaling\.rope_theta',
            marks=pytest.mark.skipif(not TRANSFORMERS_5, reason='transformers 4 computes with no base there'),
        ),
    ],
)
def test_a_config_that_says_two_things_is_refused(variant, changes, named):
    with pytest.raises(ValueError, match=f'{named}.*which of the two'):
        config_from({**WRITTEN[variant], **changes})


@only_4
@pytest.mark.parametrize(
    ('variant', 'changes', 'named'),
    [
        ('llama', rope('proportional'), 'rope_type'),
        ('llama', rope('default', partial_rotary_factor=0.5), 'partial_rotary_factor'),
        ('llama', rope('yarn', factor=2.0, truncate=False), 'truncate'),
        ('llama', rope('yarn', factor=4.0, original_max_position_embeddings=64), 'rope_parameters.factor: 4.0'),
        ('gemma2', {'layer_types': ['full_attention', 'sliding_attention'] * 2}, 'layer_types'),
        ('gemma3_text', {'layer_types': ['full_attention'] * 2 + ['sliding_attention'] * 2}, 'layer_types'),
        ('qwen2', {'layer_types': ['sliding_attention', 'full_attention'] * 2}, 'layer_types'),
        ('qwen3', {'layer_types': ['full_attention', 'linear_attention'] * 2}, 'layer_types'),
    ],
)
def test_what_transformers_4_does_not_compute_is_refused_by_name(variant, changes, named):
    with pytest.raises(ValueError, match=f'{named}.*transformers 4 does not compute'):
        config_from({**WRITTEN[variant], **changes})


YARN = {'rope_type': 'yarn', 'factor': 2.0, 'original_max_position_embeddings': 64}
LONG = {'type': 'longrope', 'short_factor': [1.0] * 4, 'long_factor': [2.0] * 4}


@only_4
@pytest.mark.parametrize(
    ('scaling', 'named'),
    [
        ({**YARN, 'factor': 4.0}, 'rope_scaling.factor: 4.0'),
        ({**YARN, 'truncate': False}, 'rope_scaling.truncate: False'),
        ({**YARN, 'rope_theta': 5e5}, 'rope_scaling.rope_theta: 500000.0'),
        ({'type': 'linear', 'factor': 4.0, 'partial_rotary_factor': 0.5}, 'rope_scaling.partial_rotary_factor: 0.5'),
        ({**LONG, 'factor': 4.0, 'original_max_position_embeddings': 64}, 'rope_scaling.factor: 4.0'),
    ],
)
def test_what_transformers_4_would_leave_out_of_older_rotary_settings_is_refused(scaling, named):
    with pytest.raises(ValueError, match=f'{named}.*transformers 4 does not compute'):
        config_from({**WRITTEN_4['llama'], 'rope_scaling': scaling})


@pytest.mark.parametrize(
    'scaling',
    [
        {**YARN, 'finetuned': True, 'rope_theta': 1e4},
        {'type': 'dynamic', 'factor': 4.0, 'original_max_position_embeddings': 64},
        {'type': 'linear', 'factor': 4.0, 'partial_rotary_factor': 1.0},
        {'rope_type': 'default'},
    ],
)
def test_older_rotary_settings_that_either_generation_computes_are_read(scaling):
    assert inverse_frequencies(config_from({**WRITTEN_4['llama'], 'rope_scaling': scaling}))


def test_longrope_with_its_first_length_among_its_settings():
    content = {**WRITTEN_4['llama'], 'rope_scaling': {**LONG, 'original_max_position_embeddings': 64}}
    got, scaling = inverse_frequencies(config_from(content))
    assert scaling == pytest.approx((1 + torch.log(torch.tensor(2.0)) / torch.log(torch.tensor(64.0))).sqrt().item())


def test_layer_types_of_another_length_are_refused():
    with pytest.raises(ValueError, match='layer_types'):
        config_from({**WRITTEN['gemma2'], 'layer_types': ['sliding_attention', 'full_attention']})


@pytest.mark.parametrize(
    ('variant', 'sliding'),
    [
        ('gemma2', [True, False, True, False]),
        ('gemma3_text', [True, False, True, False]),
        ('mistral', [True] * 4),
        ('qwen2', [False, False, True, True]),
        ('qwen3', None),
        ('llama', None),
    ],
)
def test_windows_are_what_the_config_says(variant, sliding):
    for config in (tiny_model(variant).config, config_from(WRITTEN[variant])):
        assert layer_windows(config) == (None if sliding is None else (8, sliding))


@only_4
def test_windows_that_differ_by_layer_are_refused_where_they_would_be_alike():
    config = config_from(WRITTEN['qwen2'])
    check_attention(config, 'sdpa', 8)
    check_attention(config, 'flash_attention_2', 100)
    with pytest.raises(ValueError, match='a sliding window of 8 tokens from layer 2 on; .*max_seq_len to at most 8'):
        check_attention(config, 'sdpa', 9)
    # Without use_sliding_window the window is a leftover; transformers 4 would apply it.
    unused = {**WRITTEN['qwen2'], 'use_sliding_window': False, 'layer_types': ['full_attention'] * 4}
    assert config_from(unused).sliding_window is None


@pytest.mark.parametrize('name', ['paged|eager', 'paged|sdpa'])
def test_the_attention_of_servers_is_refused(name):
    """transformers takes it for a model that is trained, too, and tokens then see those that they are to predict."""
    with pytest.raises(ValueError, match=f'is for servers.*Set {name[6:]}\\.'):
        check_attention(config_from(WRITTEN['llama']), name, 8)


def test_soft_capping_needs_an_attention_that_has_it():
    config = config_from(WRITTEN['gemma2'])
    with pytest.raises(ValueError, match='attn_implementation: sdpa leaves out the soft-capping'):
        check_attention(config, 'sdpa', 8)
    check_attention(config, 'eager', 8)


@only_4
def test_stock_readers_are_told_what_they_would_miss(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({**WRITTEN['llama'], **rope('default', 5e5)}))
    with pytest.raises(ValueError, match='rope_theta: 10000.0 instead of 500000.0. Set model.name: sheared_causal_lm'):
        check_stock_reading(tmp_path, read_config(tmp_path))
    tiny_model('llama').config.save_pretrained(tmp_path)
    check_stock_reading(tmp_path, read_config(tmp_path))


def test_a_tokenizer_as_transformers_5_saves_it(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / 'special_tokens_map.json').unlink(missing_ok=True)
    settings = {'backend': 'tokenizers', 'tokenizer_class': 'TokenizersBackend', 'model_max_length': 128}
    tokens = {'pad_token': '<pad>', 'bos_token': '<s>', 'eos_token': '</s>', 'extra_special_tokens': ['w5', 'w6']}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({**settings, **tokens}))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer('w3 w17').input_ids == tiny_tokenizer()('w3 w17').input_ids
    assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (2, 128)
    assert {'w5', 'w6'} <= set(tokenizer.all_special_tokens)
    tokenizer.save_pretrained(tmp_path / 'again')
    saved = json.loads((tmp_path / 'again' / 'tokenizer_config.json').read_text())
    assert TRANSFORMERS_5 or saved['tokenizer_class'].startswith('PreTrainedTokenizer')  # which both open


@pytest.mark.skipif(not TRANSFORMERS_5, reason='transformers 4 has no Ministral, and refuses what it does not compute')
def test_a_mistral_with_kinds_of_layers_is_what_transformers_opens(tmp_path):
    kinds = ['full_attention', 'sliding_attention', 'sliding_attention', 'sliding_attention']
    tiny_model('mistral', layer_types=kinds).save_pretrained(tmp_path / 'source')
    config = read_config(tmp_path / 'source')
    assert config.model_type == 'ministral' and layer_windows(config) == (8, [False, True, True, True])
    stock, ours = (
        AutoModelForCausalLM.from_pretrained(tmp_path / 'source', config=taken).eval() for taken in (None, config)
    )
    assert torch.equal(logits(ours), logits(stock))


@pytest.mark.parametrize('variant', ['mistral', 'phi3'])
def test_kinds_that_a_model_does_not_look_at_are_not_exported(variant, tmp_path):
    model = tiny_model(variant, sliding_window=8, layer_types=['full_attention'] * 4)
    export(model, {}, tmp_path / 'out')
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
    assert exported.config.model_type == variant and layer_windows(exported.config) == (8, [True] * 4)
    assert torch.equal(logits(exported), logits(model))


@pytest.mark.parametrize(
    ('variant', 'settings', 'named'),
    [
        ('llama', {'num_attention_heads': 0}, r'a llama: ZeroDivisionError.*num_attention_heads: 0'),
        ('llama', {'dtype': []}, r'the config has dtype: \[\]; expected a type such as bfloat16'),
        ('llama', {'torch_dtype': 0}, r'the config has torch_dtype: 0; expected a type such as bfloat16'),
        pytest.param(
            *('gpt_neox', {'hidden_size': [48]}, r'a gpt_neox: TypeError.*hidden_size: \[48\]'),
            marks=only_4,  # transformers 5 says so itself
        ),
    ],
)
def test_what_a_config_class_stumbles_over_is_one_sentence(variant, settings, named):
    content = {key: value for key, value in WRITTEN_4[variant].items() if key not in ('torch_dtype', 'head_dim')}
    with pytest.raises(ValueError, match=named) as error:
        config_from({**content, **settings})
    assert '\n' not in str(error.value)
