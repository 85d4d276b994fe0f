"""Exports as vLLM and llama.cpp read their config.json: the keys that their code asks for say what the model computes.

Neither is installed here. What their code does with a config was read in llama.cpp's ``conversion/base.py`` (commit
00bd27a) and ``gpt_neox.py``, and in vLLM's ``transformers_utils/config.py`` (0036026) and ``config/model.py``
(18ec662); the functions below take the same keys in the same order.
"""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from llmshearing.compat.transformers import dtype_of
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.export.model_folder import open_strictly
from llmshearing.models.shapes import shape_of
from llmshearing.models.source_config import read_config
from tests.export.cut_folder import AXES, export, uniform_soft_masks
from tests.export.test_model_folder import masked_logits
from tests.models.tiny import AXES_OF, OWN_ROTARY, ROTARY, ROTARY_BASE, VARIANTS, rotary_model, tiny_model

KINDS = {'llama-rope3': ('llama3', 8.0), 'llama-linear': ('linear', 4.0), 'llama-yarn': ('yarn', 2.0)}
KINDS |= {'gemma3_text-linear': ('linear', 8.0), 'phi3-longrope': ('longrope', None)}


@pytest.fixture(scope='module', params=[name for name in (*VARIANTS, *ROTARY) if name not in OWN_ROTARY])
def exported(request, tmp_path_factory):
    """Variant, folder, shape of what was exported."""
    folder = tmp_path_factory.mktemp('readers') / 'out'
    variant, model = request.param, rotary_model(request.param)
    return variant, folder, export(model, uniform_soft_masks(model.config, AXES_OF.get(variant, AXES)), folder)


def read_as_llama_cpp(hparams):
    """Rotary base, base of sliding layers, kind and factor, and size of a head."""
    rotary = hparams.get('rope_parameters', hparams.get('rope_scaling')) or {}
    base = next((hparams[key] for key in ('rope_theta', 'rotary_emb_base') if key in hparams), None)
    if 'full_attention' not in rotary and 'sliding_attention' not in rotary:
        if hparams.get('rope_local_base_freq') is not None:
            rotary['sliding_attention'] = {'rope_theta': hparams['rope_local_base_freq']}
        if base is not None:
            rotary.setdefault('rope_theta', base)
        if 'type' in rotary:
            rotary.setdefault('rope_type', rotary['type'])
    main = rotary.get('full_attention', rotary)
    head_dim = hparams.get('head_dim') or hparams['hidden_size'] // hparams['num_attention_heads']
    return {
        'base': main.get('rope_theta'),
        'local base': rotary.get('sliding_attention', {}).get('rope_theta'),
        'kind': (main.get('rope_type') or 'default', main.get('factor')),
        'head_dim': head_dim,
    }


@pytest.mark.parametrize('opened', [True, False], ids=['with transformers', 'without'])
def test_llama_cpp_finds_rotary_settings_and_heads(exported, opened):
    variant, folder, shape = exported
    content = json.loads((folder / 'config.json').read_text())
    got = read_as_llama_cpp(AutoConfig.from_pretrained(folder).to_dict() if opened else copy.deepcopy(content))
    assert got == {
        'base': ROTARY_BASE,
        'local base': {'gemma3_text': 1e4, 'olmo3': ROTARY_BASE}.get(variant.partition('-')[0]),
        'kind': KINDS.get(variant, ('default', None)),
        'head_dim': shape.head_dim,
    }
    if variant.startswith('gpt_neox'):
        assert content['rotary_pct'] == VARIANTS[variant]['rotary_pct']  # asked for by this name alone
    if variant == 'llama-yarn':
        rotary = content.get('rope_parameters', content.get('rope_scaling'))
        assert rotary['original_max_position_embeddings'] == 64


def test_vllm_finds_rotary_settings_heads_and_type(exported):
    variant, folder, shape = exported
    config = AutoConfig.from_pretrained(folder)
    names = ('rope_theta', 'rotary_emb_base')
    base = next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)
    names = ('partial_rotary_factor', 'rotary_pct', 'rotary_emb_fraction')
    share = next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)
    if TRANSFORMERS_5:
        before = copy.deepcopy(config.rope_parameters)
        if base is not None:
            config.rope_theta = base
        if share is not None:
            config.partial_rotary_factor = share
        config.standardize_rope_params()
        config.validate_rope()
        assert config.rope_parameters == before
        main = before.get('full_attention', before)
        base, kind = main['rope_theta'], (main['rope_type'], main.get('factor'))
        assert main.get('partial_rotary_factor', 1.0) == VARIANTS.get(variant, {}).get(
            'rotary_pct', VARIANTS.get(variant, {}).get('partial_rotary_factor', 1.0)
        )
    else:
        scaling = config.rope_scaling if getattr(config, 'rope_scaling', None) else {}
        kind = (scaling.get('rope_type') or scaling.get('type') or 'default', scaling.get('factor'))
    assert base == ROTARY_BASE and kind[0] == KINDS.get(variant, ('default', None))[0]
    head_dim = getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads
    assert head_dim == shape.head_dim == shape_of(config).head_dim
    assert dtype_of(config) == torch.float32


@pytest.mark.skipif('lfm2' not in VARIANTS, reason='transformers 4 has no such model')
def test_sizes_of_lfm2_under_the_names_of_its_first_configs(tmp_path):
    """As llama.cpp (``block_ff_dim``) and vLLM (``block_dim``, ``conv_dim``) read them; a source has its own."""
    model = rotary_model('lfm2-adjusted')
    for key in ('block_dim', 'conv_dim', 'conv_dim_out'):
        setattr(model.config, key, model.config.hidden_size)
    shape = export(model, uniform_soft_masks(model.config, AXES), tmp_path / 'out')
    content = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert shape.hidden_size < model.config.hidden_size
    assert content['block_dim'] == content['conv_dim'] == content['conv_dim_out'] == shape.hidden_size
    assert content['block_ff_dim'] == content['intermediate_size'] == shape.intermediate_size
    assert content['num_heads'] == shape.num_attention_heads
    assert content['block_auto_adjust_ff_dim'] is False
    assert shape_of(AutoConfig.from_pretrained(tmp_path / 'out')) == shape


@pytest.mark.skipif('granitemoehybrid' not in VARIANTS, reason='transformers 4 has no such model')
def test_kinds_of_layers_of_granite_as_its_first_configs_call_them(tmp_path):
    """As vLLM reads them; transformers 5 reads both and writes the newer words."""
    model = rotary_model('granitemoehybrid-mamba')
    shape = export(model, uniform_soft_masks(model.config, AXES), tmp_path / 'out')
    content = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert content['layer_types'] == ['mamba', 'attention'] * (shape.num_hidden_layers // 2)
    assert content['mamba_expand'] * shape.hidden_size == content['mamba_n_heads'] * content['mamba_d_head']
    assert content['shared_intermediate_size'] == content['intermediate_size'] == shape.intermediate_size
    assert shape_of(AutoConfig.from_pretrained(tmp_path / 'out')) == shape


@pytest.mark.skipif('olmo_hybrid' not in VARIANTS, reason='transformers 4 has no such model')
def test_layers_of_olmo_hybrid_as_its_first_folders_hold_them(tmp_path):
    """Without rotary embeddings, as it was published."""
    model = tiny_model('olmo_hybrid-nope')
    masks = uniform_soft_masks(model.config, AXES)
    export(model, masks, tmp_path / 'out')
    stored = load_file(tmp_path / 'out' / 'model.safetensors')
    rows = {part: stored[f'model.layers.0.linear_attn.{part}_conv1d.weight'].shape[0] for part in 'qkv'}
    assert rows == {'q': 16, 'k': 16, 'v': 48}
    assert 'model.layers.0.attention_layer_norm.weight' in stored
    assert 'model.layers.1.post_attention_layernorm.weight' in stored
    config = read_config(tmp_path / 'out')
    assert config.rope_parameters['rope_theta'] is None
    exported, ids = open_strictly(tmp_path / 'out'), torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(exported(ids).logits, masked_logits(model, masks, ids), atol=1e-5, rtol=0)
