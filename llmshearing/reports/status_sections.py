"""The sections that every page begins with: where the run stands, and the source beside the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmshearing.metrics.names import EXPECTED_SPARSITY, TOKENS_PER_SECOND, TOTAL_TIME, TRAIN_LOSS
from llmshearing.metrics.run_log import NATS, RunLog, mean_loss
from llmshearing.models.shapes import TARGET_KEYS
from llmshearing.reports.blocks import Block, Card, Section, Table, columns, duration, number, percent, union
from llmshearing.reports.projection import planned_tokens
from llmshearing.reports.training_sections import eval_time_share, first_pictures, learning_rates, loss_table
from llmshearing.reports.verdict import batches_of_plan, loss_beside_source, seconds_left, share_done, verdict

__all__ = ['source_and_result_section', 'status_section']


def status_section(runs: Sequence[RunLog]) -> Section:
    """What is wanted first: a verdict, the latest numbers, the pictures that tell most; settings are folded."""
    blocks: list[Block] = [verdict(run) for run in runs]
    if len(runs) == 1:
        blocks += _cards(runs[0])
    blocks += first_pictures(runs)
    numbers = [_numbers(run) for run in runs]
    rows = {name: [of_run[name] for of_run in numbers] for name in numbers[0]}
    for metric, text in learning_rates(runs).items():
        rows[f'learning rate, {text}'] = [number(run.last(metric)) for run in runs]
    for key in union(run.state.get('settings') or {} for run in runs):
        rows[key] = [str((run.state.get('settings') or {}).get(key, '-')) for run in runs]
    notes = [f'{run.name}: {note}.' if len(runs) > 1 else f'{note}.' for run in runs for note in run.notes]
    table = Table(columns(runs, rows), 'all numbers and settings', folded=len(runs) == 1)
    return Section('Where it stands', [*blocks, *notes, table])


def _numbers(run: RunLog) -> dict[str, str]:
    """What tells where a run stands, as it is shown; a dash for what is not known."""
    return {
        'batches': number(run.batches),
        'planned': run.state.get('max_duration') or '-',
        'done': percent(share_done(run)),
        'tokens': number(_tokens(run)),
        'training loss': number(run.last(TRAIN_LOSS), 5),
        'evaluation loss, mean': number(_mean_loss(run), 5),
        'expected sparsity': percent(run.last(EXPECTED_SPARSITY)),
        'tokens per second': number(_speed(run)),
        'time so far': duration(_seconds(run)),
        'time left': duration(seconds_left(run)),
        'time in evaluation': percent(eval_time_share(run)),
        'state of': run.state.get('noted') or '-',
    }


def _cards(run: RunLog) -> list[Card]:
    """The numbers that are looked for first, as many as are known."""
    planned, losses, left = planned_tokens(run), loss_beside_source(run), seconds_left(run)
    before, after = ((run.state.get(key) or {}).get('parameters') for key in ('source', 'result'))
    numbers = _numbers(run) | {'parameters': number(after)}
    words = {
        'done': batches_of_plan(run),
        'evaluation loss, mean': '' if losses is None else f'source {losses[1]:.4f}',
        'training loss': NATS,
        'tokens': '' if planned is None else f'of {number(planned)}',
        'tokens per second': 'over all ranks',
        'time so far': '' if left is None else f'{duration(left)} left',
        'parameters': f'of {number(before)}' if before else '',
        'state of': '',
    }
    return [Card(name, numbers[name], below) for name, below in words.items() if numbers[name] != '-']


def _tokens(run: RunLog) -> float | None:
    found = run.tokens_at(np.array([run.batches]))
    return None if found is None else float(found[0])


def _mean_loss(run: RunLog) -> float | None:
    """Mean of the evaluators' last losses, at the last batch where all were measured; None without evaluations."""
    found = mean_loss(run.domain_losses())
    return None if found is None else float(found[1][-1])


def _seconds(run: RunLog) -> float | None:
    """Time since the run began, as noted, or as speed_monitor logs it (in hours unless it was told otherwise)."""
    hours = run.last(TOTAL_TIME)
    return run.state.get('seconds') or (None if hours is None else 3600 * hours)


def _speed(run: RunLog) -> float | None:
    """Tokens per second as logged, or over the whole run."""
    tokens, seconds = _tokens(run), _seconds(run)
    return run.last(TOKENS_PER_SECOND) or (tokens / seconds if tokens and seconds else None)


def source_and_result_section(runs: Sequence[RunLog]) -> Section | None:
    """Shape, parameters and losses of source and result next to each other."""
    blocks: list[Block] = [table for run in runs for table in _shape_table(run, runs)]
    losses = loss_table(runs)
    if len(losses) > 1:
        blocks.append(Table(losses, f'evaluation loss, {runs[0].loss_unit}'))
    return Section('Source beside result', blocks) if blocks else None


def _shape_table(run: RunLog, runs: Sequence[RunLog]) -> list[Table]:
    source, result = ((run.state.get(key) or {}) for key in ('source', 'result'))
    shapes = [
        run.pruning.get(f'{key}_shape') or model.get('shape') or {}
        for key, model in (('source', source), ('target', result))
    ]
    rows = [(key, shapes[0].get(key), shapes[1].get(key)) for key in TARGET_KEYS]
    rows.append(('parameters', source.get('parameters'), result.get('parameters')))
    rows.append(('share of the weights of the layers to remove', None, shapes[1].get('sparsity')))
    table = [
        [name, number(old), number(new), '-' if not old or new is None else f'{new / old:.3f}']
        for name, old, new in rows
        if old is not None or new is not None
    ]
    title = f'shape{"" if len(runs) == 1 else " of " + run.name}'
    return [Table([['', 'source', 'result', 'ratio'], *table], title)] if table else []
