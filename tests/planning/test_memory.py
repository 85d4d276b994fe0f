"""The memory estimate: the trace against what autograd keeps, cut weights against closed forms, a real peak."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from llmshearing.compat.transformers import EXPERTS_ARE_MODULES, layer_kinds
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.shapes import shape_of
from llmshearing.planning import memory, step_trace
from llmshearing.planning.memory import TrainingSetup, estimate_memory
from llmshearing.planning.step_trace import trace_step
from tests.models.tiny import VARIANTS, tiny_model

AXES = ('hidden', 'layer', 'head', 'intermediate')
LLAMA2_7B = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)
WIDE = LlamaConfig(vocab_size=64, hidden_size=512, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8)


def really_saved(model, ids):
    """Bytes that are alive because of a forward pass: what autograd keeps, logits and loss, each storage once."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), ids)}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=ids, labels=ids)
    pack(output.logits), pack(output.loss)
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in known)


REPEATED = {'llama-rope3', 'llama-mha', 'gpt_neox-serial', 'granite'}


@pytest.mark.parametrize('variant', sorted(set(VARIANTS) - REPEATED))
def test_the_trace_sees_what_autograd_keeps(variant):
    model = tiny_model(variant).train()
    model.config.use_cache = False
    step = trace_step(model.config, micro_batch=3, seq_len=64)
    assert step.saved == pytest.approx(really_saved(model, torch.ones(3, 64, dtype=torch.long)), rel=0.01)
    assert step.saved <= min(step.forward_peak, step.backward_peak)
    if variant != 'granitemoehybrid-mamba':  # whose mixers hold more for a moment than their gradients take
        assert step.forward_peak <= step.backward_peak


@pytest.mark.parametrize('variant', ['llama', 'gemma3_text', 'qwen2'])
@pytest.mark.parametrize('masked', [(), AXES])
def test_memory_is_linear_in_layers(variant, masked):
    config = tiny_model(variant, num_hidden_layers=6).config
    kinds = layer_kinds(config) or [None] * config.num_hidden_layers
    whole = step_trace._trace(step_trace._traceable(config, kinds), 2, 32, False, False, torch.float32, masked)
    step = trace_step(config, 2, 32, masked_axes=masked)
    # Scales of all layers are gathered at once, which adds a few vectors that are not quite linear.
    assert (step.saved, step.forward_peak, step.backward_peak) == pytest.approx(whole, rel=0.01 if masked else 1e-6)


@pytest.mark.parametrize(
    'axes, matrices',
    [
        # one layer's q, k, v, o: 512 x 512 each; gate, up, down: 512 x 1024 each
        (('hidden',), 4 * 512 * 512 + 3 * 512 * 1024),
        (('layer',), 512 * 512 + 512 * 1024),
        (('head',), 2 * 512 * 512),
        (('intermediate',), 3 * 512 * 1024),
        (AXES, 4 * 512 * 512 + 3 * 512 * 1024),
    ],
)
def test_cut_weights_live_like_activations(axes, matrices):
    head = 64 * 512 if 'hidden' in axes else 0
    assert memory._copied(layout_of(WIDE), shape_of(WIDE), axes, everything=False)[1] == head
    masked, plain = trace_step(WIDE, 1, 8, masked_axes=axes), trace_step(WIDE, 1, 8)
    # q_proj is not cut by the head axis alone as long as all heads are kept; the estimate counts it as it will be.
    traced = matrices - (512 * 512 if axes == ('head',) else 0)
    assert masked.saved - plain.saved == pytest.approx(4 * (6 * traced + head), rel=0.02)
    parts = estimate_memory(WIDE, TrainingSetup(1, 'ddp', 1, 8, False, 'fp32'), axes)
    assert parts.weight_copies == 4 * (6 * matrices + head)


def test_experts_of_which_some_go_are_copied():
    config = tiny_model('mixtral', hidden_size=256, intermediate_size=512, num_local_experts=4).config
    masked, plain = trace_step(config, 1, 8, masked_axes=('expert',)), trace_step(config, 1, 8)
    parts = estimate_memory(config, TrainingSetup(1, 'ddp', 1, 8, False, 'fp32'), ('expert',))
    down = 4 * 256 * 512
    assert parts.weight_copies == 4 * 4 * ((1 if EXPERTS_ARE_MODULES else 3) * down + 4 * 256)  # and routers
    unscaled = 0 if EXPERTS_ARE_MODULES else 4 * 4 * down  # once more, from which their scales are learned
    assert masked.saved - plain.saved == pytest.approx(parts.weight_copies + unscaled, rel=0.02)
    assert min(dataclasses.astuple(parts)) >= 0


def test_with_checkpointing_one_layers_cut_weights_live():
    setup = TrainingSetup(1, 'ddp', 1, 8, True, 'fp32')
    parts, plain = estimate_memory(WIDE, setup, AXES), estimate_memory(WIDE, setup)
    one_layer = 4 * 512 * 512 + 3 * 512 * 1024
    assert parts.weight_copies == 4 * (one_layer + 64 * 512)
    assert parts.total - plain.total < 4 * 2.5 * one_layer  # not 6 layers'


@pytest.mark.parametrize('variant', ['llama', 'starcoder2', 'gpt_neox', 'gemma2'])
def test_checkpointing_keeps_one_residual_per_layer(variant):
    config = tiny_model(variant, num_hidden_layers=4).config
    step = trace_step(config, 2, 32, checkpointing=True)
    assert step.saved_per_layer == pytest.approx(4 * 2 * 32 * 48, rel=0.02)


def test_what_lasts_follows_from_the_counts():
    total = count_parameters(layout_of(WIDE), shape_of(WIDE)).total
    alone = estimate_memory(WIDE, TrainingSetup(1, 'ddp', 1, 8))
    assert (alone.parameters, alone.gradients, alone.optimizer_states) == (4 * total, 4 * total, 8 * total)
    assert alone.communication == 0
    ddp = estimate_memory(WIDE, TrainingSetup(8, 'ddp', 1, 8))
    assert ddp.total - alone.total == ddp.communication == 4 * total
    sharded = estimate_memory(WIDE, TrainingSetup(8, 'fsdp2', 1, 8))
    assert sharded.parameters == 4 * -(-total // 8) and sharded.optimizer_states == 2 * sharded.parameters
    outside, layer = total - 6 * (4 * 512 * 512 + 3 * 512 * 1024 + 2 * 512), 4 * 512 * 512 + 3 * 512 * 1024 + 2 * 512
    assert sharded.communication == 2 * 2 * (outside + 2 * layer)  # bfloat16 parameters and gradients


@pytest.mark.parametrize('sharding', memory.SHARDING)
@pytest.mark.parametrize('precision', memory.PRECISIONS)
@pytest.mark.parametrize('checkpointing', [False, True])
def test_parts_of_a_large_model_are_sensible(sharding, precision, checkpointing):
    setup = TrainingSetup(8, sharding, 2, 1024, checkpointing, precision)
    for axes in ((), AXES):
        parts = estimate_memory(LLAMA2_7B, setup, axes)
        assert min(dataclasses.astuple(parts)) >= 0
        logits = 2 * 1024 * 32000 * 4
        assert logits < parts.logits_and_temporaries < 12 * logits
        # Copies of all layers' matrices: cut ones without checkpointing; plain ones where autocast keeps them.
        autocast_keeps = not axes and (precision, sharding) == ('amp_bf16', 'ddp')
        cut_ones_live = axes == AXES and not checkpointing
        assert (parts.weight_copies > 2 * 6.4e9) == (autocast_keeps or cut_ones_live)


def test_impossible_setups_are_refused_at_once():
    with pytest.raises(ValueError) as raised:
        TrainingSetup(0, 'fsdp', 1, -4, False, 'amp_fp16')
    for part in ('gpus=0', 'seq_len=-4', "sharding='fsdp': must be one of ddp, fsdp2", "precision='amp_fp16': must be"):
        assert part in str(raised.value)


def test_a_real_pruning_step_takes_what_is_estimated():
    path = Path(__file__).parents[2] / 'benchmarks' / 'memory_estimate.py'
    spec = importlib.util.spec_from_file_location('memory_estimate', path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    measured = benchmark.measure('small, pruning')['measured']
    assert benchmark.estimate('small, pruning')['total'] == pytest.approx(measured, rel=0.2)
