"""A plan as lines of text: two columns of numbers, source and target, and one of ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmshearing.utils.numbers import unit_of, with_unit

__all__ = ['plan_lines']

LABEL, COLUMN = 28, 24
MEMORY_LABELS = {
    'parameters': 'parameters, float32',
    'gradients': 'gradients',
    'optimizer_states': 'optimizer states',
    'communication': 'communication buffers',
    'weight_copies': 'cut or cast weights',
    'activations': 'activations',
    'logits_and_temporaries': 'logits and temporaries',
    'teacher': 'weights of the teacher',
    'compensation': 'sums for compensation',
    'total': 'total',
}
RARE = ('teacher', 'compensation')  # shown where there is any


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The lines that ``llmshearing plan`` prints for a plan of :func:`llmshearing.planning.plan.make_plan`."""
    return [*_model_lines(plan), *_cut_lines(plan), *_memory_lines(plan), *_warning_lines(plan)]


def _row(label: str, *cells: str) -> str:
    return f'{label:<{LABEL}}' + ''.join(f'{cell:>{COLUMN}}' for cell in cells)


def _model_lines(plan: dict[str, Any]) -> list[str]:
    source, target = plan['source'], plan['target']
    heads = ['source'] if target is None else ['source', 'target', 'target / source']
    lines = [_row(plan['model_type'], *heads)]
    for key in source['shape']:
        lines.append(_compared(f'  {key}', source['shape'][key], target and target['shape'][key]))
    for label, key, text in (
        ('  vocab_size', 'vocab_size', '{:,}'.format),
        ('parameters', 'parameters', '{:,}'.format),
        ('  without embeddings', 'parameters_without_embeddings', '{:,}'.format),
        ('  active per token', 'active_parameters', '{:,}'.format),
        ('size in bfloat16', 'bytes_in_bfloat16', lambda value: with_unit(value, 'B')),
        ('training FLOPs per token', 'training_flops_per_token', lambda value: with_unit(value, 'FLOPs')),
        ('KV cache per token', 'kv_cache_bytes_per_token', '{:,} bytes'.format),
        ('  of sliding windows', 'kv_cache_window_bytes', lambda value: with_unit(value, 'B')),
    ):
        if key in source:  # active parameters are those of a mixture of experts
            lines.append(_compared(label, source[key], target and target[key], text))
    seq_len = plan['setup']['seq_len']
    lines.append(
        f'FLOPs: 6 x matrix parameters (with LM head) + 12 x layers x heads x head_dim x {seq_len} positions. '
        'KV cache: bfloat16'
        + (
            '; per token that of layers without a sliding window, the others keep what is said once theirs are full.'
            if 'kv_cache_window_bytes' in source
            else '.'
        )
    )
    return lines


def _compared(label: str, source: int, target: int | None, text: Callable[[int], str] = '{:,}'.format) -> str:
    if target is None:
        return _row(label, text(source))
    return _row(label, text(source), text(target), *([f'{target / source:.1%}'] if source else []))


def _cut_lines(plan: dict[str, Any]) -> list[str]:
    lines = [
        f'  {axis:<14}keeps {cut["keep"]:>6,} of {cut["units"]:>6,}, removes {cut["removed"]:6.1%}  {cut["where"]}'
        for axis, cut in plan['cut'].items()
    ]
    return ['', 'cut, per axis', *lines] if lines else []


def _memory_lines(plan: dict[str, Any]) -> list[str]:
    setup, memory = plan['setup'], plan['memory']
    described = (
        f'{setup["gpus"]} x {setup["sharding"]}, {setup["precision"]}, micro-batch {setup["micro_batch"]} x '
        f'{setup["seq_len"]} tokens, activation checkpointing {"on" if setup["activation_checkpointing"] else "off"}'
    )
    scale, unit = unit_of(max(parts['total'] for parts in memory.values()), 'B', binary=True)
    lines = ['', f'memory per GPU: {described}', _row(f'  {unit}', *memory)]
    for key, label in MEMORY_LABELS.items():
        if key in RARE and not any(parts[key] for parts in memory.values()):
            continue
        lines.append(_row(f'  {label}', *(f'{parts[key] / scale:.2f}' for parts in memory.values())))
    lines.append('At the peak of a step, without the CUDA context (about 1 GiB), fragmentation and kernel workspaces.')
    return [*lines, *plan['notes']]


def _warning_lines(plan: dict[str, Any]) -> list[str]:
    return ['', 'warnings', *(f'  - {warning}' for warning in plan['warnings'])] if plan['warnings'] else []
