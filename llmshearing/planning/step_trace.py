"""The working memory of a training step, traced: the real step runs on tensors that have shapes and no data.

What a step keeps between forward and backward depends on modelling code, attention kernel, precision, checkpointing
and on how weights are cut. Formulas for that would have to be written per family and would be wrong after the next
release. So the stock model, with our own cutting where masks are in use, does one forward and backward pass under
torch's fake tensors while every allocation is counted. Memory grows linearly with the number of layers of each kind, so
a trace of the fewest that have all kinds, and one with more of each, give it for any number. A trace takes about a
second at any model size; with linear attention (Qwen 3.5) the loop over the sequence is traced as well, and takes
longer the longer that is.

Fake tensors take the CPU's kernels, with fused attention. Those of a GPU are expected to save the same tensors for the
backward pass (not measured here); workspaces of kernels and fragmentation are not in it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import weakref
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel

from llmshearing.compat.experts import even_routing
from llmshearing.compat.torch import FakeTensorMode, TorchDispatchMode, tree_leaves
from llmshearing.compat.transformers import (
    EXPERTS_ARE_MODULES,
    attention_implementation,
    dtype_argument,
    ignores_windows,
    layer_kinds,
    set_attention,
    set_plain_rotary,
    without_packed_masks,
)
from llmshearing.models.cuttable import Cutter
from llmshearing.models.families import family_of
from llmshearing.models.shapes import shape_of, with_shape
from llmshearing.models.units import mask_shapes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['StepMemory', 'trace_step']

SLOW_FROM = 1024  # tokens, with linear attention

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes of a step beyond parameters, gradients and optimizer states, from the second micro-batch of a batch on.

    Attributes:
        saved (float): Alive when the forward pass has ended: what autograd keeps, the loss and the logits.
        saved_per_layer (float): The part of ``saved`` that one more layer adds.
        forward_peak (float): Most that is alive during the forward pass.
        backward_peak (float): Most that is alive during the backward pass.
    """

    saved: float
    saved_per_layer: float
    forward_peak: float
    backward_peak: float


def trace_step(
    config: PretrainedConfig,
    micro_batch: int,
    seq_len: int,
    autocast: bool = False,
    checkpointing: bool = False,
    parameter_dtype: torch.dtype = torch.float32,
    masked_axes: Collection[str] = (),
) -> StepMemory:
    """Traces one micro-batch of training.

    Args:
        config (PretrainedConfig): The model.
        micro_batch (int): Sequences.
        seq_len (int): Tokens of each.
        autocast (bool): Compute in bfloat16 under autocast.
        checkpointing (bool): Recompute each layer in the backward pass.
        parameter_dtype (torch.dtype): Of the parameters that the step sees.
        masked_axes (Collection[str]): Axes under masks. Masks keep nearly everything, as at the start of pruning, when
            a step takes most; one hidden and one intermediate dimension are dropped, and of one expert more than there
            are that one, so that weights are really cut.
    """
    layers = config.num_hidden_layers
    first, growths = _least_layers(config)
    if 'linear_attention' in first and seq_len >= SLOW_FROM:
        _say_slow(seq_len)

    def trace(kinds: list) -> tuple[int, int, int]:
        traceable = _traceable(config, kinds, one_more=_drops_an_expert(masked_axes))
        return _trace(traceable, micro_batch, seq_len, autocast, checkpointing, parameter_dtype, masked_axes)

    base = trace(first)
    added = [
        (times, [more - few for few, more in zip(base, trace(first + kinds))]) for kinds, times in growths
    ]  # bytes that each growth adds to saved, forward peak and backward peak
    saved, forward, backward = (
        start + sum((times - 1) * growth[part] for times, growth in added) for part, start in enumerate(base)
    )
    return StepMemory(saved, sum(times * growth[0] for times, growth in added) / layers, forward, backward)


@functools.cache
def _say_slow(seq_len: int) -> None:
    log.warning('Memory is traced over %d tokens of linear attention: this takes a while.', seq_len)


def _least_layers(config: PretrainedConfig) -> tuple[list, list[tuple[list, float]]]:
    """Kinds of the fewest layers that have all of a model's, and what its layers are made of, with numbers of each.

    Where the config lists kinds, each kind is traced by itself; elsewhere they follow from the position.
    """
    kinds, layers = layer_kinds(config), config.num_hidden_layers
    if kinds:
        first = list(dict.fromkeys(kinds))
        return first, [([kind], kinds.count(kind)) for kind in first]
    by_position = family_of(config).layer_types
    period = _period(by_position(config)) if by_position else 1
    return [None] * period, [([None] * period, layers / period)]


def _period(kinds: tuple) -> int:
    """Length of the repeating pattern of layer kinds."""
    return next(p for p in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % p] for i in range(len(kinds))))


def _drops_an_expert(masked_axes: Collection[str]) -> bool:
    """Whether an expert has to go for others to be copied: they are where all are one tensor."""
    return 'expert' in masked_axes and not EXPERTS_ARE_MODULES


def _traceable(config: PretrainedConfig, kinds: list, one_more: bool = False) -> PretrainedConfig:
    """The model with some layers, and perhaps one more expert in each, which :func:`_mask` drops."""
    source = shape_of(config)
    shape = dataclasses.replace(source, num_hidden_layers=len(kinds), num_experts=source.num_experts + one_more)
    config = with_shape(config, shape, family_of(config).has_head_dim)
    if layer_kinds(config):
        config.layer_types = kinds
    config.use_cache = False
    set_attention(config, attention_implementation(config))
    set_plain_rotary(config)  # it changes values and not sizes, and some kinds look at data
    if ignores_windows(config):
        config.sliding_window = None
    return config


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate, from allocation until they are freed."""

    def __init__(self, known: Iterator[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}
        for tensor in known:
            self._watch(tensor, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._watch(tensor)
        return out

    def _watch(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes() if counted else 0
        if key in self._alive:
            return
        self.live += size
        self.peak = max(self.peak, self.live)
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        del self._alive[key]


def _trace(
    config: PretrainedConfig,
    micro_batch: int,
    seq_len: int,
    autocast: bool,
    checkpointing: bool,
    parameter_dtype: torch.dtype,
    masked_axes: Collection[str],
) -> tuple[int, int, int]:
    """Saved bytes, forward peak and backward peak of a micro-batch whose gradients have buffers already."""
    MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # imports the modelling code outside of the fake mode
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention_implementation(config), **dtype_argument(parameter_dtype)
        ).train()
        ids = torch.zeros(micro_batch, seq_len, dtype=torch.long)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
    if checkpointing:
        for layer in model.get_submodule(family_of(config).decoder).layers:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    if masked_axes:
        _mask(model, masked_axes)
    gradients = [parameter.grad for parameter in model.parameters()]
    live = _LiveBytes(iter([*model.parameters(), *gradients, *model.buffers(), ids]))
    with fake, live, without_packed_masks(), even_routing(shape_of(config).num_experts):
        return _micro_batch(model, ids, autocast, live)


def _mask(model: PreTrainedModel, axes: Collection[str]) -> None:
    cutter = Cutter(model)
    masks = {axis: torch.ones(size) for axis, size in mask_shapes(cutter.shape).items() if axis in axes}
    if 'hidden' in masks:
        masks['hidden'][0] = 0
    if _drops_an_expert(masks):
        masks['expert'][:, 0] = 0
    if 'intermediate' in masks:  # the first dimension of an MLP, or of every expert
        masks['intermediate'].view(-1, cutter.shape.intermediate_size)[:, 0] = 0
    cutter.set_masks(masks)


def _micro_batch(model: nn.Module, ids: Tensor, autocast: bool, live: _LiveBytes) -> tuple[int, int, int]:
    base = live.peak = live.live
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        output = model(input_ids=ids, labels=ids)
    saved, forward = live.live - base, live.peak - base
    live.peak = live.live
    output.loss.backward()
    return saved, forward, live.peak - base
