"""Scores against plain computations, starts in their order, and one-shot pruning for every family's table."""

import dataclasses
import json
import shutil

import pytest
import torch
from composer.core import Evaluator
from torch.utils.data import DataLoader
from transformers import AutoConfig

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.algorithms.targeted_pruning.calibration import calibrate, calibration_batches
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.masks.axes import AxisPlan, finalize_masks, plan_axes
from llmshearing.masks.lagrangian import LagrangianMasks
from llmshearing.masks.learner import LearnerSettings, mask_learners
from llmshearing.masks.progressive import ProgressiveMasks, random_order
from llmshearing.masks.scores import Calibration, method_by_axis, score_units, scoring_methods
from llmshearing.models.cuttable import Cutter
from llmshearing.models.gains import stream_norms
from llmshearing.models.shapes import resolve_target, shape_of
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.models.reference import masked_llama_logits
from tests.models.tiny import VARIANTS, tiny_model
from tests.tiny_run import Sequences, sequences_spec, tiny_tokenizer, tiny_trainer

AXES = ('hidden', 'layer', 'head', 'kv_group', 'intermediate')
TARGET = {'num_hidden_layers': 2, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}


@pytest.fixture(scope='module')
def calibration(source):
    model = ShearedCausalLM(tiny_tokenizer(), str(source)).eval()
    batches = list(sequences_spec(12, 4, seed=5).dataloader)
    return Calibration(model.cutter, batches, seed=1)


def loss(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_taylor_is_the_mean_absolute_derivative_of_multiplied_activations(calibration):
    got = score_units(dict.fromkeys(AXES, 'taylor'), calibration)
    assert all(parameter.grad is None for parameter in calibration.cutter.model.parameters())
    want = {axis: torch.zeros_like(score) for axis, score in got.items()}
    for batch in calibration.batches:
        masks = {axis: torch.ones_like(score, requires_grad=True) for axis, score in got.items()}
        loss(masked_llama_logits(calibration.cutter.model, batch['input_ids'], masks), batch['input_ids']).backward()
        for axis, mask in masks.items():
            want[axis] += mask.grad.abs() / len(calibration.batches)
    for axis in AXES:
        torch.testing.assert_close(got[axis], want[axis], rtol=1e-3, atol=1e-5 * want[axis].max().item())


def test_by_position_the_first_units_stay(calibration):
    got = score_units(dict.fromkeys(AXES, 'position'), calibration)
    shape = calibration.cutter.shape
    kept = finalize_masks(plan_axes(shape, resolve_target(shape, TARGET)), got)
    for axis in ('hidden', 'layer', 'kv_group', 'intermediate'):
        rows = kept[axis].view(-1, kept[axis].shape[-1])
        count = int(rows[0].sum())
        assert 0 < count < rows.shape[1], axis
        assert (rows[:, :count] == 1).all() and (rows[:, count:] == 0).all(), axis


def test_taylor_does_not_depend_on_the_size_of_micro_batches(calibration):
    batches = [{**batch, 'labels': batch['labels'].clone()} for batch in calibration.batches]
    for number, batch in enumerate(batches):
        batch['labels'][0, : 3 + number] = -100  # micro-batches count by their labels, not by their sequences
    whole, parts = (
        score_units(dict.fromkeys(AXES, 'taylor'), dataclasses.replace(calibration, batches=batches, microbatch_size=s))
        for s in (None, 1)
    )
    for axis in AXES:
        torch.testing.assert_close(parts[axis], whole[axis], rtol=1e-3, atol=1e-5 * whole[axis].max().item())


def test_taylor_runs_as_many_sequences_at_once_as_training_does(source, monkeypatch):
    seen, loss = [], Calibration.loss_of

    def watched(self, batch):
        seen.append(len(batch['input_ids']))
        return loss(self, batch)

    monkeypatch.setattr(Calibration, 'loss_of', watched)
    tiny_trainer(
        source,
        TargetedPruning(target=TARGET, scores='taylor', calibration_batches=2),
        batches=1,
        device_train_microbatch_size=1,
        eval_dataloader=sequences_spec(8, 4, seed=5),
    ).fit()
    assert seen == [1] * 16  # eight for the scores, eight for what gains follow


def test_magnitude_of_units_of_each_axis(calibration):
    got = score_units(dict.fromkeys(AXES, 'magnitude'), calibration)
    layer = calibration.cutter.model.model.layers[1]
    rows = slice(8, 16)  # head 1 of 8 dimensions
    head = torch.cat([layer.self_attn.q_proj.weight[rows].flatten(), layer.self_attn.o_proj.weight[:, rows].flatten()])
    torch.testing.assert_close(got['head'][1, 1], head.square().mean().sqrt())
    unit = torch.cat([layer.mlp.gate_proj.weight[3], layer.mlp.up_proj.weight[3], layer.mlp.down_proj.weight[:, 3]])
    torch.testing.assert_close(got['intermediate'][1, 3], unit.square().mean().sqrt())
    attention = layer.self_attn
    group = [
        attention.k_proj.weight[8:16],
        attention.v_proj.weight[8:16],
        attention.q_proj.weight[24:48],
        attention.o_proj.weight[:, 24:48],
    ]
    torch.testing.assert_close(got['kv_group'][1, 1], torch.cat([w.flatten() for w in group]).square().mean().sqrt())
    whole = torch.cat([parameter.flatten() for parameter in layer.parameters()])
    torch.testing.assert_close(got['layer'][1], whole.square().mean().sqrt())


def test_activation_of_intermediate_units(calibration):
    got = score_units({'intermediate': 'activation'}, calibration)['intermediate']
    layer, seen = calibration.cutter.model.model.layers[2], []
    handle = layer.mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in calibration.batches:
            calibration.cutter.model(**batch)
    handle.remove()
    want = torch.stack([x.square().mean((0, 1)) for x in seen]).mean(0).sqrt()
    torch.testing.assert_close(got[2], want)


@pytest.mark.parametrize('variant', VARIANTS)
def test_activation_of_hidden_dimensions_looks_at_all_that_reads_the_stream(variant):
    """With gains of one the mean square of each place is one, so that of the scores counts the places."""
    model = tiny_model(variant)
    cutter = Cutter(model)
    for path, role in stream_norms(cutter.family, 4).items():
        torch.nn.init.constant_(model.get_parameter(f'{path}.weight'), 1 - role.offset)
        if cutter.family.subtracts_mean and path + '.bias' in dict(model.named_parameters()):
            torch.nn.init.zeros_(model.get_parameter(f'{path}.bias'))
    ids = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(1))
    calibration = Calibration(cutter, [{'input_ids': ids, 'labels': ids}])
    scores = score_units({'hidden': 'activation'}, calibration)['hidden']
    assert scores.square().mean().item() == pytest.approx(1 + 4 * (1 if variant == 'cohere2' else 2), rel=0.02)


def test_activation_of_hidden_dimensions_is_the_size_of_what_norms_give(calibration):
    got, model = score_units({'hidden': 'activation'}, calibration)['hidden'], calibration.cutter.model.model
    seen = []
    norms = [norm for layer in model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    handles = [
        norm.register_forward_hook(lambda _, __, out: seen.append(out.square().mean((0, 1))))
        for norm in (*norms, model.norm)
    ]
    with torch.no_grad():
        for batch in calibration.batches:
            calibration.cutter.model(**batch)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(got, (sum(seen) / len(calibration.batches)).sqrt(), rtol=1e-6, atol=0)


def test_perplexity_and_block_importance_of_layers(calibration):
    drop = score_units({'layer': 'perplexity'}, calibration)['layer']
    mask = torch.ones(4)
    mask[1] = 0
    with torch.no_grad():
        differences = [
            loss(masked_llama_logits(calibration.cutter.model, b['input_ids'], {'layer': mask}), b['input_ids'])
            - loss(masked_llama_logits(calibration.cutter.model, b['input_ids'], {}), b['input_ids'])
            for b in calibration.batches
        ]
    torch.testing.assert_close(drop[1], torch.stack(differences).mean(), rtol=1e-3, atol=1e-5)
    change = score_units({'layer': 'block_importance'}, calibration)['layer']
    assert change.shape == (4,) and (change > 0).all() and len(change.unique()) == 4


@pytest.mark.parametrize('learner', [LagrangianMasks, ProgressiveMasks])
def test_learned_masks_start_in_the_order_of_the_scores(source, learner):
    shape = shape_of(AutoConfig.from_pretrained(source))
    plans = plan_axes(shape, resolve_target(shape, TARGET))
    masks = learner(plans, LearnerSettings(seed=3))
    generator = torch.Generator().manual_seed(5)
    scores = {axis: torch.rand(plan.mask_shape, generator=generator) for axis, plan in plans.items()}
    masks.start_from(scores)
    for axis, plan in plans.items():
        got, want = plan.rows(masks.scores()[axis]), plan.rows(scores[axis])
        assert torch.equal(got.argsort(dim=1), want.argsort(dim=1)), axis
        assert learner is ProgressiveMasks or len(got.flatten().unique()) == got.numel()


def test_scores_are_the_first_value_of_progressive_means():
    plans = {'layer': AxisPlan('layer', (12,), units=12, keep=10)}
    masks = ProgressiveMasks(plans, LearnerSettings(seed=3))
    scores = torch.linspace(1, 2, 12)
    gradient = -torch.linspace(2, 1, 12) * 1e-6  # on another scale, and the other way round
    masks.start_from({'layer': scores * 1e3})
    masks.update({'layer': gradient}, 0.0, 1.0)
    torch.testing.assert_close(masks.scores()['layer'], 0.9 * scores / 1.5 + 0.1 * scores.flip(0) / 1.5)
    # One such batch does not outvote the scores.
    assert (masks.draw(1, 1.0)['layer'] == 0).nonzero().flatten().tolist() == [0, 1]
    for batch in range(2, 40):
        masks.update({'layer': gradient}, 1.0, 1.0)
    assert (masks.draw(40, 1.0)['layer'] == 0).nonzero().flatten().tolist() == [0, 1]  # who has gone stays away
    # Scores below zero keep their order.
    masks = ProgressiveMasks(plans, LearnerSettings(seed=3))
    masks.start_from({'layer': scores - 1.9})
    assert (masks.draw(0, 1.0)['layer'] == 0).nonzero().flatten().tolist() == [0, 1]


def test_scored_hidden_dimensions_go_in_that_order_whatever_gradients_say():
    plans = {'hidden': AxisPlan('hidden', (12,), units=12, keep=10)}
    gradient = {'hidden': torch.linspace(2, 1, 12)}

    def gone(masks, updates=40):
        for _ in range(updates):
            masks.update(gradient, 0.0, 1.0)
        return (masks.draw(updates, 1.0)['hidden'] == 0).nonzero().flatten().tolist()

    def scored():
        masks = ProgressiveMasks(plans, LearnerSettings(seed=3))
        masks.start_from({'hidden': torch.linspace(1, 2, 12)})
        return masks

    def resumed(state):
        masks = ProgressiveMasks(plans, LearnerSettings(seed=3))
        masks.load_state_dict(state)
        return masks

    state = scored().state_dict()
    before = {key: value for key, value in state.items() if key != 'hidden_is_settled'}  # of an earlier version
    assert gone(scored()) == gone(resumed(state)) == [0, 1]
    assert gone(ProgressiveMasks(plans, LearnerSettings(seed=3))) == gone(resumed(before)) == [10, 11]


@pytest.mark.parametrize('method', scoring_methods.get_all())
def test_one_shot_reaches_the_target_exactly(source, tmp_path, method):
    pruning = TargetedPruning(TARGET, mask_learning='one_shot', scores=method, calibration_batches=2)
    export = ExportPruned(str(tmp_path / 'out'))
    trainer = tiny_trainer(source, [pruning], batches=3, eval_dataloader=sequences_spec(8, 4), callbacks=[export])
    trainer.fit()
    config = AutoConfig.from_pretrained(tmp_path / 'out')
    assert (config.num_hidden_layers, config.hidden_size) == (2, 36)
    assert (config.num_attention_heads, config.intermediate_size) == (3, 40)


def test_units_are_scored_as_recommended_unless_the_run_says_otherwise(source):
    def start(**settings):
        pruning = TargetedPruning(TARGET, calibration_batches=2, **settings)
        trainer = tiny_trainer(source, [pruning], batches=1, eval_dataloader=sequences_spec(8, 4))
        calibrate(pruning, trainer.state, trainer.state.model, pruning.settings)
        return pruning.learner.scores()

    recommended = {**dict.fromkeys(('hidden', 'head', 'intermediate'), 'activation'), 'layer': 'block_importance'}
    for learner in mask_learners.get_all():
        default, named = start(mask_learning=learner), start(mask_learning=learner, scores=recommended)
        assert all(torch.equal(scores, named[axis]) for axis, scores in default.items()), learner
    shape = shape_of(AutoConfig.from_pretrained(source))
    unscored = random_order(plan_axes(shape, resolve_target(shape, TARGET)), LearnerSettings().seed)
    assert all(torch.equal(scores, unscored[axis]) for axis, scores in start(scores=None).items())


@pytest.mark.parametrize('learned', [None, {'steps': 30}])
def test_hidden_dimensions_of_a_learned_basis_go_by_position(source, tmp_path, learned):
    rotated = shutil.copytree(source, tmp_path / 'rotated')
    (rotated / 'rotation.json').write_text(json.dumps({'learned': learned}))

    def start(source, **settings):
        pruning = TargetedPruning(TARGET, mask_learning='one_shot', calibration_batches=2, **settings)
        trainer = tiny_trainer(source, [pruning], batches=1, eval_dataloader=sequences_spec(8, 4))
        calibrate(pruning, trainer.state, trainer.state.model, pruning.settings)
        return pruning.learner.scores()

    want = start(source, scores={'hidden': 'position'} if learned else 'recommended')
    for settings in ({}, {'scores': {'layer': 'block_importance'}}):
        got = start(rotated, **settings)
        assert all(torch.equal(scores, want[axis]) for axis, scores in got.items())
    asked = start(rotated, scores={'hidden': 'activation'})['hidden']
    assert torch.equal(asked, want['hidden']) != bool(learned)


def test_without_evaluation_data_units_start_in_random_order_and_the_log_says_so(source, caplog):
    pruning = TargetedPruning({'num_hidden_layers': 2}, warmup='1ba')
    tiny_trainer(source, [pruning], batches=1).fit()
    assert 'Units go in random order until gradients tell: units are scored on evaluation batches' in caplog.text
    with pytest.raises(ValueError, match='the run needs an eval_loader'):
        tiny_trainer(source, [TargetedPruning(TARGET, mask_learning='one_shot')], batches=1).fit()
    with pytest.raises(ValueError, match='the run needs an eval_loader'):
        tiny_trainer(source, [TargetedPruning(TARGET, scores='taylor')], batches=1).fit()


def test_methods_are_checked(source):
    with pytest.raises(ValueError, match='one_shot decides by scores'):
        TargetedPruning(TARGET, mask_learning='one_shot', scores=None)
    with pytest.raises(ValueError, match="unknown method 'magic'; choose one of recommended, taylor"):
        TargetedPruning(TARGET, scores='magic', mask_learning='lagrangian')
    with pytest.raises(ValueError, match='perplexity does not apply to hidden; it applies to layer'):
        TargetedPruning(TARGET, scores={'hidden': 'perplexity'}, mask_learning='lagrangian')
    plans = {'hidden': None, 'layer': None}
    assert method_by_axis('perplexity', plans) == {'hidden': 'activation', 'layer': 'perplexity'}
    assert method_by_axis({'layer': 'random'}, plans) == {'hidden': 'activation', 'layer': 'random'}
    heads = {'head': 'magnitude'}  # a target in groups of heads: those go by the best measured, not by the worst
    assert method_by_axis(heads, {'kv_group': None}) == {'kv_group': 'activation'}
    trainer = tiny_trainer(source, [TargetedPruning(TARGET, scores='taylor', mask_learning='lagrangian')], batches=2)
    with pytest.raises(ValueError, match='needs an eval_loader'):
        trainer.fit()


class Questions(Sequences):
    """What a task of in-context learning serves: no labels to compute a loss from."""

    def __getitem__(self, index):
        return {'input_ids': super().__getitem__(index)['input_ids'], 'mode': 'icl_task'}


def test_scores_are_computed_from_evaluators_of_language_modelling_only(source):

    def evaluators(*wanted):
        made = {
            'task': Evaluator(
                label='task', dataloader=DataLoader(Questions(8), 4), metric_names=['InContextLearningLMAccuracy']
            ),
            'unlabelled': Evaluator(
                label='unlabelled', dataloader=DataLoader(Questions(8), 4), metric_names=['LanguageCrossEntropy']
            ),
            'a': Evaluator(label='a', dataloader=sequences_spec(8, 4, seed=1), metric_names=['LanguageCrossEntropy']),
            'b': Evaluator(label='b', dataloader=sequences_spec(4, 4, seed=2), metric_names=['LanguagePerplexity']),
        }
        return [made[name] for name in wanted]

    def state_of(*wanted):
        return tiny_trainer(source, [], eval_dataloader=evaluators(*wanted), eval_interval='100ba').state

    first, second = Sequences(8, seed=1).ids, Sequences(4, seed=2).ids
    batches = calibration_batches(state_of('task', 'a', 'b'), 8)
    for batch, ids in zip(batches, (first[:4], second, first[4:]), strict=True):
        assert torch.equal(batch['input_ids'], ids) and torch.equal(batch['labels'], ids)
    assert len(calibration_batches(state_of('task', 'a', 'b'), 1)) == 1
    with pytest.raises(ValueError, match=r"include LanguageCrossEntropy or LanguagePerplexity.*are \['task'\]"):
        calibration_batches(state_of('task'), 8)
    with pytest.raises(ValueError, match="evaluator 'unlabelled' have no labels; leave it out"):
        calibration_batches(state_of('a', 'unlabelled'), 8)
