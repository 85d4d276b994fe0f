"""Gains of norms follow the hidden dimensions that go: closed forms, every family's export, runs, resumption."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.compat.transformers import attention_implementation
from llmshearing.export.job import ExportSettings, export_checkpoint
from llmshearing.export.model_folder import cut_tensors, exported_config, full_tensors
from llmshearing.masks.compensation import Compensation
from llmshearing.masks.energies import norm_energies, relative_squares
from llmshearing.masks.scores import Calibration
from llmshearing.masks.state import read_pruning_state
from llmshearing.models.cuttable import Cutter
from llmshearing.models.cutting import CutPlan
from llmshearing.models.families import family_of
from llmshearing.models.gains import gain_factors, stream_norms
from llmshearing.models.shapes import shape_of
from llmshearing.models.units import mask_shapes
from tests.export.cut_folder import AXES, uniform_soft_masks
from tests.export.test_model_folder import IDS
from tests.models.tiny import VARIANTS, tiny_model
from tests.tiny_run import sequences_spec, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
KEPT = (torch.arange(48) % 3 != 0).float()  # 32 of 48


def batches_of(ids):
    return [{'input_ids': ids, 'labels': ids}]


def subtracts_mean(norm, x):
    with torch.no_grad():
        return torch.allclose(norm(x), norm(x + 1), atol=1e-3)


def norm_outputs(model, paths, ids):
    """What each norm gives, by path."""
    outputs = {}
    handles = [
        model.get_submodule(path).register_forward_hook(lambda module, args, out, p=path: outputs.update({p: out[0]}))
        for path in paths
    ]
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return outputs


def test_factors_are_those_of_the_formula():
    energies = torch.tensor([[1.0, 2.0, 3.0, 6.0], [4.0, 4.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    kept, values = torch.tensor([1, 3]), torch.tensor([0.5, 1.0])
    reads = torch.tensor([True, False, True])
    want = torch.tensor([4 / 2 * (0.25 * 2 + 6) / 12, 4 / 2 * 8 / 16, 1.0]).sqrt()
    torch.testing.assert_close(gain_factors(energies, kept, values, reads), want)
    everything = gain_factors(energies[:2], None, torch.ones(4), reads[:2])
    torch.testing.assert_close(everything, torch.ones(2))


def test_factors_are_not_rounded_under_autocast():
    energies, values = torch.rand(3, 48), torch.rand(48)
    reads = torch.tensor([True, True, False])
    want = gain_factors(energies, None, values, reads)
    with torch.autocast('cpu', torch.bfloat16):
        got = gain_factors(energies, None, values, reads)
    assert got.dtype == torch.float32 and torch.equal(got, want)


@pytest.mark.parametrize('variant', VARIANTS)
def test_energies_are_the_relative_mean_squares_of_what_norms_read(variant):
    model = tiny_model(variant)
    cutter = Cutter(model)
    norms = stream_norms(cutter.family, cutter.shape.num_hidden_layers)
    inputs = {}
    for path in norms:
        module = model.get_submodule(path)
        module.register_forward_pre_hook(lambda module, args, p=path: inputs.update({p: args[0].flatten(0, 1)}))
    whole = norm_energies(Calibration(cutter, batches_of(IDS)))
    for (path, x), got in zip(inputs.items(), whole, strict=True):
        if subtracts_mean(model.get_submodule(path), x):
            x = x - x.mean(-1, keepdim=True)
        want = (x.square() / x.square().mean(-1, keepdim=True)).mean(0)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    parts = norm_energies(Calibration(cutter, batches_of(IDS), microbatch_size=1))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_rows_of_zeros_have_no_energy():
    rows = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 3.0]])
    assert torch.equal(relative_squares(rows, False), torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, 1.5]]))


@pytest.mark.parametrize('variant', ['llama', 'gemma', 'phi3', 'granite', 'starcoder2'])
def test_what_is_kept_comes_out_as_in_the_source(variant):
    """For the token that was measured: exactly where the norm is an RMSNorm, nearly where it subtracts the mean."""
    model, token = tiny_model(variant), torch.tensor([[5]])
    first = 'model.layers.0.input_layernorm'  # it reads the embedding, which the cut leaves as it is
    source = norm_outputs(model, [first], token)[first]
    cutter = Cutter(model)
    energies = norm_energies(Calibration(cutter, batches_of(token)))
    cutter.set_masks({'hidden': KEPT})
    without = norm_outputs(model, [first], token)[first]
    cutter.norm_energies = energies
    cutter.set_masks({'hidden': KEPT})
    got = norm_outputs(model, [first], token)[first]
    want = source[..., KEPT > 0]
    if variant == 'starcoder2':
        assert (got - want).abs().mean() < (without - want).abs().mean()
    else:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(without, want, rtol=1e-3, atol=1e-4)


def test_the_factor_is_a_constant_to_the_masks_gradient():
    model = tiny_model()
    cutter = Cutter(model)
    cutter.norm_energies = norm_energies(Calibration(cutter, batches_of(IDS)))
    values = torch.full((48,), 0.5, requires_grad=True)
    plan = CutPlan(cutter.family, cutter.shape, {'hidden': values.detach()}, energies=cutter.norm_energies)
    cut = dict(plan.cuts(values))['model.norm']
    assert cut.gain.item() == pytest.approx(0.5, rel=1e-5) and not cut.gain.requires_grad
    gain = torch.ones(48)
    cut.parameters({'weight': gain})['weight'].sum().backward()
    torch.testing.assert_close(values.grad, torch.full((48,), 0.5), rtol=1e-5, atol=0)


def test_a_bias_is_not_a_gain():
    model = tiny_model('starcoder2')
    cutter = Cutter(model)
    energies = norm_energies(Calibration(cutter, batches_of(IDS)))
    plan = CutPlan(cutter.family, cutter.shape, {'hidden': KEPT}, energies=energies)
    cut = dict(plan.cuts(KEPT))['model.norm']
    parameters = cut.parameters({'weight': torch.ones(48), 'bias': torch.ones(48)})
    torch.testing.assert_close(parameters['weight'], cut.gain.expand(32))
    assert torch.equal(parameters['bias'], torch.ones(32)) and abs(cut.gain.item() - 1) > 1e-3


@pytest.mark.parametrize('variant', VARIANTS)
def test_masked_and_exported_logits_are_equal(variant):
    model = tiny_model(variant)
    source, family, shape = model.config, family_of(model.config), shape_of(model.config)
    masks, cutter = uniform_soft_masks(source, AXES), Cutter(model)
    energies = norm_energies(Calibration(cutter, batches_of(IDS)))
    with torch.no_grad():
        cutter.set_masks(masks)
        without = model(IDS, use_cache=False).logits
        cutter.norm_energies = energies
        cutter.set_masks(masks)
        masked = model(IDS, use_cache=False).logits
        assert (masked - without).abs().max() > 1e-3
        plan = CutPlan(family, shape, masks, energies=energies)
        tensors = dict(cut_tensors(plan, full_tensors(model), source.tie_word_embeddings))
        config = exported_config(source, plan, torch.float32)
        exported = AutoModelForCausalLM.from_config(config, attn_implementation=attention_implementation(config)).eval()
        missing, unexpected = exported.load_state_dict(tensors, strict=False)
        exported.tie_weights()
        assert not unexpected and set(missing) <= set(exported._tied_weights_keys or ())
        torch.testing.assert_close(exported(IDS, use_cache=False).logits, masked, atol=1e-5, rtol=0)


@pytest.mark.parametrize('variant', ['llama', 'gemma2', 'olmo2', 'gpt_neox'])
def test_compensation_changes_only_norms_that_do_not_follow_by_themselves(variant):
    """Those over heads; otherwise the gain would be made up for twice."""
    model = tiny_model(variant)
    cutter = Cutter(model)
    cutter.norm_energies = norm_energies(Calibration(cutter, batches_of(IDS)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    axes = ('hidden', 'head' if cutter.shape.group_size == 1 else 'kv_group')
    masks = {axis: torch.ones(mask_shapes(cutter.shape)[axis]) for axis in axes}
    cutter.set_masks(masks)
    watching = Compensation(cutter, axes)
    with torch.no_grad():
        model(IDS, use_cache=False)
    watching.stop()
    masks['hidden'] = KEPT
    masks[axes[1]][:, 0] = 0
    watching.apply(masks)
    changed = {
        name.removesuffix('.weight') for name, value in model.state_dict().items() if (value != before[name]).any()
    }
    norms = stream_norms(cutter.family, cutter.shape.num_hidden_layers)
    final = cutter.family.final_norm_path
    makes_up = {final} if cutter.family.scales_embedding and model.config.tie_word_embeddings else set()
    assert changed & set(norms) == makes_up and any('layers.0' in path for path in changed)
    assert any(path.endswith('_norm') for path in changed) == (variant == 'olmo2')


def run(source, folder, stop=None, load=None, callbacks=(), **settings):
    pruning = TargetedPruning(TARGET, warmup='4ba', **settings)
    trainer = tiny_trainer(
        source,
        [pruning],
        batches=8,
        callbacks=list(callbacks),
        eval_dataloader=sequences_spec(8, 4, seed=1),
        eval_interval='8ba',
        save_folder=str(folder),
        save_filename='ba{batch}.pt',
        save_interval='1ba',
        save_overwrite=True,
        load_path=load,
        run_name='energies',
    )
    trainer.fit(duration=stop)
    trainer.close()
    return trainer.state.model, pruning


@pytest.mark.parametrize(
    'settings',
    [
        {'mask_learning': 'lagrangian', 'freeze_masks_after': '6ba'},
        {'mask_learning': 'progressive', 'scores': 'activation', 'compensate': True},
        {'mask_learning': 'one_shot', 'scores': 'activation'},
    ],
    ids=lambda settings: settings['mask_learning'],
)
def test_a_run_measures_once_resumes_bit_for_bit_and_exports_what_it_trained(source, tmp_path, settings):
    export = ExportPruned(str(tmp_path / 'out'), allow_unconverged=True)  # compares the logits itself, to 1e-5
    model, pruning = run(source, tmp_path / 'whole', callbacks=[export], **settings)
    assert pruning.norm_energies.shape == (9, 48)
    torch.testing.assert_close(pruning.norm_energies.mean(1), torch.ones(9))
    resumed, again = run(source, tmp_path / 'again', load=str(tmp_path / 'whole' / 'ba3.pt'), **settings)
    assert torch.equal(again.norm_energies, pruning.norm_energies)
    for (name, mine), theirs in zip(resumed.named_parameters(), model.parameters()):
        assert torch.equal(mine, theirs), name
    report = export_checkpoint(
        tmp_path / 'whole' / 'ba8.pt', tmp_path / 'later', ExportSettings(allow_unconverged=True, progress=False)
    )
    assert report['logit_difference'] <= 1e-5
    for name in ('model.safetensors', 'config.json'):
        assert (tmp_path / 'later' / name).read_bytes() == (tmp_path / 'out' / name).read_bytes(), name


def test_a_run_without_evaluation_data_says_that_gains_stay_as_they_are(source, caplog):
    pruning = TargetedPruning({'hidden_size': 36}, warmup='1ba')
    tiny_trainer(source, [pruning], batches=1).fit()
    assert pruning.norm_energies is None and 'Gains of norms will not make up' in caplog.text


def test_energies_of_another_model_are_refused(source):
    config = AutoConfig.from_pretrained(source)
    pruning = TargetedPruning(TARGET)
    tiny_trainer(source, [pruning], batches=1)
    state = {**pruning.state_dict(), 'norm_energies': torch.ones(3, 48)}
    with pytest.raises(ValueError, match=r'norm_energies: got shape \(3, 48\), expected \(9, 48\)'):
        read_pruning_state(state, config)
    assert read_pruning_state({**state, 'norm_energies': None}, config).norm_energies is None
