"""Weights that do not fit their config are refused by the tensor's name; what transformers accepts rightly passes."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from llmshearing.checkpoints import weight_files
from llmshearing.checkpoints.source import check_weights, load_source, read_weights
from llmshearing.checkpoints.weight_files import find_weights, weights_folder, whole_folder
from llmshearing.compat.transformers import EXPERTS_ARE_MODULES
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.models.source_config import read_config
from tests.models.tiny import VARIANTS, tiny_model


def save(folder, variant='llama', **settings):
    tiny_model(variant, **settings).save_pretrained(folder)
    return folder


def change(folder, edit):
    """Changes the tensors of a folder in place."""
    weights = load_file(folder / 'model.safetensors')
    edited = edit(weights)
    save_file(edited if isinstance(edited, dict) else weights, folder / 'model.safetensors', metadata={'format': 'pt'})


def check(folder):
    check_weights(folder, read_config(folder))


def set_value(weights, name, value):
    weights[name][0] = value


@pytest.mark.parametrize('variant', ['llama', 'llama-tied', 'gpt_neox', 'gemma2'])
def test_whole_sources_pass(variant, tmp_path):
    check(save(tmp_path, variant))


def test_a_bias_that_is_called_like_an_old_buffer_is_there(tmp_path):
    config = GPT2Config(n_layer=2, n_embd=48, n_head=4, vocab_size=97, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert 'transformer.h.0.attn.c_attn.bias' in read_weights(tmp_path, config)
    check(tmp_path)


@pytest.mark.parametrize(
    ('edit', 'named'),
    [
        (lambda w: w.pop('lm_head.weight'), 'missing: lm_head.weight'),
        (lambda w: w.pop('model.norm.weight'), 'missing: model.norm.weight'),
        (
            lambda w: [w.pop(name) for name in list(w) if 'layers.3.' in name],
            'missing: model.layers.3.input_layernorm.weight, .*model.layers.3.self_attn.v_proj.weight',
        ),
        (lambda w: w.update({'model.layers.4.mlp.up_proj.weight': torch.ones(64, 48)}), 'not expected: model.layers.4'),
        (lambda w: w.update({'model.norm.weight': torch.ones(40)}), r'model.norm.weight is \[40\], expected \[48\]'),
        (
            lambda w: set_value(w, 'model.layers.1.mlp.up_proj.weight', float('nan')),
            'layers.1.mlp.up_proj.weight holds',
        ),
        (lambda w: set_value(w, 'model.norm.weight', float('inf')), 'model.norm.weight holds NaN or infinity'),
        (
            lambda w: w.update({'model.norm.weight': w['model.norm.weight'].to(torch.int8)}),
            'model.norm.weight is stored as int8: quantised',
        ),
        (
            lambda w: w.update({'lm_head.weight': w['lm_head.weight'].to(torch.float8_e4m3fn)}),
            'lm_head.weight is stored as .*quantised',
        ),
        (
            lambda w: w.update({'lm_head.weight': w['lm_head.weight'] > 0}),
            'lm_head.weight is stored as bool, and weights are real',
        ),
        (
            lambda w: w.update({'lm_head.weight': w['lm_head.weight'].to(torch.complex64)}),
            'lm_head.weight is stored as complex64, and weights',
        ),
        (lambda w: w['model.layers.1.self_attn.q_proj.weight'].zero_(), 'q_proj.weight holds nothing but zeros'),
        (lambda w: w['model.layers.1.input_layernorm.weight'].zero_(), 'layernorm.weight holds nothing but zeros'),
        (lambda w: w['model.norm.weight'].zero_(), 'model.norm.weight holds nothing but zeros, as a file does whose'),
    ],
    ids=[
        'no head',
        'no norm',
        'no layer',
        'a layer more',
        'shape',
        'nan',
        'inf',
        'int8',
        'float8',
        'bool',
        'complex',
        *'matrix norm end'.split(),
    ],
)
def test_what_does_not_fit_is_named(edit, named, tmp_path):
    change(save(tmp_path), edit)
    with pytest.raises(ValueError, match=f'(?s){named}'):
        check(tmp_path)


def test_the_rest_of_a_file_that_was_made_beforehand(tmp_path):
    path = save(tmp_path) / 'model.safetensors'
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b'\0'))
    with pytest.raises(ValueError, match='holds nothing but zeros, as a file does whose download was cut off'):
        check(tmp_path)


@pytest.mark.parametrize(
    ('variant', 'ending'),
    [
        ('gemma', 'norm.weight'),
        ('gemma2', 'norm.weight'),
        ('llama-biases', '.bias'),
        ('llama', '1.self_attn.o_proj.weight'),
    ],
)
def test_what_may_be_zero(variant, ending, tmp_path):
    change(save(tmp_path, variant), lambda w: [w[name].zero_() for name in w if name.endswith(ending)] and None)
    check(tmp_path)


def test_a_decoder_saved_without_its_head(tmp_path):
    tiny_model('llama').model.save_pretrained(tmp_path / 'untied')
    with pytest.raises(ValueError, match='missing: lm_head.weight'):
        check(tmp_path / 'untied')
    tiny_model('llama-tied').model.save_pretrained(tmp_path / 'tied')  # needs none
    check(tmp_path / 'tied')


def test_a_tied_head_must_be_the_embedding(tmp_path):
    save(tmp_path, 'llama-tied')
    change(tmp_path, lambda w: w.update({'lm_head.weight': w['model.embed_tokens.weight'].clone()}))
    check(tmp_path)
    change(tmp_path, lambda w: set_value(w, 'lm_head.weight', 3.0))
    with pytest.raises(ValueError, match='lm_head.weight differs from .*set tie_word_embeddings: false in its config'):
        check(tmp_path)
    config = tmp_path / 'config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'tie_word_embeddings': False}))
    check(tmp_path)


def test_files_that_are_not_weights(tmp_path):
    save(tmp_path)
    path = tmp_path / 'model.safetensors'
    whole = path.read_bytes()
    path.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n')
    with pytest.raises(ValueError, match='model.safetensors is a pointer of git-lfs.*git lfs pull'):
        check(tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match='model.safetensors cannot be read .*copy it again'):
        check(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match='holds no weights: expected one of model.safetensors.*index.json.$'):
        check(tmp_path)


@pytest.mark.parametrize('name', ['v_head.summary.weight', 'model.layers.1.self_attn.k_scale'])
def test_what_is_left_over_goes_when_the_model_is_saved_once_more(name, tmp_path):
    save(tmp_path)
    change(tmp_path, lambda w: w.update({name: torch.ones(1, 48)}))
    with pytest.raises(ValueError, match=rf'not expected: {name}\n.*leave out.*save it once more') as caught:
        check(tmp_path)
    assert 'random' not in str(caught.value)
    AutoModelForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path / 'again')
    check(tmp_path / 'again')


@pytest.mark.parametrize('part', ['base_layer.weight', 'lora_A.default.weight'])
def test_an_adapter_among_the_weights(part, tmp_path):
    save(tmp_path)
    path = 'model.layers.1.self_attn.q_proj'
    change(tmp_path, lambda w: w.update({f'{path}.{part}': w.pop(f'{path}.weight')}))
    with pytest.raises(ValueError, match=f'{path}.{part} is of an adapter .* merge it into them first'):
        check(tmp_path)


def test_shards_and_pickles(tmp_path):
    model = tiny_model('llama')
    model.save_pretrained(tmp_path / 'shards', max_shard_size='50KB')
    check(tmp_path / 'shards')
    lost = sorted((tmp_path / 'shards').glob('model-*.safetensors'))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=f'lists {lost.name}'):
        check(tmp_path / 'shards')
    pickled = tmp_path / 'pickle'
    pickled.mkdir()
    shutil.copyfile(tmp_path / 'shards' / 'config.json', pickled / 'config.json')
    state = {**model.state_dict(), 'model.layers.0.self_attn.rotary_emb.inv_freq': torch.ones(4)}  # of older releases
    torch.save(state, pickled / 'pytorch_model.bin')
    check(pickled)
    del state['model.norm.weight']
    torch.save(state, pickled / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='missing: model.norm.weight'):
        check(pickled)


def test_a_tensor_in_two_shards(tmp_path):
    """Which of them counts, releases of transformers do not agree on; equal ones do no harm."""
    tiny_model('llama').save_pretrained(tmp_path, max_shard_size='50KB')
    first, second = sorted(tmp_path.glob('model-*.safetensors'))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second, metadata={'format': 'pt'})
    check(tmp_path)
    save_file({**load_file(second), name: tensor + 1}, second, metadata={'format': 'pt'})
    with pytest.raises(ValueError, match=f'{name} is in {first.name} and, with other values, in {second.name}'):
        check(tmp_path)


@pytest.mark.skipif('olmo_hybrid' not in VARIANTS, reason='transformers 4 has no such model')
def test_layers_of_olmo_hybrid_in_each_form_that_transformers_opens(tmp_path):
    model = tiny_model('olmo_hybrid')
    rows, place = (16, 16, 48), 'model.layers.0.'
    model.save_pretrained(tmp_path / 'by-transformers')  # pieces of equal rows, and the same names in all layers
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in (0, 2):
        for ours, theirs in (
            ('input_layernorm', 'attention_layer_norm'),
            ('post_attention_layernorm', 'feedforward_layer_norm'),
        ):
            first[f'model.layers.{layer}.{theirs}.weight'] = first.pop(f'model.layers.{layer}.{ours}.weight')
        conv = first.pop(f'model.layers.{layer}.linear_attn.conv1d.weight')
        pieces = {
            f'model.layers.{layer}.linear_attn.{part}_conv1d.weight': w for part, w in zip('qkv', conv.split(rows))
        }
        first |= {name: tensor.clone() for name, tensor in pieces.items()}
    stored = load_file(tmp_path / 'by-transformers' / 'model.safetensors')
    assert 'model.layers.1.feedforward_layer_norm.weight' in stored
    assert stored[f'{place}linear_attn.v_conv1d.weight'].shape[0] == 26
    for form, weights in (('first', first), ('memory', model.state_dict())):
        shutil.copytree(tmp_path / 'by-transformers', tmp_path / form)
        save_file(dict(weights), tmp_path / form / 'model.safetensors', metadata={'format': 'pt'})
    ids = torch.arange(20)[None]
    for form in ('by-transformers', 'first', 'memory'):
        check(tmp_path / form)
        read = {name: tensor.read() for name, tensor in read_weights(tmp_path / form, model.config).items()}
        assert set(read) == set(first) and all(torch.equal(read[name], first[name]) for name in first)
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / form).eval()
        torch.testing.assert_close(opened(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    change(tmp_path / 'first', lambda w: w.update({f'{place}linear_attn.v_conv1d.weight': torch.ones(49, 1, 4)}))
    with pytest.raises(
        ValueError, match=r'layers.0.linear_attn.v_conv1d.weight is \[49, 1, 4\], expected \[48, 1, 4\]'
    ):
        check(tmp_path / 'first')


@pytest.mark.skipif(EXPERTS_ARE_MODULES, reason='transformers 4 reads experts one by one alone')
@pytest.mark.parametrize('variant', ['qwen3_moe', 'qwen2_moe', 'qwen3_5_moe_text'])
def test_experts_in_one_tensor(variant, tmp_path):
    model = tiny_model(variant)
    model.save_pretrained(tmp_path)
    config, apart = read_config(tmp_path), load_file(tmp_path / 'model.safetensors')
    joint = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert len(joint) < len(apart)
    save_file(joint, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, joint[name]) for name, tensor in opened.state_dict().items())
    check_weights(tmp_path, config)
    stored = read_weights(tmp_path, config)
    assert stored.keys() == apart.keys()
    assert all(torch.equal(stored[name].read(), tensor) for name, tensor in apart.items())
    twice = {**joint, 'model.layers.0.mlp.experts.1.down_proj.weight': joint['model.layers.0.mlp.experts.down_proj'][1]}
    save_file({name: tensor.clone() for name, tensor in twice.items()}, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='experts.1.down_proj.weight twice: by itself and within'):
        check_weights(tmp_path, model.config)
    joint['model.layers.1.mlp.experts.down_proj'][2, 3, 4] = float('nan')
    save_file(joint, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match=r'layers\.1\.mlp\.experts\.2\.down_proj\.weight holds NaN'):
        check_weights(tmp_path, config)


def test_the_folder_of_a_name(tmp_path, monkeypatch):
    assert weights_folder(str(tmp_path)) == tmp_path
    assert weights_folder('nobody/has-this') is None and weights_folder('/not/there/at/all') is None
    assert whole_folder(str(tmp_path)) == tmp_path


def test_a_name_whose_weights_are_yet_to_be_downloaded(tmp_path, monkeypatch, caplog):
    """Reading its config alone puts a folder into the cache, which was refused for having no weights."""
    save(tmp_path)
    monkeypatch.setattr(weight_files, 'find_file', lambda name, file: tmp_path / file)
    assert whole_folder('some/name') == tmp_path
    (tmp_path / 'model.safetensors').unlink()
    assert whole_folder('some/name') is None
    assert re.search(r'weights of some/name are not on this machine yet.*`\S+ download some/name`', caplog.text)


def test_the_config_counts_layers(tmp_path):
    config = save(tmp_path) / 'config.json'
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, 'num_hidden_layers': 3}))
    with pytest.raises(ValueError, match='not expected: model.layers.3'):
        check(tmp_path)


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'model.'])
def test_names_of_a_wrapper(prefix, tmp_path):
    save(tmp_path)
    change(tmp_path, lambda weights: {f'{prefix}{name}': tensor for name, tensor in weights.items()})
    wrapped = re.escape({'model.': 'model.model.'}.get(prefix, prefix))
    with pytest.raises(ValueError, match=rf'tensors are called {wrapped}\.\.\., as a wrapper'):
        check(tmp_path)


def test_an_adapter_is_no_model(tmp_path):
    save(tmp_path)
    (tmp_path / 'model.safetensors').rename(tmp_path / 'adapter_model.safetensors')
    (tmp_path / 'adapter_config.json').write_text('{}')
    with pytest.raises(ValueError, match='holds an adapter .* merge it into its base model'):
        check(tmp_path)


def test_an_adapter_beside_weights(tmp_path):
    """transformers reads another model with it where peft is installed, and these weights alone where it is not."""
    save(tmp_path)
    (tmp_path / 'adapter_config.json').write_text('{}')
    with pytest.raises(ValueError, match='holds an adapter .*read without it once adapter_config.json is gone'):
        check(tmp_path)
    (tmp_path / 'adapter_config.json').unlink()
    check(tmp_path)


def test_a_single_file_beside_shards(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size=40_000)
    index = tmp_path / 'model.safetensors.index.json'
    content = index.read_text()
    save(tmp_path)  # which removes the shards
    index.write_text(content)
    check(tmp_path)
    shard = json.loads(content)['weight_map']['model.norm.weight']
    save_file({'model.norm.weight': torch.ones(32) / 2}, tmp_path / shard, metadata={'format': 'pt'})
    with pytest.raises(ValueError, match='model.norm.weight is in .* and, with other values, in .*two models lie'):
        check(tmp_path)


def test_a_quantised_model_is_told_by_its_config(tmp_path):
    save(tmp_path)
    config = read_config(tmp_path)
    config.quantization_config = {'quant_method': 'gptq', 'bits': 4}
    for read in (check_weights, lambda folder, config: load_source('here', str(folder), config)):
        with pytest.raises(ValueError, match=r'has quantised weights \(gptq\)'):
            read(tmp_path, config)


def test_an_index_that_transformers_would_not_read(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size=40_000)
    path = tmp_path / 'model.safetensors.index.json'
    path.write_text(json.dumps({'weight_map': json.loads(path.read_text())['weight_map']}))
    with pytest.raises(ValueError, match='index.json holds no mapping "metadata", which transformers reads'):
        check(tmp_path)


def test_other_programs_copies_are_not_the_weights(tmp_path):
    save(tmp_path)
    shutil.copy(tmp_path / 'model.safetensors', tmp_path / 'consolidated.safetensors')
    assert [path.name for path in find_weights(tmp_path)] == ['model.safetensors']


def test_weights_of_eight_bits_are_named(tmp_path):
    save(tmp_path)
    change(tmp_path, lambda weights: {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()})
    with pytest.raises(ValueError, match='is stored as float8_e4m3fn: quantised weights'):
        check(tmp_path)


@pytest.mark.parametrize(
    'settings',
    [
        {'pad_token_id': 900},
        {'hidden_act': 'foo'},
        {'rope_parameters': {'rope_type': 'mrope', 'rope_theta': 1e4, 'factor': 2.0}},
    ],
)
def test_configs_that_no_model_is_built_from(settings, tmp_path):
    if 'rope_parameters' in settings and not TRANSFORMERS_5:
        settings = {'rope_scaling': settings['rope_parameters']}
    save(tmp_path)
    content = json.loads((tmp_path / 'config.json').read_text())
    for key in ('rope_parameters', 'rope_scaling', 'rope_theta'):
        content.pop(key, None)
    (tmp_path / 'config.json').write_text(json.dumps({**content, **settings}))
    with pytest.raises(ValueError, match='builds no llama model from the config .*most often one of'):
        check(tmp_path)
