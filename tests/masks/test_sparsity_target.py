"""A target that is a sparsity alone:
the constraint counts real parameters, widths differ, nothing pretends to export."""

import pytest
import torch
from composer.loggers import InMemoryLogger
from safetensors.torch import load_file

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.export.job import export_checkpoint
from llmshearing.export.settings import ExportSettings
from llmshearing.masks.constraints import SparsityConstraint, overall_sparsity
from llmshearing.masks.sparsity_target import read_sparsity_target
from llmshearing.masks.widths import describe_widths, layer_widths
from llmshearing.models.cutting import CutPlan, flatten_masks
from llmshearing.models.families import family_of
from llmshearing.models.roles import Linear
from llmshearing.models.shapes import ModelShape, shape_of
from llmshearing.models.units import mask_shapes
from tests.models.tiny import tiny_model
from tests.tiny_run import sequences_spec, tiny_source, tiny_trainer

MHA, GQA = ModelShape(4, 48, 6, 6, 64, 8), ModelShape(4, 48, 6, 2, 64, 8)


def _projection_weights(model, masks):
    """Weights of the layers' projections that the cut leaves, counted tensor by tensor."""
    family, shape, count = family_of(model.config), shape_of(model.config), 0
    for path, cut in CutPlan(family, shape, masks).cuts(flatten_masks(masks)):
        if isinstance(cut.role, Linear) and '.layers.' in path:
            count += cut.parameters({'weight': model.get_submodule(path).weight})['weight'].numel()
    return count


@pytest.mark.parametrize('variant', ['llama-mha', 'llama'])
def test_the_expected_sparsity_of_binary_masks_is_the_share_that_is_cut(variant):
    model = tiny_model(variant)
    shape, generator = shape_of(model.config), torch.Generator().manual_seed(0)
    masks = {axis: (torch.rand(size, generator=generator) > 0.3).float() for axis, size in mask_shapes(shape).items()}
    masks['layer'] = torch.ones(shape.num_hidden_layers)
    masks['layer'][1] = 0
    if shape.group_size == 1:
        del masks['kv_group']
    else:  # all groups of a layer keep equally many heads, so that the cut pads none
        masks['head'] = torch.tensor([[1.0, 1.0, 0.0] * shape.num_key_value_heads] * shape.num_hidden_layers)
    everything = _projection_weights(model, {})
    share = 1 - _projection_weights(model, masks) / everything
    assert overall_sparsity(masks, shape) == pytest.approx(share, abs=1e-6)
    assert SparsityConstraint(shape, 0.5).sparsity(masks).tolist() == pytest.approx([share], abs=1e-6)


def test_widths_count_kept_units_and_no_padding():
    masks = {
        'layer': torch.tensor([1.0, 0.0, 1.0, 1.0]),
        'head': torch.tensor([[1.0, 1, 1, 1, 0, 0]] * 3 + [[0.0] * 6]),  # groups of three and one: two are padding
        'intermediate': torch.cat([torch.ones(4, 10), torch.zeros(4, 54)], 1),
    }
    widths = layer_widths(masks, GQA)
    assert [width[:3] for width in widths] == [(2, 4, 10), (0, 0, 0), (2, 4, 10), (0, 0, 10)]  # KV heads first
    assert describe_widths(widths).splitlines()[1].split() == ['0', '4', '2', '10']


def test_a_run_reaches_its_sparsity_with_widths_of_its_own_and_leaves_only_its_masks(tmp_path):
    source = tiny_source(tmp_path / 'source')
    pruning, log = TargetedPruning({'sparsity': 0.6}, mask_learning='lagrangian'), InMemoryLogger()
    trainer = tiny_trainer(
        source,
        [pruning],
        batches=300,
        loggers=[log],
        eval_dataloader=sequences_spec(8, 4, seed=1),
        eval_interval='300ba',
        save_folder=str(tmp_path / 'checkpoints'),
        save_filename='last.pt',
        save_interval='300ba',
    )
    trainer.fit()
    assert log.data['pruning/expected_sparsity'][-1][1] == pytest.approx(0.6, abs=0.02)
    assert log.data['pruning/sparsity/target'][-1][1] == pytest.approx(0.6)
    widths = layer_widths(pruning.final_masks(), pruning.source)
    assert len({(w.heads, w.intermediate) for w in widths}) > 1
    for layer, w in enumerate(widths):
        assert log.data[f'pruning/widths/layer_{layer:02d}/intermediate'][-1][1] == w.intermediate
    counted = {axis: (mask != 0).float() for axis, mask in pruning.final_masks().items()}
    assert overall_sparsity(counted, pruning.source) == pytest.approx(0.6, abs=0.06)  # whole units
    cross_entropy = float(trainer.state.eval_metrics['eval']['LanguageCrossEntropy'].compute())
    assert 0 < cross_entropy < 5
    trainer.close()
    checkpoint = tmp_path / 'checkpoints' / 'last.pt'
    for masks in ('target', 'current'):
        with pytest.raises(
            ValueError, match="60.0% of the layers' parameters removed: a run whose target is a sparsity"
        ):
            export_checkpoint(checkpoint, tmp_path / 'out', ExportSettings(masks=masks, progress=False))
    assert not (tmp_path / 'out').exists()
    export_checkpoint(checkpoint, tmp_path / 'study', ExportSettings(masks='keep', progress=False))
    kept = load_file(tmp_path / 'study' / 'masks' / 'masks.safetensors')
    assert torch.equal(kept['current.intermediate'], pruning.final_masks()['intermediate'])


def test_axes_can_be_chosen():
    target = read_sparsity_target({'sparsity': 0.5, 'axes': ['intermediate', 'head']}, MHA)
    assert target.axes == ('head', 'intermediate')
    assert read_sparsity_target({'sparsity': 0.5}, MHA).axes == ('hidden', 'layer', 'head', 'intermediate')
    assert 'kv_group' in read_sparsity_target({'sparsity': 0.5}, GQA).axes
    assert read_sparsity_target({'hidden_size': 32}, MHA) is None


@pytest.mark.parametrize(
    'target, message',
    [
        ({'sparsity': 1.0}, 'sparsity=1.0: must be a number above 0 and below 1'),
        ({'sparsity': '60%'}, "sparsity='60%': must be"),
        ({'sparsity': 0.5, 'hidden_size': 32}, "'hidden_size' cannot stand beside sparsity"),
        (
            {'sparsity': 0.5, 'axes': ['kv_group']},
            r"axes=\['kv_group'\]: must be a list of one or more of hidden, layer, head",
        ),
        ({'sparsity': 0.5, 'axes': 'head'}, "axes='head': must be a list"),
    ],
)
def test_impossible_sparsities(target, message):
    with pytest.raises(ValueError, match=message):
        read_sparsity_target(target, MHA)


def test_what_cannot_be_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match='only learned masks find widths of their own'):
        TargetedPruning({'sparsity': 0.5}, mask_learning='progressive')
    with pytest.raises(ValueError, match='eval_masks: target is not possible'):
        TargetedPruning({'sparsity': 0.5}, eval_masks='target', mask_learning='lagrangian')
    source = tiny_source(tmp_path / 'source')
    pruning = TargetedPruning({'sparsity': 0.5}, mask_learning='lagrangian')
    trainer = tiny_trainer(source, [pruning], callbacks=[ExportPruned(str(tmp_path / 'out'))])
    with pytest.raises(ValueError, match='layers of different widths, which no stock Hugging Face config describes'):
        trainer.fit()
    assert trainer.state.timestamp.batch.value == 0 and not (tmp_path / 'out').exists()
