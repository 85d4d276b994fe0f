"""Legacy state dicts:
round trips bit for bit, pruning checkpoints against the masked computation by hand, refusals by name."""

import math
import os

import pytest
import torch
from safetensors.torch import load_file

from llmshearing.cli import main
from llmshearing.export.legacy_import import ImportSettings, export_legacy, import_legacy
from llmshearing.export.legacy_names import hugging_face_name, legacy_name
from llmshearing.export.model_folder import open_strictly
from llmshearing.models.shapes import shape_of
from tests.models.reference import masked_llama_logits
from tests.models.tiny import tiny_model
from tests.tiny_run import tiny_tokenizer

TARGET = {'num_hidden_layers': 2, 'hidden_size': 32, 'num_attention_heads': 4, 'intermediate_size': 40}
QUIET = ImportSettings(head_dim=8, progress=False)


def legacy_state(model):
    """The names are written out here once more, so that a wrong table cannot hide."""
    state = {
        'model.transformer.wte.weight': model.model.embed_tokens.weight,
        'model.transformer.output.weight': model.lm_head.weight,
        'model.transformer.ln_f.weight': model.model.norm.weight,
    }
    for i, layer in enumerate(model.model.layers):
        block = f'model.transformer.blocks.{i}'
        state[f'{block}.ln_1.weight'] = layer.input_layernorm.weight
        state[f'{block}.ln_2.weight'] = layer.post_attention_layernorm.weight
        state[f'{block}.attn.wq.weight'] = layer.self_attn.q_proj.weight
        state[f'{block}.attn.wk.weight'] = layer.self_attn.k_proj.weight
        state[f'{block}.attn.wv.weight'] = layer.self_attn.v_proj.weight
        state[f'{block}.attn.out_proj.weight'] = layer.self_attn.o_proj.weight
        state[f'{block}.attn.rotary_emb.inv_freq'] = torch.ones(4)
        state[f'{block}.mlp.gate_proj.weight'] = layer.mlp.gate_proj.weight
        state[f'{block}.mlp.up_proj.weight'] = layer.mlp.up_proj.weight
        state[f'{block}.mlp.down_proj.weight'] = layer.mlp.down_proj.weight
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def with_masks(state, seed=0):
    """Adds ``z_loga`` in the range that training leaves, and multipliers."""
    generator = torch.Generator().manual_seed(seed)
    for axis, size in {'hidden': (48,), 'layer': (4,), 'head': (4, 6), 'intermediate': (4, 64)}.items():
        state[f'model.l0_module.masks.{axis}.z_loga'] = torch.rand(size, generator=generator) * 6 - 2
    state['model.l0_module.lambdas.lambda_1_hidden'] = torch.tensor(1.0)
    return state


def masks_by_hand(state):
    """Top-k of each row, with sigmoid(0.8 * z_loga / (2/3)) for what is kept."""
    masks = {}
    for axis, keep in {'hidden': 32, 'layer': 2, 'head': 4, 'intermediate': 40}.items():
        loga = state[f'model.l0_module.masks.{axis}.z_loga']
        rows = loga.reshape(-1, loga.shape[-1])
        mask = torch.zeros_like(rows)
        for row, values in enumerate(rows.tolist()):
            for unit in sorted(range(len(values)), key=values.__getitem__)[-keep:]:
                mask[row, unit] = 1 / (1 + math.exp(-0.8 * values[unit] * 3 / 2))
        masks[axis] = mask.reshape(loga.shape)
    return masks


@pytest.fixture
def model():
    model = tiny_model('llama-mha')
    model.config.rms_norm_eps = 1e-5
    for module in model.modules():
        if hasattr(module, 'variance_epsilon'):
            module.variance_epsilon = 1e-5
    return model


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('nested', [False, True])
def test_round_trip_is_bit_exact(model, tmp_path, dtype, nested):
    state = legacy_state(model.to(dtype))
    torch.save({'state': {'model': state}, 'rng': None} if nested else state, tmp_path / 'old.pt')
    report = import_legacy(tmp_path / 'old.pt', tmp_path / 'folder', QUIET)
    assert report['tensors_compared'] == 3 + 9 * 4 and report['shape'] == shape_of(model.config)
    opened = open_strictly(tmp_path / 'folder', dtype)
    ids = torch.arange(3, 30)[None]
    if dtype == torch.float32:  # a model that was cast as a whole has its rotary frequencies cast too
        with torch.no_grad():
            assert torch.equal(opened(ids).logits, model.eval()(ids).logits)
    export_legacy(tmp_path / 'folder', tmp_path / 'new.pt')
    again = torch.load(tmp_path / 'new.pt', weights_only=True)
    expected = {name: tensor for name, tensor in state.items() if 'inv_freq' not in name}
    assert set(again) == set(expected)
    for name, tensor in expected.items():
        assert again[name].dtype == dtype and torch.equal(again[name], tensor), name


def test_hugging_face_legacy_hugging_face_is_bit_exact(model, tmp_path):
    model.save_pretrained(tmp_path / 'first')
    tiny_tokenizer().save_pretrained(tmp_path / 'first')
    assert main(['import', str(tmp_path / 'first'), '--to-legacy', '--out', str(tmp_path / 'old.pt')]) == 0
    arguments = [
        'import',
        str(tmp_path / 'old.pt'),
        '--source',
        str(tmp_path / 'first'),
        '--out',
        str(tmp_path / 'second'),
        '--quiet',
    ]
    assert main(arguments) == 0
    first, second = (load_file(tmp_path / name / 'model.safetensors') for name in ('first', 'second'))
    assert set(first) == set(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert (tmp_path / 'second' / 'tokenizer.json').read_bytes() == (tmp_path / 'first' / 'tokenizer.json').read_bytes()


def test_pruning_checkpoint_computes_what_its_masks_mean(model, tmp_path, capsys):
    state = with_masks(legacy_state(model))
    torch.save({'state': {'model': state}}, tmp_path / 'pruning.pt')
    arguments = [
        'import',
        str(tmp_path / 'pruning.pt'),
        '--out',
        str(tmp_path / 'folder'),
        '--head-dim',
        '8',
        '--quiet',
    ]
    arguments += ['--target', *(f'{name}={number}' for name, number in TARGET.items())]
    assert main(arguments) == 0
    assert 'hidden_size=32, num_attention_heads=4' in capsys.readouterr().out
    opened = open_strictly(tmp_path / 'folder')
    shape = shape_of(opened.config)
    assert (shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads, shape.intermediate_size) == (
        2,
        32,
        4,
        40,
    )
    assert opened.config.rms_norm_eps == 1e-5
    ids = torch.randint(3, 97, (2, 21), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = masked_llama_logits(model, ids, masks_by_hand(state))
        difference = (opened(ids).logits - expected).abs().max()
        assert difference <= 1e-5
        assert (model(ids).logits - expected).abs().max() > 1e-2


def test_axes_that_stay_whole_still_have_their_gates(model, tmp_path):
    state = with_masks(legacy_state(model))
    for axis in ('layer', 'head', 'intermediate'):
        del state[f'model.l0_module.masks.{axis}.z_loga']
    torch.save(state, tmp_path / 'pruning.pt')
    settings = ImportSettings(head_dim=8, target={'hidden_size': 48}, progress=False)
    import_legacy(tmp_path / 'pruning.pt', tmp_path / 'folder', settings)
    gates = torch.sigmoid(0.8 * state['model.l0_module.masks.hidden.z_loga'] / (2 / 3))
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        expected = masked_llama_logits(model, ids, {'hidden': gates})
        assert (open_strictly(tmp_path / 'folder')(ids).logits - expected).abs().max() <= 1e-5


def refused(state, tmp_path, match, settings=QUIET):
    torch.save(state, tmp_path / 'wrong.pt')
    with pytest.raises(ValueError, match=match):
        import_legacy(tmp_path / 'wrong.pt', tmp_path / 'folder', settings)
    assert {path.name for path in tmp_path.iterdir()} == {'wrong.pt'}


def test_what_does_not_fit_is_refused_by_name(model, tmp_path):
    def changed(edit):
        state = with_masks(legacy_state(model))
        edit(state)
        return state

    target = ImportSettings(head_dim=8, target=TARGET, progress=False)
    block = 'model.transformer.blocks.2.'
    hidden = 'model.l0_module.masks.hidden.z_loga'
    refused(
        changed(lambda s: s.pop(f'{block}mlp.up_proj.weight')),
        tmp_path,
        'missing: model.layers.2.mlp.up_proj.weight',
        target,
    )
    refused(
        changed(lambda s: s.pop('model.transformer.wte.weight')),
        tmp_path,
        'missing from the file: model.transformer.wte.weight',
        target,
    )
    refused(
        changed(lambda s: s.update({f'{block}attn.q_norm.weight': torch.ones(8)})),
        tmp_path,
        r'blocks\.2\.attn\.q_norm\.weight',
        target,
    )
    refused(
        changed(lambda s: s.update({f'{block}attn.wk.weight': torch.ones(16, 48)})),
        tmp_path,
        r'model.layers.2.self_attn.k_proj.weight is \[16, 48\], expected \[48, 48\]',
        target,
    )
    refused(
        changed(lambda s: s.update({'model.transformer.blocks.7.ln_1.weight': torch.ones(48)})),
        tmp_path,
        'missing: model.layers.4.input_layernorm.weight',
        target,
    )
    refused(
        changed(lambda s: s.update({'model.l0_module.masks.qk_head_dim.z_loga': torch.ones(4)})),
        tmp_path,
        r'unknown mask\(s\) qk_head_dim; only hidden, layer, head, intermediate',
        target,
    )
    refused(
        changed(lambda s: s.update({hidden: torch.ones(40)})),
        tmp_path,
        r'mask hidden has shape \(40,\), the weights imply \(48,\)',
        target,
    )
    refused(
        changed(lambda s: s.pop(hidden)),
        tmp_path,
        'keeps 32 of 48 units along hidden, but the file has no hidden mask',
        target,
    )
    refused(with_masks(legacy_state(model)), tmp_path, 'give the shape to finish at, --target', QUIET)
    refused(legacy_state(model), tmp_path, 'has no masks, so there is nothing to finish', target)
    refused(legacy_state(model), tmp_path, 'give --head-dim', ImportSettings(progress=False))
    refused(
        legacy_state(model),
        tmp_path,
        '48 rows, which are no whole heads of width 7',
        ImportSettings(head_dim=7, progress=False),
    )
    for width in (-8, 0):
        refused(
            legacy_state(model),
            tmp_path,
            f'--head-dim must be 1 or more, got {width}; 128 for LLaMA-2',
            ImportSettings(head_dim=width, progress=False),
        )
    refused({'state': {'model': 'nothing'}}, tmp_path, 'is no state dict')
    too_large = ImportSettings(head_dim=8, target={**TARGET, 'hidden_size': 64}, progress=False)
    refused(with_masks(legacy_state(model)), tmp_path, "hidden_size=64 is larger than the source's 48", too_large)


def test_a_source_whose_config_does_not_fit_the_file_is_named(model, tmp_path):
    model.config.update({'pad_token_id': 500})
    model.config.save_pretrained(tmp_path / 'source')
    torch.save(legacy_state(model), tmp_path / 'old.pt')
    with pytest.raises(ValueError, match='config of .*source .*vocab_size=97, pad_token_id=500'):
        import_legacy(tmp_path / 'old.pt', tmp_path / 'folder', ImportSettings(source=str(tmp_path / 'source')))


def test_folders_that_cannot_become_a_state_dict(model, tmp_path):
    model.save_pretrained(tmp_path / 'source')
    with pytest.raises(ValueError, match='source is a folder, but a state dict is one file'):
        export_legacy(tmp_path / 'source', tmp_path / 'source', overwrite=True)
    assert export_legacy(tmp_path / 'source', tmp_path / 'not' / 'there' / 'old.pt') == 3 + 9 * 4
    (tmp_path / 'source' / 'model.safetensors').write_bytes(b'garbage garbage')
    with pytest.raises(ValueError, match='source/model.safetensors cannot be read .*copy it again'):
        export_legacy(tmp_path / 'source', tmp_path / 'old.pt')
    model.config.update({'hidden_act': 'swiglu'})
    model.config.save_pretrained(tmp_path / 'source')
    with pytest.raises(ValueError, match="KeyError: 'swiglu'"):
        export_legacy(tmp_path / 'source', tmp_path / 'old.pt')
    assert not (tmp_path / 'old.pt').exists()


def test_code_in_a_legacy_file_is_not_run(model, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'made'),)

    refused({**legacy_state(model), 'extra': Malicious()}, tmp_path, 'posix.mkdir')


@pytest.mark.parametrize('variant', ['llama', 'llama-tied', 'mistral'])
def test_models_without_such_a_state_dict_are_refused(variant, tmp_path):
    tiny_model(variant).save_pretrained(tmp_path / 'folder')
    with pytest.raises(ValueError, match='only LLaMA with as many KV heads as heads'):
        export_legacy(tmp_path / 'folder', tmp_path / 'out.pt')
    assert not (tmp_path / 'out.pt').exists()


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        ({'rope_theta': 5e5}, 'rope_theta: 500000.0'),
        ({'rope_scaling': {'rope_type': 'linear', 'factor': 4.0}}, 'rope_type: linear'),
    ],
)
def test_rotary_settings_that_no_state_dict_has_are_refused(settings, named, tmp_path):
    tiny_model('llama-mha', **settings).save_pretrained(tmp_path / 'folder')
    with pytest.raises(ValueError, match=f'{named}.* a base of 10000 without scaling'):
        export_legacy(tmp_path / 'folder', tmp_path / 'out.pt')
    assert not (tmp_path / 'out.pt').exists()


def test_biases_have_no_legacy_name(tmp_path):
    tiny_model('llama-biases', num_key_value_heads=6).save_pretrained(tmp_path / 'folder')
    with pytest.raises(ValueError, match='self_attn.q_proj.bias.* has no legacy name'):
        export_legacy(tmp_path / 'folder', tmp_path / 'out.pt')


def test_names_are_each_other_inverse(model):
    for name in model.state_dict():
        assert hugging_face_name(legacy_name(name)) == name
    assert hugging_face_name('model.transformer.blocks.01.ln_1.weight') is None
    assert hugging_face_name('transformer.wte.weight') is None


def test_options_that_contradict_or_do_nothing(model, tmp_path, capsys):
    torch.save(legacy_state(model), tmp_path / 'old.pt')
    model.save_pretrained(tmp_path / 'hf')
    begin = ['import', str(tmp_path / 'old.pt'), '--out', str(tmp_path / 'out'), '--quiet']
    back = ['import', '--to-legacy', str(tmp_path / 'hf'), '--out', str(tmp_path / 'out')]
    for command, words in (
        ([*begin, '--source', str(tmp_path / 'hf'), '--head-dim', '16'], '--head-dim 16: heads of the source'),
        ([*begin, '--head-dim', '8', '--rms-norm-eps', '-1'], '--rms-norm-eps: expected a number above 0'),
        ([*back, '--dtype', 'float16'], '--dtype does nothing with --to-legacy'),
        ([*back, '--head-dim', '8'], '--head-dim does nothing with --to-legacy'),
    ):
        assert main(command) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
