"""Estimates what a training run takes on each GPU, part by part.

Peak = what lasts from step to step (parameters, gradients, optimizer states, the copies of the sharding strategy) and
what a micro-batch needs on top (:mod:`llmshearing.planning.step_trace`), taken from the second micro-batch of a batch
on, when gradients are there already. What is true of this suite and easily forgotten: a cut weight is an activation.
It lives from forward to backward, on every rank, so sharding does not bound it: with everything kept, as at the start
of pruning, that is the whole model's matrices once more. With activation checkpointing one layer's live at a time.
Under ``amp_bf16`` with ddp, ordinary training holds a bfloat16 copy of each matrix as well; the cut weights replace it.

Assumed: float32 parameters as Composer keeps them, Adam with two float32 states that is applied parameter by parameter.
Not included: the CUDA context and communication library (about 1 GB), fragmentation, kernel workspaces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from llmshearing.compat.transformers import EXPERTS_ARE_MODULES
from llmshearing.models.counting import Layout, Weight, count_parameters, layout_of
from llmshearing.models.dimensions import DIMENSIONS
from llmshearing.models.shapes import ModelShape, shape_of
from llmshearing.planning.step_trace import trace_step
from llmshearing.utils.checks import is_integer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['MemoryEstimate', 'PRECISIONS', 'SHARDING', 'TrainingSetup', 'compensation_bytes', 'estimate_memory']

SHARDING = ('ddp', 'fsdp2')
PRECISIONS = ('amp_bf16', 'fp32')
MASTER = 4  # bytes of a float32


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """How a run is set up.

    Attributes:
        gpus (int): Number of GPUs.
        sharding (str): ``'ddp'``: every GPU holds the whole model; ``'fsdp2'``: parameters, gradients and optimizer
            states are divided among them.
        micro_batch (int): Sequences per GPU and micro-batch (``device_train_microbatch_size``).
        seq_len (int): Tokens per sequence.
        activation_checkpointing (bool): Recompute each layer in the backward pass.
        precision (str): ``'amp_bf16'`` or ``'fp32'``.

    Raises:
        ValueError: Naming all values that are not possible.
    """

    gpus: int = 8
    sharding: str = 'ddp'
    micro_batch: int = 4
    seq_len: int = 4096
    activation_checkpointing: bool = False
    precision: str = 'amp_bf16'

    def __post_init__(self) -> None:
        problems = [
            f'{name}={getattr(self, name)!r}: must be a whole number of 1 or more.'
            for name in ('gpus', 'micro_batch', 'seq_len')
            if not is_integer(getattr(self, name)) or getattr(self, name) < 1
        ]
        for name, possible in (('sharding', SHARDING), ('precision', PRECISIONS)):
            if getattr(self, name) not in possible:
                problems.append(f'{name}={getattr(self, name)!r}: must be one of {", ".join(possible)}.')
        if problems:
            listed = '\n'.join(f'  - {problem}' for problem in problems)
            raise ValueError(f'This training setup is not possible:\n{listed}')


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU at the peak of a step.

    Attributes:
        parameters (int): Float32 parameters, or this GPU's share.
        gradients (int): Their gradients.
        optimizer_states (int): The two states of Adam.
        communication (int): DDP: the buckets, which copy the gradients. FSDP2: gathered parameters and gradients of the
            modules that are not in a layer, and of two layers.
        weight_copies (int): Cut weights, and copies of weights in bfloat16 that autograd keeps.
        activations (int): What layers keep for the backward pass.
        logits_and_temporaries (int): The rest of the peak: logits, their gradient, the loss, what a layer needs in
            passing.
        teacher (int): Weights of a teacher in the type of the computation, or this GPU's share.
        compensation (int): What ``compensate`` adds up over the tokens it looks at: a float32 matrix of inputs x inputs
            for each tensor that projections read, whole on every GPU.
    """

    parameters: int
    gradients: int
    optimizer_states: int
    communication: int
    weight_copies: int
    activations: int
    logits_and_temporaries: int
    teacher: int = 0
    compensation: int = 0

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return sum(dataclasses.astuple(self))


def estimate_memory(
    config: PretrainedConfig,
    setup: TrainingSetup,
    masked_axes: Collection[str] = (),
    freeze_weights: bool = False,
    teacher: PretrainedConfig | None = None,
    compensate: bool = False,
) -> MemoryEstimate:
    """Estimates the peak on one GPU.

    Args:
        config (PretrainedConfig): The model that is trained: for pruning the source, afterwards the target.
        setup (TrainingSetup): How it is trained.
        masked_axes (Collection[str]): Axes under masks, keys of :func:`~llmshearing.masks.axes.plan_axes`; none for
            training without masks.
        freeze_weights (bool): Masks alone are trained: weights have no gradients and no optimizer states. Activations
            are counted as if they had.
        teacher (PretrainedConfig | None): Model that is distilled from. Its weights are counted, what its forward pass
            and the divergence take is not.
        compensate (bool): Weights are changed as units go, as ``targeted_pruning`` does with that option.
    """
    layout, shape = layout_of(config), shape_of(config)
    sharded = setup.sharding == 'fsdp2'
    mixed = setup.precision == 'amp_bf16'
    # FSDP2 gathers parameters in the precision of the computation; they are then not cast again.
    seen_dtype = torch.bfloat16 if sharded and mixed else torch.float32
    step = trace_step(
        config,
        setup.micro_batch,
        setup.seq_len,
        autocast=mixed,
        checkpointing=setup.activation_checkpointing,
        parameter_dtype=seen_dtype,
        masked_axes=masked_axes,
    )
    peak = max(step.forward_peak, step.backward_peak)
    in_layers, outside = _copied(layout, shape, masked_axes, everything=mixed and not sharded)
    layers_alive = shape.num_hidden_layers
    if setup.activation_checkpointing:
        # Autocast keeps its copies of plain weights until the forward pass ends, checkpointing or not.
        cached = mixed and not sharded and not masked_axes and step.forward_peak >= step.backward_peak
        layers_alive = layers_alive if cached else 1
    copy_bytes = 2 if mixed else 4
    copies = copy_bytes * (in_layers * layers_alive + outside)
    kept = step.saved_per_layer * shape.num_hidden_layers
    if not setup.activation_checkpointing:
        kept -= copy_bytes * in_layers * shape.num_hidden_layers
    own = _share(layout, shape, setup)
    trained = 0 if freeze_weights else own
    return MemoryEstimate(
        parameters=MASTER * own,
        gradients=MASTER * trained,
        optimizer_states=2 * MASTER * trained,
        communication=_communication(layout, shape, setup, seen_dtype.itemsize, freeze_weights),
        weight_copies=copies,
        activations=round(kept),
        logits_and_temporaries=round(peak) - copies - round(kept),
        teacher=0 if teacher is None else copy_bytes * _share(layout_of(teacher), shape_of(teacher), setup),
        compensation=compensation_bytes(shape, masked_axes, layout.tied) if compensate else 0,
    )


def _share(layout: Layout, shape: ModelShape, setup: TrainingSetup) -> int:
    """Parameters that one GPU holds."""
    whole = count_parameters(layout, shape).total
    return -(-whole // setup.gpus) if setup.sharding == 'fsdp2' else whole


def _communication(layout: Layout, shape: ModelShape, setup: TrainingSetup, seen_bytes: int, frozen: bool) -> int:
    counts = count_parameters(layout, shape)
    if setup.gpus == 1:
        return 0
    if setup.sharding == 'ddp':
        return 0 if frozen else MASTER * counts.total
    outside = counts.total - counts.layers
    two_layers = min(2, shape.num_hidden_layers) * counts.layers // shape.num_hidden_layers
    return (1 if frozen else 2) * seen_bytes * (outside + two_layers)  # parameters and their gradients


def compensation_bytes(shape: ModelShape, masked_axes: Collection[str], tied: bool) -> int:
    """Bytes of the sums of x x^T while nothing is gone yet; attention and MLP read the hidden dimensions once each."""
    readers = {
        'hidden': 2 * shape.num_hidden_layers + (not tied),  # an LM head that is the embedding is not compensated
        'query': shape.num_hidden_layers,
        'intermediate': 0 if shape.num_experts else shape.num_hidden_layers,  # routed experts are not compensated
    }
    watched = [name for name in readers if set(DIMENSIONS[name].axes) & set(masked_axes)]
    return sum(MASTER * readers[name] * DIMENSIONS[name].size(shape) ** 2 for name in watched)


def _copied(layout: Layout, shape: ModelShape, masked_axes: Collection[str], everything: bool) -> tuple[int, int]:
    """Elements of one layer's matrices, and of the LM head, of which a copy is computed with."""

    def elements(weight: Weight) -> int:
        return weight.size(shape) if weight.is_matrix and (everything or _is_cut(weight, masked_axes)) else 0

    layers = shape.num_hidden_layers
    return layout.in_layers(elements, layers) // layers, elements(layout.head)


def _is_cut(weight: Weight, masked_axes: Collection[str]) -> bool:
    axes = {axis for side in (weight.rows, weight.columns) if isinstance(side, str) for axis in DIMENSIONS[side].axes}
    if weight.routed and (weight.writes or not EXPERTS_ARE_MODULES):  # a module that stays is no copy
        axes |= set(DIMENSIONS['expert'].axes)
    if weight.writes:
        axes |= {'hidden', 'layer'}
    return bool(axes & set(masked_axes))
