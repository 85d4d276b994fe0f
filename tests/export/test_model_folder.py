"""Masked and exported model are one computation, for every family; the folder opens without this package."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmshearing.export.model import export_model
from llmshearing.export.model_folder import cut_tensors, full_tensors, open_strictly
from llmshearing.export.probe import Probe, probe_input, probe_masked
from llmshearing.export.verification import verify_folder
from llmshearing.metrics.pruning_record import kept_indices
from llmshearing.models.cuttable import Cutter
from llmshearing.models.cutting import CutPlan
from llmshearing.models.families import families, family_of
from llmshearing.models.shapes import shape_of
from llmshearing.models.source_config import read_config
from llmshearing.models.units import kept_units
from tests.export.cut_folder import AXES, export, uniform_soft_masks
from tests.models.tiny import CONFIGS, MIXTURES, VARIANTS, tiny_model


def masked_logits(model, masks, ids):
    cutter = Cutter(model)
    cutter.set_masks(masks)
    with torch.no_grad():
        return model(ids, use_cache=False).logits


IDS = torch.randint(3, 97, (2, 21), generator=torch.Generator().manual_seed(4))


SUBSETS = [*[(axis,) for axis in AXES], AXES]
CASES = [(variant, axes) for variant in VARIANTS for axes in SUBSETS] + [(variant, ('expert',)) for variant in MIXTURES]
CASES += [(variant, AXES) for variant in CONFIGS if variant == 'granitemoehybrid-mamba_experts']


@pytest.mark.parametrize('variant, axes', CASES, ids=lambda value: value if isinstance(value, str) else '+'.join(value))
def test_masked_and_exported_logits_are_equal(variant, axes, tmp_path):
    model = tiny_model(variant)
    masks = uniform_soft_masks(model.config, axes)
    target = export(model, masks, tmp_path / 'out')
    exported = open_strictly(tmp_path / 'out')
    assert shape_of(exported.config) == target
    with torch.no_grad():
        got = exported(IDS).logits
    torch.testing.assert_close(got, masked_logits(model, masks, IDS), atol=1e-5, rtol=0)
    # The mask does something: the source computes something else.
    assert (tiny_model(variant)(IDS).logits - got).abs().max() > 1e-3


@pytest.mark.parametrize('variant', [name for name in VARIANTS if name in families])
def test_in_bfloat16_and_with_a_cache(variant, tmp_path):
    model = tiny_model(variant)
    masks = uniform_soft_masks(model.config, AXES)
    expected = masked_logits(model, masks, IDS)
    export(tiny_model(variant), masks, tmp_path / 'half', dtype=torch.bfloat16)
    half = open_strictly(tmp_path / 'half')
    difference = (half(IDS).logits - expected).abs()
    if variant in MIXTURES:  # where rounding may send a token to another expert
        assert difference.square().mean().sqrt() <= 2e-2 * expected.square().mean().sqrt()
    else:
        assert difference.max() <= 2e-2 * max(1.0, expected.abs().max().item())
    prompt = IDS[:1, :9]
    settings = dict(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    with_cache = half.generate(prompt, use_cache=True, **settings)
    without = half.generate(prompt, use_cache=False, **settings)
    assert torch.equal(with_cache, without)


def test_a_plain_process_opens_the_folder(tmp_path):
    model = tiny_model('llama-tied')
    masks = uniform_soft_masks(model.config, AXES)
    export(model, masks, tmp_path / 'out')
    torch.save(masked_logits(model, masks, IDS), tmp_path / 'expected.pt')
    script = f"""
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=False)
expected = torch.load({str(tmp_path / 'expected.pt')!r}, weights_only=True)
ids = torch.randint(3, 97, (2, 21), generator=torch.Generator().manual_seed(4))
assert (model(ids).logits - expected).abs().max() <= 1e-5
assert not any(name.startswith("llmshearing") for name in sys.modules)
assert model.generate(ids, max_new_tokens=3, pad_token_id=0).shape[0] == 2
"""
    subprocess.run([sys.executable, '-c', script], check=True, cwd=tmp_path)


def test_the_config_names_the_class_that_opens_the_folder(tmp_path):
    model = tiny_model('llama-tied')
    model.model.save_pretrained(tmp_path / 'source')  # a LlamaModel, as AutoModel has it
    source = AutoModelForCausalLM.from_pretrained(tmp_path / 'source', config=read_config(tmp_path / 'source'))
    export(source, {}, tmp_path / 'out')
    assert open_strictly(tmp_path / 'out').config.architectures == ['LlamaForCausalLM']
    assert json.loads((tmp_path / 'out' / 'config.json').read_text())['architectures'] == ['LlamaForCausalLM']


def test_layers_of_different_shapes_do_not_leave(tmp_path):
    model = tiny_model()
    masks = {'intermediate': torch.ones(4, 64)}
    masks['intermediate'][1, :10] = 0
    with pytest.raises(
        ValueError, match='layer 0: 2 KV heads, 6 heads, 64 intermediate, layer 1: 2 KV heads, 6 heads, 54'
    ):
        export(model, masks, tmp_path / 'out')
    masks = {'head': torch.ones(4, 6)}
    masks['head'][:, 0] = 0
    with pytest.raises(ValueError, match='unequal groups'):
        export(model, masks, tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_layers_whose_kind_would_change_do_not_leave(tmp_path):
    model = tiny_model('gemma2')  # kinds alternate: layers 0 and 2 cannot stand next to each other
    with pytest.raises(ValueError, match='layer 2 .* position 1'):
        export(model, {'layer': torch.tensor([1.0, 0.0, 1.0, 0.0])}, tmp_path / 'out')


def test_shards_index_and_overwriting(tmp_path):
    model = tiny_model()
    masks = uniform_soft_masks(model.config, AXES)
    export(model, masks, tmp_path / 'out', max_shard_bytes=20_000)
    index = json.loads((tmp_path / 'out' / 'model.safetensors.index.json').read_text())
    assert len(set(index['weight_map'].values())) > 1
    open_strictly(tmp_path / 'out')
    with pytest.raises(ValueError, match='exists already'):
        export(model, masks, tmp_path / 'out')
    export(model, masks, tmp_path / 'out', overwrite=True)
    assert not (tmp_path / 'out' / 'model.safetensors.index.json').exists()


def test_a_folder_that_computes_something_else_is_not_reported(tmp_path):
    model = tiny_model()
    masks = uniform_soft_masks(model.config, AXES)
    export(model, masks, tmp_path / 'out')
    expected = masked_logits(model, masks, probe_input(97))
    folder = tmp_path / 'out'
    assert verify_folder(folder, Probe(expected), torch.float32) <= 1e-5
    with pytest.raises(ValueError, match='logits that differ'):
        verify_folder(folder, Probe(expected + 0.01), torch.float32)
    other_sums = expected + 5e-5 * expected.abs().max() * torch.randn(expected.shape).clamp(-1, 1)
    verify_folder(folder, Probe(other_sums, on_gpu=True), torch.float32)
    with pytest.raises(ValueError, match='logits that differ'):
        verify_folder(folder, Probe(other_sums), torch.float32)


def test_a_window_in_the_wrong_layers_is_found(tmp_path):
    model = tiny_model('ministral' if 'ministral' in VARIANTS else 'mistral', sliding_window=64)
    export(model, {}, tmp_path / 'out')
    expected = probe_masked(Cutter(model), {})
    assert verify_folder(tmp_path / 'out', expected, torch.float32) <= 1e-5
    settings = json.loads((tmp_path / 'out' / 'config.json').read_text())
    changed = {'layer_types': ['full_attention'] * 4} if 'layer_types' in settings else {'sliding_window': None}
    (tmp_path / 'out' / 'config.json').write_text(json.dumps({**settings, **changed}))
    with pytest.raises(ValueError, match='logits that differ'):
        verify_folder(tmp_path / 'out', expected, torch.float32)


def test_half_precision_logits_are_compared_as_a_whole(tmp_path):
    model = tiny_model()
    masks = uniform_soft_masks(model.config, AXES)
    export(model, masks, tmp_path / 'out')
    half = copy.deepcopy(model).bfloat16()
    expected = masked_logits(half, masks, probe_input(97)).float()
    one_far_off = expected.clone()
    one_far_off[0, 5, 7] += expected.abs().max() / 4
    for logits in (expected, one_far_off):
        verify_folder(tmp_path / 'out', Probe(logits, torch.bfloat16), torch.float32)
    with pytest.raises(ValueError, match='relative root mean square'):
        verify_folder(tmp_path / 'out', Probe(expected.roll(1, dims=1), torch.bfloat16), torch.float32)


def _swap_rows(weight):
    weight[[1, 2]] = weight[[2, 1]]


def _larger(gain):
    gain *= 1.2


WRONG = {'model.layers.1.mlp.down_proj.weight': _swap_rows, 'model.layers.0.input_layernorm.weight': _larger}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_rounding_of_weights_is_no_mistake_and_hides_none(dtype, tmp_path):
    model = tiny_model()
    for name, parameter in model.named_parameters():
        if name.endswith(('q_proj.weight', 'k_proj.weight')):
            parameter.data *= 30  # attention so sharp that rounding makes it look elsewhere
    masks = uniform_soft_masks(model.config, AXES)
    cutter = Cutter(model)
    cutter.set_masks(masks)
    export_model(cutter, tmp_path / 'right', dtype=dtype)
    expected = probe_masked(cutter, masks)
    plan = CutPlan(family_of(model.config), shape_of(model.config), masks)
    meant = dict(cut_tensors(plan, full_tensors(model), False))
    rounded = open_strictly(tmp_path / 'right')(probe_input(97)).logits - expected.logits
    assert rounded.abs().max() > 5e-3 * expected.logits.abs().max()
    assert verify_folder(tmp_path / 'right', expected, dtype, meant.items()) <= 1e-5 * expected.logits.abs().max()
    stored = load_file(tmp_path / 'right' / 'model.safetensors')
    for name, spoil in WRONG.items():
        folder, spoiled = tmp_path / name, {key: tensor.clone() for key, tensor in stored.items()}
        shutil.copytree(tmp_path / 'right', folder)
        spoil(spoiled[name])
        save_file(spoiled, folder / 'model.safetensors', {'format': 'pt'})
        with pytest.raises(ValueError, match=f'{name} was read back with other values'):
            verify_folder(folder, expected, dtype, meant.items())
        other = {key: tensor.clone() for key, tensor in meant.items()}
        spoil(other[name])  # as a wrong cut would: the same in what is written and what is meant
        save_file(
            {key: tensor.to(dtype) for key, tensor in other.items()}, folder / 'model.safetensors', {'format': 'pt'}
        )
        with pytest.raises(ValueError, match='logits that differ'):
            verify_folder(folder, expected, dtype, other.items())


def test_kept_indices_name_the_source_units(tmp_path):
    model = tiny_model()
    masks = uniform_soft_masks(model.config, AXES)
    export(model, masks, tmp_path / 'out')
    kept = kept_indices(kept_units(masks, shape_of(model.config)))
    assert kept['hidden'] == torch.nonzero(masks['hidden']).flatten().tolist()
    assert list(kept['layers']) == ['0', '3']
    full = dict(model.named_parameters())['model.layers.3.mlp.up_proj.weight']
    new = open_strictly(tmp_path / 'out').model.layers[1].mlp.up_proj.weight
    torch.testing.assert_close(new, full[kept['layers']['3']['intermediate']][:, kept['hidden']])
