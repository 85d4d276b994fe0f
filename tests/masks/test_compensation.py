"""Compensation: closed forms, every family's projections, and runs that use it."""

import pytest
import torch
from composer.loggers import InMemoryLogger

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.export.model_folder import open_strictly
from llmshearing.masks import compensation
from llmshearing.masks.compensation import Compensation, regress
from llmshearing.masks.energies import norm_energies
from llmshearing.masks.scores import Calibration
from llmshearing.models.cutting import CutPlan, flatten_masks
from llmshearing.models.roles import Linear, Norm, PerUnit, expert_of
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from llmshearing.models.units import AXES, mask_shapes
from llmshearing.planning.memory import TrainingSetup, estimate_memory
from tests.masks.test_energies import subtracts_mean
from tests.models.tiny import MIXTURES, VARIANTS, random_masks
from tests.tiny_run import sequences_spec, tiny_source, tiny_tokenizer, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
WIDTHS = tuple(axis for axis in AXES if axis != 'layer')


def model_of(tmp_path, variant='llama', **overrides):
    return ShearedCausalLM(tiny_tokenizer(), str(tiny_source(tmp_path / 'source', variant, **overrides))).eval()


def batch_of(sequences=12):
    return next(iter(sequences_spec(sequences, sequences, seed=3).dataloader))


def cut_with_compensation(model, masks, batch, tokens=10**6):
    """From all units to those of ``masks``."""
    model.cutter.set_masks({axis: torch.ones_like(mask) for axis, mask in masks.items()})
    watching = Compensation(model.cutter, masks, tokens)
    with torch.no_grad():
        model(batch)
    watching.stop()
    watching.apply(masks)
    model.cutter.set_masks(masks)


def test_regression_is_least_squares_when_there_is_much_to_see(monkeypatch):
    monkeypatch.setattr(compensation, 'RIDGE', 1e-6)
    torch.manual_seed(0)
    mixing = torch.randn(12, 12)
    x = torch.randn(4000, 12) @ mixing * torch.logspace(-0.5, 0.5, 12)
    stays = torch.zeros(12, dtype=torch.bool)
    stays[[0, 2, 3, 7, 9]] = True
    goes = ~stays
    goes[11] = False  # neither: padding
    want = torch.linalg.lstsq(x[:, stays].double(), x[:, goes].double()).solution.T
    torch.testing.assert_close(regress(x.T @ x, stays, goes, 4000).double(), want, rtol=2e-3, atol=1e-4)


def test_the_ridge_is_relative_to_the_mean_square_of_what_stays_and_falls_with_the_tokens():
    torch.manual_seed(1)
    x = torch.randn(50, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0])
    stays = torch.tensor([True, True, False, False])
    products = x.double().T @ x.double()
    ridge = compensation.RIDGE * 2 / 50 * products[:2, :2].trace() / 2
    want = (torch.linalg.inv(products[:2, :2] + ridge * torch.eye(2)) @ products[:2, 2:]).T
    torch.testing.assert_close(regress(x.T @ x, stays, ~stays, 50).double(), want, rtol=1e-4, atol=1e-6)


def test_an_input_that_hardly_moves_gets_no_large_weight():
    torch.manual_seed(2)
    lost = torch.randn(200, 1)
    x = torch.cat([torch.randn(200, 3), 1e-6 * lost, lost], 1)  # the fourth tells all, in a whisper
    stays = torch.tensor([True, True, True, True, False])
    assert regress(x.T @ x, stays, ~stays, 200).abs().max() < 1


def test_inputs_that_are_always_zero_are_given_to_nobody():
    x = torch.randn(30, 3)
    x[:, 1:] = 0
    stays = torch.tensor([True, True, False])
    assert torch.equal(regress(x.T @ x, stays, ~stays, 30), torch.zeros(1, 2))


REPEATED = [(variant, axis) for variant in VARIANTS for axis in ('intermediate', 'kv_group')]


# The dimensions of routed experts are not compensated.
@pytest.mark.parametrize(
    'variant, axis', [pair for pair in REPEATED if pair[0] not in MIXTURES or pair[1] != 'intermediate']
)
def test_a_unit_that_repeats_another_goes_without_a_trace(tmp_path, monkeypatch, variant, axis):
    monkeypatch.setattr(compensation, 'RIDGE', 1e-7)
    model = model_of(tmp_path, variant)
    shape, family = model.cutter.shape, model.cutter.family
    size = mask_shapes(shape)[axis]
    only = []
    for unit in (0, 1):  # the parameters of either, by the cut that leaves it alone
        mask = torch.zeros(size)
        mask[:, unit] = 1
        plan = CutPlan(family, shape, {axis: mask})
        only.append(dict(plan.cuts(flatten_masks({axis: mask}))))
    with torch.no_grad():
        for path, cut in only[0].items():
            side = getattr(cut, 'rows', None)
            written = isinstance(cut.role, Linear) and cut.role.rows not in (None, 'hidden')
            written |= isinstance(cut.role, PerUnit)
            if side is not None and (written or getattr(cut.role, 'axis', 'hidden') not in (None, 'hidden')):
                for parameter in model.model.get_submodule(path).parameters(recurse=False):
                    parameter[only[1][path].rows] = parameter[side]
    batch = batch_of()
    with torch.no_grad():
        want = model(batch).logits
        masks = {axis: torch.ones(size)}
        masks[axis][:, 1] = 0
        model.cutter.set_masks(masks)
        untouched = model(batch).logits
        cut_with_compensation(model, masks, batch)
        got = model(batch).logits
    # Norms over all heads (OLMo 2) see another mean of squares once a head is gone, so there it is only nearly equal.
    nearly = {'olmo2': 0.3, 'olmo3': 0.3, 'olmoe': 0.3, 'olmo_hybrid': 0.5}
    tolerance = nearly.get(variant, 1e-3) if axis == 'kv_group' else 1e-3
    error = (got - want).abs().max() / (untouched - want).abs().max()
    assert error < tolerance, error


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_projection_that_reads_lost_inputs_is_changed_by_the_formula_and_nothing_else(tmp_path, variant):
    model = model_of(tmp_path, variant)
    shape, family, batch = model.cutter.shape, model.cutter.family, batch_of()
    tied = model.model.config.tie_word_embeddings
    axes = tuple(axis for axis in mask_shapes(shape) if axis not in ('layer', 'head'))
    masks = {axis: (mask > 0).float() for axis, mask in random_masks(shape, axes, seed=4).items()}
    masks['kv_group'][:, 0] = 1
    cuts = dict(CutPlan(family, shape, masks).cuts(flatten_masks(masks)))
    inputs = {}
    handles = [
        model.model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: inputs.update({path: args[0].detach().flatten(0, -2)})
        )
        for path, cut in cuts.items()
        if isinstance(cut.role, (Linear, Norm)) and expert_of(cut.role) is None
    ]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    cut_with_compensation(model, masks, batch)
    after = model.model.state_dict()
    changed = set()
    embedding, final_norm = family.embedding_path, family.final_norm_path
    larger = (shape.hidden_size / int(masks['hidden'].sum())) ** 0.5 if family.scales_embedding else 1.0
    if larger > 1:
        torch.testing.assert_close(after[f'{embedding}.weight'], before[f'{embedding}.weight'] * larger)
        changed.add(f'{embedding}.weight')
    for path, cut in cuts.items():
        if path not in inputs:
            continue
        kept = cut.columns if isinstance(cut.role, Linear) else cut.rows
        if path == embedding or kept is None or (tied and path == family.head):
            continue
        if isinstance(cut.role, Linear) and cut.column_scale is not None:
            kept = kept[cut.column_scale != 0]
        x = inputs[path]
        if len(kept) == x.shape[-1] or len(kept) == 0:
            continue
        stays = torch.zeros(x.shape[-1], dtype=torch.bool)
        stays[kept] = True
        name = f'{path}.weight'
        if isinstance(cut.role, Linear):
            want = before[name].clone()
            want[:, stays] += before[name][:, ~stays] @ regress(x.T @ x, stays, ~stays, len(x))
        else:
            if subtracts_mean(model.model.get_submodule(path), x):
                x = x - x.mean(-1, keepdim=True)
            squares = x.square() / x.square().mean(-1, keepdim=True)
            factor = squares[:, stays].mean().sqrt() / (larger if tied and path == final_norm else 1)
            want = (before[name] + cut.role.offset) * factor - cut.role.offset
        torch.testing.assert_close(after[name], want, rtol=1e-3, atol=1e-4, msg=lambda m: f'{name}: {m}')
        assert not torch.equal(after[name], before[name]), name
        changed.add(name)
    assert len(changed) >= shape.num_hidden_layers * 3
    for name, value in after.items():
        if name not in changed and not (tied and name == f'{family.head}.weight'):
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize('variant', [name for name in VARIANTS if 'gemma' in name])
@pytest.mark.parametrize('tied', [True, False])
def test_dimensions_that_carry_nothing_go_without_a_trace_where_embeddings_follow_the_width(tmp_path, variant, tied):
    """In two steps: what enters the stream stays as large beside what layers add as it was."""
    model = model_of(tmp_path, variant, tie_word_embeddings=tied)
    family = model.cutter.family
    with torch.no_grad():
        for path, role, _ in family.modules(model.cutter.shape.num_hidden_layers):
            weight = model.model.get_parameter(f'{path}.weight')
            if path.endswith(family.embedding):
                weight[:, :12] = 0
            elif isinstance(role, Norm) and role.writes:
                weight[:12] = -role.offset
            elif isinstance(role, Linear) and role.rows == 'hidden':
                weight[:12] = 0
    batch = batch_of()
    with torch.no_grad():
        want = model(batch).logits
    model.cutter.norm_energies = norm_energies(Calibration(model.cutter, [batch]))
    masks = {'hidden': torch.ones(48)}
    for stop in (6, 12):
        model.cutter.set_masks(masks)
        watching = Compensation(model.cutter, masks)
        with torch.no_grad():
            model(batch)
        watching.stop()
        masks['hidden'][:stop] = 0
        watching.apply(masks)
        model.cutter.set_masks(masks)
        with torch.no_grad():
            torch.testing.assert_close(model(batch).logits, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())


def test_weights_of_lower_precision_are_changed_as_those_of_full_precision(tmp_path):
    weights = []
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of(tmp_path / str(dtype))
        model.to(dtype)
        masks = {'intermediate': torch.ones(4, 64)}
        masks['intermediate'][:, 20:] = 0
        cut_with_compensation(model, masks, batch_of())
        weights.append(model.model.model.layers[1].mlp.down_proj.weight)
    assert weights[1].dtype == torch.bfloat16
    torch.testing.assert_close(weights[1].float(), weights[0], rtol=0.1, atol=0.03)


def test_tokens_that_are_all_zeros_do_no_harm(tmp_path):
    """Such as padding's, which transformers embeds as zeros."""
    model, batch = model_of(tmp_path), batch_of()
    batch['input_ids'][:, -3:] = 0
    with torch.no_grad():
        model.model.get_input_embeddings().weight[0] = 0
    before = model.model.model.layers[0].input_layernorm.weight.clone()
    cut_with_compensation(model, {'hidden': (torch.arange(48) < 40).float()}, batch)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert not torch.equal(model.model.model.layers[0].input_layernorm.weight, before)


def test_only_so_many_tokens_are_looked_at(tmp_path):
    model, batch = model_of(tmp_path), batch_of()
    model.cutter.set_masks({'hidden': torch.ones(48)})
    watching = Compensation(model.cutter, ['hidden'], 40)
    with torch.no_grad():
        for _ in range(3):
            model(batch)
    assert set(watching._seen.values()) == {40}


def run(source, batches=10, **settings):
    """A run with compensation; returns trainer, algorithm and losses."""
    trainer_settings = {key: settings.pop(key) for key in list(settings) if key.startswith(('device', 'call'))}
    pruning = TargetedPruning(**{'target': TARGET, 'compensate': True, 'warmup': '0.5dur', **settings})
    log = InMemoryLogger()
    trainer = tiny_trainer(
        source, [pruning], batches=batches, loggers=[log], eval_dataloader=sequences_spec(8, 4), **trainer_settings
    )
    trainer.fit()
    return trainer, pruning, [value for _, value in log.data['loss/train/total']]


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'multiple_of': 16},
        {'mask_learning': 'one_shot', 'scores': 'activation'},
        {'mask_learning': 'one_shot', 'scores': 'activation', 'freeze_weights': True},
    ],
    ids=str,
)
def test_a_run_ends_at_the_target_exports_exactly_and_leaves_no_hooks(source, tmp_path, settings):
    trainer, pruning, _ = run(source, callbacks=[ExportPruned(str(tmp_path / 'out'))], **settings)
    model = trainer.state.model
    assert open_strictly(tmp_path / 'out').config.hidden_size == 36
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    plain = open_strictly(source)
    changed = {n for (n, p), q in zip(model.model.named_parameters(), plain.parameters()) if not torch.equal(p, q)}
    if settings.get('freeze_weights'):  # for the optimizer: what reads is changed, what writes is not
        assert changed and not any('embed_tokens' in name for name in changed)
    else:
        assert any('embed_tokens' in name for name in changed)


def test_micro_batches_do_not_matter(source):
    whole, parts = (run(source, device_train_microbatch_size=size)[2] for size in (4, 2))
    torch.testing.assert_close(torch.tensor(parts), torch.tensor(whole), rtol=1e-3, atol=1e-3)


def test_one_shot_keeps_the_units_of_its_scores_and_cuts_after_one_batch(source):
    settings = {'mask_learning': 'one_shot', 'scores': 'activation'}
    _, plain, _ = run(source, compensate=False, **settings)
    trainer, pruning, _ = run(source, **settings)
    for axis, mask in plain.frozen_masks.items():
        assert torch.equal(pruning.frozen_masks[axis], mask)


def test_the_model_is_left_under_the_masks_that_its_weights_are_meant_for(source):
    """Evaluations and other callbacks after a batch see both or neither."""
    pruning = TargetedPruning(TARGET, compensate=True, warmup='0.5dur')
    trainer = tiny_trainer(source, [pruning])
    trainer.fit(duration='3ba')
    installed = {axis: mask.clone() for axis, mask in trainer.state.model.cutter.masks.items()}
    assert installed['hidden'].sum() < 48
    for axis, mask in pruning.evaluation_masks().items():
        assert torch.equal(mask, installed[axis])


@pytest.mark.parametrize('settings', [{'mask_learning': 'lagrangian'}, {'fade': 0.3}, {'start_sparsity': 0.1}], ids=str)
def test_what_cannot_be_compensated_is_refused(settings):
    with pytest.raises(ValueError, match='compensate: true with .*use progressive or one_shot, fade: 0'):
        TargetedPruning(TARGET, compensate=True, **settings)


@pytest.mark.parametrize('variant', ['llama', 'llama-tied', 'olmo2', 'gpt_neox', 'phi3', 'gemma2'])
def test_the_plan_knows_what_the_sums_take(tmp_path, variant):
    model = model_of(tmp_path, variant)
    ones = {axis: torch.ones(size) for axis, size in mask_shapes(model.cutter.shape).items() if axis in WIDTHS}
    model.cutter.set_masks(ones)
    watching = Compensation(model.cutter, WIDTHS, 10)
    with torch.no_grad():
        model(batch_of())
    taken = sum(4 * total.numel() for total in watching._sums.values() if total.dim() == 2)
    setup = TrainingSetup(gpus=1, sharding='ddp', micro_batch=1, seq_len=16, precision='fp32')
    assert estimate_memory(model.model.config, setup, WIDTHS, compensate=True).compensation == taken
