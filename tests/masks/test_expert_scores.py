"""Scores of routed experts against plain computations, and runs that are decided by them."""

import pytest
import torch
from transformers import AutoConfig

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.compat.experts import expert_matrices
from llmshearing.masks.scores import Calibration, method_by_axis, score_units
from llmshearing.metrics.pruning_record import read_record
from llmshearing.models.cuttable import Cutter
from llmshearing.models.shapes import shape_of
from llmshearing.reports import kept
from tests.models.tiny import MIXTURES, tiny_model
from tests.tiny_run import sequences_spec, tiny_source, tiny_trainer


def calibrated(variant, microbatch_size=None):
    batches = list(sequences_spec(12, 4, seed=5).dataloader)
    return Calibration(Cutter(tiny_model(variant)), batches, seed=1, microbatch_size=microbatch_size)


def seen_by(calibration, layer):
    """What the MLP of a layer reads, [tokens, hidden]."""
    cutter, seen = calibration.cutter, []
    block = cutter.model.model.layers[layer].get_submodule(cutter.family.mlp)
    handle = block.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in calibration.batches:
            calibration.loss_of(batch)
    handle.remove()
    return block, torch.cat(seen)


@pytest.mark.parametrize('variant', MIXTURES)
def test_scores_are_those_of_the_formulas(variant):
    calibration = calibrated(variant)
    cutter, config = calibration.cutter, calibration.cutter.model.config
    reap, frequency = (score_units({'expert': name}, calibration)['expert'] for name in ('reap', 'frequency'))
    inner_rms = score_units({'intermediate': 'activation'}, calibration)['intermediate'].view(4, 6, 64)
    block, x = seen_by(calibration, 2)
    router = block.router if hasattr(block, 'router') else block.gate
    logits = x @ router.weight.T + (0 if getattr(router, 'bias', None) is None else router.bias)
    shares, chosen = logits.softmax(-1).topk(2, dim=-1)
    if getattr(config, 'norm_topk_prob', True):
        shares = shares / shares.sum(-1, keepdim=True)
    gate_up, down = expert_matrices(block, cutter.family)
    for expert in range(6):
        token, place = torch.where(chosen == expert)
        assert frequency[2, expert].item() == pytest.approx(len(token) / len(x), rel=1e-5)
        gate, up = (x[token] @ gate_up[expert].T).chunk(2, -1)
        bias = 0
        if config.model_type == 'gpt_oss':
            first, second = block.experts.gate_up_proj_bias[expert].view(-1, 2).unbind(-1)
            gate, up = (gate + first).clamp(max=7.0), (up + second).clamp(-7.0, 7.0)
            inner, bias = (up + 1) * gate * torch.sigmoid(1.702 * gate), block.experts.down_proj_bias[expert]
        else:
            inner = torch.nn.functional.silu(gate) * up
        out = inner @ down[expert].T + bias
        want = (shares[token, place] * out.norm(dim=-1)).mean() if len(token) else torch.zeros(())
        torch.testing.assert_close(reap[2, expert], want.detach(), rtol=1e-4, atol=1e-6)
        rms = inner.square().mean(0).sqrt() if len(token) else torch.zeros(64)
        torch.testing.assert_close(inner_rms[2, expert], rms.detach(), rtol=1e-4, atol=1e-6)
    parts = calibrated(variant, microbatch_size=1)
    torch.testing.assert_close(score_units({'expert': 'reap'}, parts)['expert'], reap, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('variant', MIXTURES)
def test_magnitudes_are_of_all_weights_that_go_with_a_unit(variant):
    calibration = calibrated(variant)
    axes = ('hidden', 'layer', 'intermediate', 'expert', 'kv_group')
    got = score_units(dict.fromkeys(axes, 'magnitude'), calibration)
    model, family = calibration.cutter.model, calibration.cutter.family
    layer = model.model.layers[1]
    block = layer.get_submodule(family.mlp)
    router = (block.router if hasattr(block, 'router') else block.gate).weight
    gate_up, down = expert_matrices(block, family)

    def rms(*weights):
        return torch.cat([weight.detach().flatten() for weight in weights]).square().mean().sqrt()

    torch.testing.assert_close(got['expert'][1, 4], rms(gate_up[4], down[4], router[4]))
    unit = rms(gate_up[4, 5], gate_up[4, 64 + 5], down[4, :, 5])
    torch.testing.assert_close(got['intermediate'][1, 4 * 64 + 5], unit)
    whole = [p for name, p in layer.named_parameters() if not name.endswith('bias') and 'sinks' not in name]
    torch.testing.assert_close(got['layer'][1], rms(*whole))


@pytest.mark.parametrize('scores', ['reap', 'frequency', 'taylor', 'magnitude', 'random'])
def test_one_shot_keeps_the_best_scored_experts(tmp_path, scores):
    source = tiny_source(tmp_path / 'source', 'qwen3_moe')
    pruning = TargetedPruning({'num_experts': 4}, mask_learning='one_shot', scores=scores, calibration_batches=2)
    export = ExportPruned(str(tmp_path / 'out'))
    trainer = tiny_trainer(source, [pruning], batches=3, eval_dataloader=sequences_spec(8, 4), callbacks=[export])
    trainer.fit()
    assert shape_of(AutoConfig.from_pretrained(tmp_path / 'out')).num_experts == 4
    best = pruning.learner.scores()['expert'].argsort(dim=1, descending=True)[:, :4].sort(dim=1).values
    record = read_record(tmp_path / 'out')
    assert [record.kept['layers'][str(layer)]['experts'] for layer in range(4)] == best.tolist()
    assert record.source_shape['num_experts'] == 6 and record.shape['num_experts'] == 4


def test_methods_for_experts_are_for_experts():
    assert method_by_axis('reap', ['expert', 'layer']) == {'expert': 'reap', 'layer': 'block_importance'}
    assert method_by_axis('activation', ['expert', 'hidden']) == {'expert': 'reap', 'hidden': 'activation'}
    with pytest.raises(ValueError, match='reap does not apply to hidden; it applies to expert'):
        method_by_axis({'hidden': 'reap'}, ['hidden'])


def test_a_report_finds_experts_and_their_dimensions():
    shape = {'num_hidden_layers': 2, 'intermediate_size': 3, 'num_experts': 2, 'hidden_size': 4}
    layers = {'0': {'experts': [1], 'intermediate': [[0, 2]]}, '1': {'intermediate': None}}
    record = {'source_shape': shape, 'kept': {'layers': layers}, 'axes': [{'axis': 'expert'}]}
    assert kept.kept_part(record, 0, 'intermediate') == [3, 5]
    assert kept.kept_part(record, 1, 'intermediate') == list(range(6))
    assert kept.kept_matrix(record, 'experts').tolist() == [[0, 1], [1, 1]]
    assert kept.kept_matrix(record, 'intermediate').tolist() == [[0, 0, 0, 1, 0, 1], [1] * 6]
    assert kept.pruned_parts(record) == ['experts']
