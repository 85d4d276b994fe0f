"""Sections of a pruning run: counts against their targets, what the constraints cost, which units stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmshearing.metrics.run_log import RunLog
from llmshearing.reports import kept
from llmshearing.reports.blocks import Picture, Section, Table, columns, curve, label, number, percent, series_lines
from llmshearing.reports.drawing import BLACK, BLUE, DASHES, ORANGE, Line, heat_panel

PREFIX = 'pruning/'
# In the order of drawing: what is asked for stays visible on top of what is reached.
COUNT_STYLES = {'expected': (BLUE, 2.6), 'hard': (ORANGE, 1.3), 'target': (BLACK, 1.3)}
COUNT_LABELS = {'target': 'target by now', 'expected': 'expected', 'hard': 'hard (above 1/2)'}


def axes_of(runs: Sequence[RunLog]) -> list[str]:
    """Axes with counts in any of the logs."""
    found = [name.split('/')[0] for run in runs for name in run.names(PREFIX, '/expected')]
    return list(dict.fromkeys(found))


def counts_section(runs: Sequence[RunLog]) -> Section | None:
    """Target, expected and hard count of every axis over the batches, and where they are now."""
    axes = axes_of(runs)
    if not axes:
        return None
    pictures: list[Picture] = []
    for axis in axes:
        lines = []
        for run_dash, run in zip(DASHES, runs):
            for kind, (colour, width) in COUNT_STYLES.items():
                found = run.series(f'{PREFIX}{axis}/{kind}')
                if found is not None:
                    dash = ':' if kind == 'target' else run_dash
                    lines.append(Line(label(run, runs, COUNT_LABELS[kind]), *found, colour, dash, width=width))
        pictures += curve(
            f'counts_{axis}',
            f'{axis}: units kept per row',
            f'Target, expected and hard count of {axis} by batch.',
            lines,
            'units',
        )
    pictures += curve(
        'sparsity',
        "share of the layers' weights removed",
        'Expected overall sparsity by batch, from the product of all scores.',
        series_lines(runs, {f'{PREFIX}expected_sparsity': 'expected', f'{PREFIX}sparsity/target': 'target'}),
        'share',
    )
    rows = [['axis', 'run', 'source', 'final target', 'target now', 'expected', 'hard', 'expected / target']]
    for axis in axes:
        for run in runs:
            report = next((r for r in run.pruning.get('axes', []) if r['axis'] == axis), {})
            now = {kind: run.last(f'{PREFIX}{axis}/{kind}') for kind in COUNT_LABELS}
            ratio = now['expected'] / now['target'] if now['expected'] is not None and now['target'] else None
            rows.append(
                [
                    axis,
                    run.name,
                    number(report.get('units')),
                    number(report.get('target')),
                    *(number(now[kind]) for kind in COUNT_LABELS),
                    percent(ratio),
                ]
            )
    text = (
        "A row is the hidden vector, the layers, or one layer's KV groups, heads or intermediate dimensions. Expected:"
        ' sum of P(z > 0), mean over rows. Hard: gates above one half. Training is done when both meet the target.'
    )
    return Section('Target, expected and hard counts', [text, *pictures, Table(rows)])


def constraints_section(runs: Sequence[RunLog]) -> Section | None:
    """Penalty and multipliers of the Lagrangian constraints."""
    names = list(dict.fromkeys(name for run in runs for name in run.names(PREFIX, '/lambda')))
    if not names:
        return None
    blocks: list = [
        'The penalty is what the constraints add to the loss; the multipliers lambda (linear) and phi (quadratic) rise '
        'while a gap to the target stays open.'
    ]
    total = {f'{PREFIX}penalty': 'sum'}
    blocks += curve(
        'penalty',
        'penalty',
        'Penalty of all constraints and of each by batch.',
        series_lines(runs, total | {f'{PREFIX}{name}/penalty': name for name in names}),
        'nats',
    )
    for kind in ('lambda', 'phi'):
        blocks += curve(
            f'multipliers_{kind}',
            f'multiplier {kind}',
            f'Multiplier {kind} of every constraint by batch.',
            series_lines(runs, {f'{PREFIX}{name}/{kind}': name for name in names}),
            kind,
        )
    rows = [
        (f'{kind} of {name}', [number(run.last(f'{PREFIX}{name}/{kind}')) for run in runs])
        for name in names
        for kind in ('penalty', 'lambda', 'phi')
    ]
    blocks.append(
        Table(
            columns(runs, [('penalty, all', [number(run.last(f'{PREFIX}penalty')) for run in runs]), *rows]),
            'last values',
            folded=True,
        )
    )
    return Section('Penalty and multipliers', blocks)


def masks_section(runs: Sequence[RunLog]) -> Section | None:
    """Masks per layer as heat maps, and lists of the kept layers, heads and dimensions."""
    with_masks = [run for run in runs if run.pruning.get('kept')]
    if not with_masks:
        return None
    blocks: list = [
        '1 is kept, 0 is removed; grey: nothing is known. Dots mark the heads that stay. Units are numbered as in the '
        'source.'
    ]
    for run in with_masks:
        record = run.pruning
        live = 'keep_probability' in record
        what = 'probability of being kept' if live else 'kept in the exported model'
        end = f' ({run.name})' if len(runs) > 1 else ''
        suffix = f'_{runs.index(run) + 1}' if len(runs) > 1 else ''
        values, names = kept.layer_map(record)
        blocks.append(
            Picture(
                f'masks_layers{suffix}',
                f'Masks per layer{end}: {what}, mean over the units of each part.',
                heat_panel(f'masks per layer{end}', values, '', 'layer', names),
            )
        )
        for part in kept.pruned_parts(record):
            values = kept.part_map(record, part)
            dots = kept.kept_matrix(record, part) > 0 if part != 'intermediate' else None
            unit = (
                'run of dimensions, in their order'
                if part == 'intermediate'
                else kept.PART_NAMES[part].removesuffix('s')
            )
            blocks.append(
                Picture(
                    f'masks_{part}{suffix}',
                    f'{kept.PART_NAMES[part]} of every layer{end}: {what}.',
                    heat_panel(f'{kept.PART_NAMES[part]}{end}', values, unit, 'layer', dots=dots),
                )
            )
        blocks.append(
            Picture(
                f'masks_hidden{suffix}',
                f'Hidden dimensions, row by row{end}: {what}.',
                heat_panel(
                    f'hidden dimensions{end}',
                    values := kept.hidden_map(record),
                    f'dimension modulo {values.shape[1]}',
                    f'dimension / {values.shape[1]}',
                ),
            )
        )
        blocks += _lists(run, end)
    return Section('Masks, and what is kept', blocks)


def _lists(run: RunLog, end: str) -> list:
    record = run.pruning
    layers, total = kept.kept_layers(record), record['source_shape']['num_hidden_layers']
    gone = sorted(set(range(total)) - set(layers))
    hidden = kept.kept_hidden(record)
    rows = [['layer', 'KV heads', 'heads', 'intermediate dimensions']]
    for layer in range(total):
        if layer in gone:
            rows.append([str(layer), 'removed', 'removed', 'removed'])
            continue
        wide = kept.kept_part(record, layer, 'intermediate')
        rows.append(
            [
                str(layer),
                kept.ranges(kept.kept_part(record, layer, 'kv_heads')),
                kept.ranges(kept.kept_part(record, layer, 'heads')),
                f'{len(wide):,}',
            ]
        )
    sizes = np.array([len(kept.kept_part(record, layer, 'intermediate')) for layer in layers])
    at = record.get('batches')
    return [
        (
            f'Kept layers{end}{f" at batch {at}" if at is not None else ""}: {kept.ranges(layers)} ({len(layers)} of'
            f' {total}; removed: {kept.ranges(gone)}). Hidden dimensions: {len(hidden):,} of'
            f' {record["source_shape"]["hidden_size"]:,}. Intermediate dimensions per kept layer: {sizes.min():,} to'
            f' {sizes.max():,}.'
            if len(sizes)
            else f'No layer is kept{end}.'
        ),
        Table(rows, f'kept heads and dimensions of every layer{end}', folded=True),
        Table([['kept hidden dimensions'], [kept.ranges(hidden)]], f'kept hidden dimensions{end}', folded=True),
    ]
