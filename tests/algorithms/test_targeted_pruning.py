"""Whole pruning runs of a tiny model through Composer's Trainer."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from composer.loggers import InMemoryLogger
from transformers import AutoConfig

from llmshearing.algorithms import targeted_pruning
from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.export.model_folder import open_strictly
from llmshearing.masks.axes import plan_axes
from llmshearing.masks.lagrangian import LagrangianMasks
from llmshearing.masks.learner import LearnerSettings
from llmshearing.models.shapes import ModelShape, resolve_target
from tests.tiny_run import sequences_spec, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
SHAPE = ModelShape(4, 48, 6, 2, 64, 8)


@pytest.mark.parametrize('mask_learning, batches', [('lagrangian', 400), ('progressive', 40)])
def test_every_axis_reaches_its_target_and_the_export_is_exact(source, tmp_path, mask_learning, batches):
    pruning = TargetedPruning(TARGET, mask_learning=mask_learning, tolerance=0.02)
    export = ExportPruned(str(tmp_path / 'out'))
    log = InMemoryLogger()
    trainer = tiny_trainer(source, [pruning], batches=batches, callbacks=[export], loggers=[log])
    trainer.fit()
    for report in pruning.reports():
        assert report.expected == pytest.approx(report.target, rel=0.02), report.describe()
    config = AutoConfig.from_pretrained(tmp_path / 'out')
    got = (
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.intermediate_size,
        config.head_dim,
    )
    assert got == (3, 36, 3, 1, 40, 8)
    assert log.data['export/logit_difference'][-1][1] <= 1e-5
    model = open_strictly(tmp_path / 'out')
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in type(model)(config).parameters())
    assert not list(tmp_path.glob('.out*'))
    losses = [value for _, value in log.data['loss/train/total']]
    assert sum(losses[-5:]) < sum(losses[:5])  # it trained while it pruned


def test_an_unconverged_run_is_refused_unless_allowed(source, tmp_path):
    pruning = TargetedPruning(TARGET, learning_rate=1e-3, mask_learning='lagrangian')
    trainer = tiny_trainer(source, [pruning], batches=3, callbacks=[ExportPruned(str(tmp_path / 'out'))])
    with pytest.raises(ValueError, match=r'hidden: target 36 of 48, expected 47\.\d+.*\n.*layer: target 3 of 4'):
        trainer.fit()
    assert not list(tmp_path.iterdir())
    pruning = TargetedPruning(TARGET, learning_rate=1e-3, mask_learning='lagrangian')
    export = ExportPruned(str(tmp_path / 'out'), allow_unconverged=True)
    tiny_trainer(source, [pruning], batches=3, callbacks=[export]).fit()
    assert AutoConfig.from_pretrained(tmp_path / 'out').hidden_size == 36


def test_an_existing_folder_is_refused_before_the_first_step(source, tmp_path):
    (tmp_path / 'out').mkdir()
    trainer = tiny_trainer(source, [TargetedPruning(TARGET)], callbacks=[ExportPruned(str(tmp_path / 'out'))])
    with pytest.raises(ValueError, match='exists already'):
        trainer.fit()
    assert trainer.state.timestamp.batch.value == 0


def test_frozen_masks_stay_and_weights_go_on(source):
    pruning = TargetedPruning(TARGET, mask_learning='progressive', warmup='5ba', freeze_masks_after='10ba')
    trainer = tiny_trainer(source, [pruning], batches=20)
    trainer.fit(duration='11ba')
    frozen = {axis: mask.clone() for axis, mask in pruning.frozen_masks.items()}
    weight = trainer.state.model.model.model.norm.weight.detach().clone()
    trainer.fit(duration='5ba')
    assert all(torch.equal(mask, frozen[axis]) for axis, mask in pruning.final_masks().items())
    assert not torch.equal(weight, trainer.state.model.model.model.norm.weight)


def readme_settings():
    """Settings of ``targeted_pruning`` in every YAML block of its README."""
    text = Path(targeted_pruning.__file__).with_name('README.md').read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r'```yaml\n(.*?)```', text, re.DOTALL)]
    return [block['algorithms']['targeted_pruning'] for block in blocks]


def test_the_recipe_of_the_readme_freezes_the_target_in_one_run(source, tmp_path):
    paper, recipe = readme_settings()
    TargetedPruning(**paper)
    pruning = TargetedPruning(**{**recipe, 'target': TARGET})
    export = ExportPruned(str(tmp_path / 'out'))
    tiny_trainer(source, [pruning], batches=20, eval_dataloader=sequences_spec(8, 4), callbacks=[export]).fit()
    assert AutoConfig.from_pretrained(tmp_path / 'out').hidden_size == TARGET['hidden_size']
    assert recipe['warmup'] == recipe['freeze_masks_after'] == '0.2dur'
    kept = {axis: int((mask.reshape(-1, mask.shape[-1])[0] != 0).sum()) for axis, mask in pruning.frozen_masks.items()}
    assert kept == {report.axis: report.target for report in pruning.reports()}


def test_mask_only_mode_leaves_the_weights_alone(source):
    pruning = TargetedPruning(TARGET, freeze_weights=True, mask_learning='lagrangian')
    trainer = tiny_trainer(source, [pruning], batches=6)
    before = {name: p.detach().clone() for name, p in trainer.state.model.named_parameters()}
    start = pruning.learner.log_alpha['hidden'].detach().clone()
    trainer.fit()
    assert all(torch.equal(p, before[name]) for name, p in trainer.state.model.named_parameters())
    assert not torch.equal(start, pruning.learner.log_alpha['hidden'])


def test_the_same_seed_gives_the_same_run_and_micro_batches_do_not_matter(source):
    losses = []
    for seed, micro in ((1, 4), (1, 4), (1, 2), (2, 4)):
        log = InMemoryLogger()
        pruning = TargetedPruning(TARGET, seed=seed, mask_learning='lagrangian')
        tiny_trainer(source, [pruning], batches=6, loggers=[log], device_train_microbatch_size=micro).fit()
        losses.append(torch.tensor([value for _, value in log.data['loss/train/total']]))
    assert torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(losses[0], losses[3], rtol=1e-4)


def test_evaluation_uses_masks_without_noise(source):
    pruning = TargetedPruning(TARGET, eval_masks='target', mask_learning='lagrangian')
    plans = plan_axes(SHAPE, resolve_target(SHAPE, TARGET))
    trainer = tiny_trainer(source, [pruning], batches=2)
    trainer.fit()
    masks = pruning.evaluation_masks()
    assert {axis: set((plans[axis].rows(mask) != 0).sum(1).tolist()) for axis, mask in masks.items()} == {
        'hidden': {36},
        'layer': {3},
        'kv_group': {1},
        'intermediate': {40},
    }


def test_masks_start_nearly_open_and_all_different():
    plans = plan_axes(SHAPE, resolve_target(SHAPE, TARGET))
    learner = LagrangianMasks(plans, LearnerSettings(seed=3))
    for axis, kept in learner.expected_kept().items():
        assert kept.min() > 0.99
        assert len(kept.unique()) == kept.numel() or axis == 'intermediate'
        assert len(learner.log_alpha[axis].detach().unique()) == kept.numel()


def test_log_alpha_is_clamped_and_stays_clamped():
    plans = plan_axes(SHAPE, resolve_target(SHAPE, TARGET))
    learner = LagrangianMasks(plans, LearnerSettings(learning_rate=50.0, seed=3))
    for batch in range(3):
        learner.draw(batch, 0.0)
        learner.update({axis: torch.randn(plan.mask_shape) for axis, plan in plans.items()}, 0.0, 1.0)
        for value in learner.log_alpha.values():
            assert value.min() >= -4.6052 and value.max() <= 4.6052


@pytest.mark.parametrize(
    'settings, message',
    [({'target': {'hidden_size': 64}}, 'larger than the source'), ({'target': {}}, 'nothing to prune')],
)
def test_targets_are_checked_before_the_first_step(source, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(source, [TargetedPruning(**settings)])


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'mask_learning': 'magic'}, "mask_learning: expected one of lagrangian, progressive, .*got 'magic'"),
        ({'eval_masks': 'soft'}, "eval_masks: expected one of .*, got 'soft'"),
        ({'start_sparsity': 1.5}, 'start_sparsity: expected a number of at least 0 and at most .*, got 1.5'),
        ({'learning_rate': '1'}, "learning_rate: expected a number .*, got '1'"),
    ],
)
def test_settings_are_checked_in_the_constructor(settings, message):
    with pytest.raises(ValueError, match=message):
        TargetedPruning(TARGET, **settings)


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_mask(source):
    pruning = TargetedPruning(TARGET, mask_learning='lagrangian')
    trainer = tiny_trainer(source, [pruning], batches=3)
    with torch.no_grad():
        trainer.state.model.model.model.layers[0].mlp.down_proj.weight[0, 0] = float('nan')
    with pytest.raises(FloatingPointError, match='batch 0: the gradient of the .*mask is not finite'):
        trainer.fit()


def test_damping_keeps_the_counts_from_overshooting(source):
    deviation = {}
    for damping in (0.0, 20.0):
        pruning = TargetedPruning(TARGET, multiplier_damping=damping, mask_learning='lagrangian')
        log = InMemoryLogger()
        tiny_trainer(source, [pruning], batches=200, loggers=[log]).fit()
        gaps = [
            abs(float(expected) - float(target)) / report.target
            for report in pruning.reports()
            for (_, expected), (_, target) in zip(
                log.data[f'pruning/{report.axis}/expected'][40:], log.data[f'pruning/{report.axis}/target'][40:]
            )
        ]
        deviation[damping] = sum(gaps) / len(gaps)
    assert deviation[20.0] < 0.8 * deviation[0.0], deviation
