"""Puts source and target side by side before anything is spent: what will be cut, counts, cost, memory, warnings.

A plan is a plain dict, so that it can be written as JSON as it is; :mod:`llmshearing.planning.plan_table` prints it.
Warnings are about targets that can be reached and will disappoint: sizes that GPUs are slow with, and shapes far from
the source's. What cannot be reached at all is refused where the target is resolved.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from llmshearing.masks.axes import AxisPlan, plan_axes
from llmshearing.models.counting import (
    Layout,
    active_parameters,
    count_parameters,
    kv_cache_bytes_per_token,
    kv_cache_window_bytes,
    layout_of,
    training_flops_per_token,
)
from llmshearing.models.families import family_of
from llmshearing.models.shapes import ModelShape, shape_of, with_shape
from llmshearing.planning.memory import MemoryEstimate, TrainingSetup, estimate_memory
from llmshearing.planning.serving import neighbours, serving_warnings
from llmshearing.utils.numbers import multiples_beside

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['make_plan', 'shape_guidance', 'shape_warnings']

ALIGNED = 64
TENSOR_CORE = 8  # rows of bfloat16 start at 16 bytes only if their length is a multiple of it
LEAST_KEPT = 0.25
MOST_UNEVEN = 3.0
MUCH = 0.15  # an axis goes first where it loses this much more of its share than another
GPU_BYTES = 80 * 2**30

PER_ROW = {
    'hidden': 'the same dimensions everywhere',
    'layer': 'whole decoder layers',
    'intermediate': 'in every layer',
    'kv_group': 'KV heads with all their query heads, in every layer',
    'head': 'in every layer',
    'expert': 'routed experts, in every layer',
}


def make_plan(
    config: PretrainedConfig,
    target: ModelShape | None,
    setup: TrainingSetup,
    freeze_weights: bool = False,
    teacher: PretrainedConfig | None = None,
    compensate: bool = False,
    untrimmed: PretrainedConfig | None = None,
    rotated: bool = False,
) -> dict[str, Any]:
    """The plan of pruning a source to a target and continuing its pre-training.

    Args:
        config (PretrainedConfig): The source's config.
        target (ModelShape | None): A shape that the source can be cut to; None describes the source alone.
        setup (TrainingSetup): How both stages are trained.
        freeze_weights (bool): Pruning trains masks alone.
        teacher (PretrainedConfig | None): Model that pruning distils from.
        compensate (bool): Pruning changes the weights as units go.
        untrimmed (PretrainedConfig | None): The source as it is, where ``config`` is one with fewer tokens; the target
            is compared with it.
        rotated (bool): ``llmshearing rotate`` wrote the source.

    Returns:
        dict[str, Any]: Plain types: ``model_type``, ``setup``, ``source`` and ``target`` (shape and counts), ``cut`` by
        axis, ``memory`` by stage in bytes per GPU, ``notes`` on what is not in it, ``warnings``.

    Raises:
        ValueError: If the model type is not supported.
    """
    family, source, layout = family_of(config), shape_of(config), layout_of(config)
    axes: dict[str, AxisPlan] = {}
    if target is None:
        notes, estimates = [], {'training': estimate_memory(config, setup)}
    else:
        axes, finished = plan_axes(source, target), with_shape(config, target, family.has_head_dim)
        estimates = {
            'pruning': estimate_memory(config, setup, tuple(axes), freeze_weights, teacher, compensate),
            'continued pre-training': estimate_memory(finished, setup),
        }
        kept = count_parameters(layout, target).total / count_parameters(layout, source).total
        guidance = shape_guidance(source, target, kept)
        notes = [f'{each} `llmshearing search` compares shapes of this size.' for each in guidance]
    notes += _memory_notes(layout, source, setup, freeze_weights, teacher is not None)
    return {
        'model_type': config.model_type,
        'setup': dataclasses.asdict(setup),
        'source': _describe(layout_of(untrimmed or config), source, setup.seq_len),
        'target': _describe(layout, target or source, setup.seq_len) if target or untrimmed else None,
        'cut': {axis: _describe_cut(source, axis, rows) for axis, rows in axes.items()},
        'memory': {stage: {**dataclasses.asdict(parts), 'total': parts.total} for stage, parts in estimates.items()},
        'notes': notes,
        'warnings': [
            *shape_warnings(source, target or source, layout),
            *serving_warnings(config.model_type, source, target or source),
            *_run_warnings(config, source, target, setup, estimates, rotated),
        ],
    }


def _describe_cut(source: ModelShape, axis: str, rows: AxisPlan) -> dict[str, Any]:
    where = PER_ROW[axis]
    if axis == 'head' and source.group_size > 1:
        where = 'query heads of each KV head, in every layer'
    if axis == 'intermediate' and source.num_experts:
        where = 'of every routed expert, in every layer'
    return {'units': rows.units, 'keep': rows.keep, 'removed': rows.final_sparsity, 'where': where}


def _memory_notes(
    layout: Layout, source: ModelShape, setup: TrainingSetup, freeze_weights: bool, distilled: bool
) -> list[str]:
    """What the estimates leave out, or count differently."""
    notes = []
    if freeze_weights:
        notes.append(
            'freeze_weights: pruning has no gradients and optimizer states of weights; activations are counted as if '
            'the weights were trained.'
        )
    if distilled:
        vocabulary = layout.embedding.size(source) // source.hidden_size
        logits = setup.micro_batch * setup.seq_len * vocabulary * (2 if setup.precision == 'amp_bf16' else 4)
        notes.append(
            'distillation: the weights of the teacher are counted; its forward pass, its logits and the gradient of '
            f'the divergence are not. Without top_k the latter two take up to {logits / 2**30:.2f} GiB each.'
        )
    return notes


def _describe(layout: Layout, shape: ModelShape, seq_len: int) -> dict[str, Any]:
    counts = count_parameters(layout, shape)
    return {
        'shape': shape.as_dict(),
        'vocab_size': layout.embedding.rows,
        'parameters': counts.total,
        'parameters_without_embeddings': counts.without_embeddings,
        **({'active_parameters': active_parameters(layout, shape)} if shape.num_experts else {}),
        'bytes_in_bfloat16': 2 * counts.total,
        'training_flops_per_token': training_flops_per_token(layout, shape, seq_len),
        'kv_cache_bytes_per_token': kv_cache_bytes_per_token(layout, shape),
        **({'kv_cache_window_bytes': kv_cache_window_bytes(layout, shape)} if layout.window else {}),
    }


def shape_warnings(source: ModelShape, target: ModelShape, layout: Layout) -> list[str]:
    """What to expect trouble from in a target that can be reached; also of a source alone, given as both."""
    warnings = []
    for key in ('hidden_size', 'intermediate_size'):
        value = getattr(target, key)
        most = getattr(source, key)
        nearest = neighbours(value, ALIGNED if multiples_beside(value, ALIGNED, most) else TENSOR_CORE, most)
        if value % TENSOR_CORE:
            warnings.append(
                f'{key}={value} is no multiple of {TENSOR_CORE}: tensor cores in bfloat16 need that, so much slower on '
                f'GPUs; {nearest}.'
            )
        elif value % ALIGNED:
            warnings.append(f'{key}={value} is no multiple of {ALIGNED}: slower on GPUs; {nearest}.')
    if target.head_dim % TENSOR_CORE:
        warnings.append(
            f'head_dim={target.head_dim} is no multiple of {TENSOR_CORE}: fused attention pads it or does not support '
            'it; it is inherited from the source.'
        )
    heads = {key: getattr(target, key) for key in ('num_attention_heads', 'num_key_value_heads')}
    odd = [f'{key}={value}' for key, value in heads.items() if value % 2 and value > 1]
    if odd:
        warnings.append(f'{", ".join(odd)}: odd numbers of heads cannot be divided over 2 GPUs (tensor parallelism).')
    if layout.embedding.rows % ALIGNED:
        rows = layout.embedding.rows
        warnings.append(f'the vocabulary of {rows} is no multiple of {ALIGNED}: a slower LM head; pruning keeps it.')
    return warnings + _ratio_warnings(source, target, layout)


def _ratio_warnings(source: ModelShape, target: ModelShape, layout: Layout) -> list[str]:
    keys = ['num_experts'] if source.num_experts else []
    keys += ['num_hidden_layers', 'hidden_size', 'num_attention_heads', 'intermediate_size']
    ratios = {key: getattr(target, key) / getattr(source, key) for key in keys}
    warnings = [
        f"{key}={getattr(target, key)} keeps {ratio:.0%} of the source's {getattr(source, key)}: with less than "
        f'{LEAST_KEPT:.0%} of an axis little of what the source has learned survives; expect a long continued '
        'pre-training.'
        for key, ratio in ratios.items()
        if ratio < LEAST_KEPT
    ]
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    if ratios[high] > MOST_UNEVEN * ratios[low]:
        advice = f'params: {count_parameters(layout, target).total} proposes a shape of this size near them.'
        if high == 'num_experts':  # which budgets leave alone
            experts = source.num_experts // 2
            advice = f'give a number of experts beside the budget, such as --target num_experts={experts}.'
        warnings.append(
            f"{low} keeps {ratios[low]:.0%} and {high} {ratios[high]:.0%}: far from the source's proportions; {advice}"
        )
    return warnings


def shape_guidance(source: ModelShape, target: ModelShape, kept: float) -> list[str]:
    """What others have measured of the choice of a shape, said where a target does otherwise.

    It is guidance, not law: `llmshearing search` measures it for one source and one kind of text. ``kept`` is the share
    of the parameters that stay.

    Width keeps more than depth at equal parameters, and depth is faster: Sreenivas et al. 2024 (arXiv 2408.11796).
    Heads last, and several rounds for small targets: Muralidharan et al. 2024 (arXiv 2407.14679). Fewer layers cost
    reasoning before they cost knowledge: Gromov et al. 2024 (arXiv 2403.17887).
    """
    layers, hidden, heads, intermediate = (
        getattr(target, key) / getattr(source, key)
        for key in ('num_hidden_layers', 'hidden_size', 'num_attention_heads', 'intermediate_size')
    )
    said = []
    if layers < min(hidden, intermediate) - MUCH:
        said.append(
            f'{1 - layers:.0%} of the layers go: at equal parameters, width keeps more than depth and depth is faster '
            '(arXiv 2408.11796); reasoning suffers first from missing layers (arXiv 2403.17887).'
        )
    if hidden < intermediate - MUCH:
        said.append(
            f'{1 - hidden:.0%} of the hidden dimensions go: intermediate dimensions before hidden ones costs less '
            '(arXiv 2407.14679).'
        )
    if heads < min(hidden, intermediate) - MUCH:
        said.append(
            f'{1 - heads:.0%} of the heads go: intermediate dimensions before hidden ones before heads costs less '
            '(arXiv 2407.14679).'
        )
    if kept < 0.5:
        said.append(
            f'{1 - kept:.0%} of the parameters go in one step: more than half of a model wants stages, each cut '
            'followed by training (arXiv 2407.14679).'
        )
    return [f'guidance: {each}' for each in said]


def _run_warnings(
    config: PretrainedConfig,
    source: ModelShape,
    target: ModelShape | None,
    setup: TrainingSetup,
    estimates: dict[str, MemoryEstimate],
    rotated: bool,
) -> list[str]:
    warnings = []
    if target == source:
        warnings.append('the target is the source: there is nothing to prune.')
    rotates = family_of(config).rotates and not rotated
    if target is not None and target.hidden_size < source.hidden_size and rotates:
        warnings.append(
            f'{source.hidden_size - target.hidden_size} hidden dimensions go: they cost less in another basis; '
            f'`llmshearing rotate SOURCE --data DATA --output ROTATED --keep {target.hidden_size}` first.'
        )
    longest = getattr(config, 'max_position_embeddings', None)
    if longest is not None and setup.seq_len > longest:
        warnings.append(f"seq_len={setup.seq_len} is more than the source's {longest} positions.")
    remedies = {
        'activation checkpointing': not setup.activation_checkpointing,
        'fsdp2': setup.sharding == 'ddp' and setup.gpus > 1,
        'a smaller micro-batch': setup.micro_batch > 1,
        'more GPUs': setup.sharding == 'fsdp2',
    }
    remedy = ', '.join(name for name, possible in remedies.items() if possible) or 'shorter sequences'
    too_large = [stage for stage, parts in estimates.items() if parts.total > GPU_BYTES]
    return warnings + [f'{stage} takes more than a GPU of 80 GiB has; try {remedy}.' for stage in too_large]
