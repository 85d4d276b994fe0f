"""A cut is ``mask_learning: one_shot`` to the bit: masks, weights and folder."""

import pytest
import torch
from safetensors.torch import load_file

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.cut.one_shot import prune_in_one_shot
from llmshearing.export.model import export_model
from llmshearing.export.model_folder import open_strictly
from llmshearing.masks.scores import Calibration
from llmshearing.models.cuttable import Cutter
from llmshearing.models.targets import target_shape
from tests.tiny_run import sequences_spec, tiny_source, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
SCORES = {'layer': 'block_importance', 'hidden': 'activation', 'kv_group': 'activation', 'intermediate': 'activation'}


@pytest.mark.parametrize('variant', ['llama', 'llama-tied', 'gemma2'])
@pytest.mark.parametrize('scores', [SCORES, 'taylor', 'magnitude'], ids=['activation', 'taylor', 'magnitude'])
def test_a_cut_is_what_a_run_of_one_shot_exports(tmp_path, variant, scores):
    target = TARGET if variant != 'gemma2' else {**TARGET, 'num_hidden_layers': 2}
    source = tiny_source(tmp_path / 'source', variant)
    pruning = TargetedPruning(target, mask_learning='one_shot', scores=scores, compensate=True, freeze_weights=True)
    tiny_trainer(
        source,
        [pruning],
        batches=1,
        batch_size=8,
        device_train_microbatch_size=4,
        eval_dataloader=sequences_spec(8, 8),
        callbacks=[ExportPruned(str(tmp_path / 'run'))],
    ).fit()

    model = open_strictly(source).requires_grad_(False)
    (batch,) = sequences_spec(8, 8).dataloader
    calibration = Calibration(Cutter(model), [batch], microbatch_size=4)
    cut = prune_in_one_shot(calibration, target_shape(model.config, target), scores)
    export_model(calibration.cutter, tmp_path / 'cut')

    for axis, mask in pruning.final_masks().items():
        assert torch.equal(cut.final_masks()[axis], mask), axis
    assert torch.equal(cut.norm_energies, pruning.norm_energies)
    ours, theirs = (load_file(tmp_path / name / 'model.safetensors') for name in ('cut', 'run'))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_compensation_changes_the_weights_and_can_be_left_out(tmp_path):
    source = tiny_source(tmp_path / 'source')
    (batch,) = sequences_spec(8, 8).dataloader
    weights = {}
    for compensate in (True, False):
        model = open_strictly(source).requires_grad_(False)
        calibration = Calibration(Cutter(model), [batch])
        prune_in_one_shot(calibration, target_shape(model.config, TARGET), SCORES, compensate)
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
        weights[compensate] = model.model.layers[0].mlp.down_proj.weight.clone()
    original = open_strictly(source).model.layers[0].mlp.down_proj.weight
    assert torch.equal(weights[False], original) and not torch.equal(weights[True], original)
