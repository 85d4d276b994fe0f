"""Sections of a pruning run: counts against their targets, what the constraints cost, which units stay."""

from __future__ import annotations

from collections.abc import Sequence

from llmshearing.metrics.names import EXPECTED_SPARSITY, PRUNING
from llmshearing.metrics.run_log import RunLog
from llmshearing.reports import kept
from llmshearing.reports.blocks import (
    Block,
    CurveSpec,
    Picture,
    Section,
    Table,
    columns,
    curve,
    curves,
    label,
    number,
    percent,
    union,
)
from llmshearing.reports.heat import heat_panel
from llmshearing.reports.lines import DASHES, Line
from llmshearing.reports.svg import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION

__all__ = ['constraints_section', 'counts_section', 'masks_section', 'sparsity_picture']

# In the order of drawing: what is asked for stays visible on top of what is reached.
COUNT_STYLES = {'expected': (BLUE, 3.0), 'hard': (ORANGE, 1.6), 'target': (BLACK, 1.6)}
TARGET_COLOURS = (BLACK, VERMILION, GREEN, PURPLE)  # by run: targets are dotted in all of them
COUNT_LABELS = {'target': 'target by now', 'expected': 'expected', 'hard': 'hard (above 1/2)'}


def sparsity_picture(runs: Sequence[RunLog]) -> list[Picture]:
    """How much is gone by now."""
    caption = 'Expected overall sparsity, from the product of all masks.'
    metrics = {EXPECTED_SPARSITY: 'expected', f'{PRUNING}sparsity/target': 'target'}
    return curves(runs, {'sparsity': CurveSpec("share of the layers' weights removed", caption, metrics, 'share')})


def counts_section(runs: Sequence[RunLog]) -> Section | None:
    """Target, expected and hard count of every axis over the batches, and where they are now."""
    axes = union((name.split('/')[0] for name in run.names(PRUNING, '/expected')) for run in runs)
    if not axes:
        return None
    pictures: list[Picture] = []
    rows = [['axis', 'run', 'source', 'final target', 'target now', 'expected', 'hard', 'expected / target']]
    for axis in axes:
        lines = []
        for run_dash, target_colour, run in zip(DASHES, TARGET_COLOURS, runs):
            for kind, (colour, width) in COUNT_STYLES.items():
                found = run.series(f'{PRUNING}{axis}/{kind}')
                if found is not None:
                    dash, colour = (':', target_colour) if kind == 'target' else (run_dash, colour)
                    lines.append(Line(label(run, runs, COUNT_LABELS[kind]), *found, colour, dash, width=width))
            report = next((report for report in run.pruning.get('axes', []) if report['axis'] == axis), {})
            now = {kind: run.last(f'{PRUNING}{axis}/{kind}') for kind in COUNT_LABELS}
            ratio = now['expected'] / now['target'] if now['expected'] is not None and now['target'] else None
            ends = [number(report.get('units')), number(report.get('target'))]
            rows.append([axis, run.name, *ends, *map(number, now.values()), percent(ratio)])
        title, caption = f'{axis}: units kept per row', f'Target, expected and hard count of {axis}.'
        pictures += curve(f'counts_{axis}', title, caption, lines, 'units', whole=True)
    text = (
        "A row is the hidden vector, the layers, or one layer's KV groups, heads or intermediate dimensions. Expected:"
        ' what the masks keep, mean over rows. Hard: masks above one half. Masks are done when both meet the target.'
    )
    return Section('Target, expected and hard counts', [text, *pictures, Table(rows)])


def constraints_section(runs: Sequence[RunLog]) -> Section | None:
    """Penalty and multipliers of the Lagrangian constraints."""
    names = union(run.names(PRUNING, '/lambda') for run in runs)
    if not names:
        return None

    def of(kind: str) -> dict[str, str]:
        return {f'{PRUNING}{name}/{kind}': name for name in names}

    penalties = {f'{PRUNING}penalty': 'sum'} | of('penalty')
    table = {'penalty': CurveSpec('penalty', 'Penalty of all constraints and of each.', penalties, 'nats')}
    for kind in ('lambda', 'phi'):
        caption = f'Multiplier {kind} of every constraint.'
        table[f'multipliers_{kind}'] = CurveSpec(f'multiplier {kind}', caption, of(kind), kind)
    metrics = {f'{PRUNING}penalty': 'penalty, all'}
    for kind in ('penalty', 'lambda', 'phi'):
        metrics |= {metric: f'{kind} of {name}' for metric, name in of(kind).items()}
    last = {text: [number(run.last(metric)) for run in runs] for metric, text in metrics.items()}
    text = (
        'The penalty is what the constraints add to the loss; the multipliers lambda (linear) and phi (quadratic) rise '
        'while a gap to the target stays open.'
    )
    values = Table(columns(runs, last), 'last values', folded=True)
    return Section('Penalty and multipliers', [text, *curves(runs, table), values])


def masks_section(runs: Sequence[RunLog]) -> Section | None:
    """Masks per layer as heat maps, and lists of the kept layers, heads and dimensions."""
    blocks: list[Block] = []
    for number_of_run, run in enumerate(runs, 1):
        if run.pruning.get('kept'):
            place = f'_{number_of_run}' if len(runs) > 1 else ''
            name = f' ({run.name})' if len(runs) > 1 else ''
            blocks += [*_maps(run, name, place), *_lists(run, name)]
    if not blocks:
        return None
    text = '1 is kept, 0 is removed; dots mark the heads that stay. Units are numbered as in the source.'
    return Section('Masks, and what is kept', [text, *blocks])


def _maps(run: RunLog, name: str, place: str) -> list[Picture]:
    record, what = run.pruning, kept.meaning(run.pruning)
    decided = bool(run.exported or run.state.get('exported'))
    removed = kept.removed_layers(record, decided)
    values, names = kept.layer_map(record)
    pictures = [
        Picture(
            f'masks_layers{place}',
            f'Layers at a glance{name}: {what}; of the parts, the mean over their units.',
            heat_panel(f'masks per layer{name}', values, '', 'layer', names, removed=removed),
        )
    ]
    for part in kept.pruned_parts(record):
        title, wide = kept.PART_NAMES[part], part == 'intermediate'
        unit = 'run of dimensions' if wide else title.removesuffix('s')
        caption = f'{what}, mean over neighbouring dimensions' if wide else what
        dots = None if wide else kept.kept_matrix(record, part) > 0
        panel = heat_panel(f'{title}{name}', kept.part_map(record, part), unit, 'layer', dots=dots, removed=removed)
        pictures.append(
            Picture(f'masks_{part}{place}', f'{title[0].upper()}{title[1:]} of every layer{name}: {caption}.', panel)
        )
    if all(axis['axis'] != 'hidden' for axis in record['axes']):
        return pictures
    values = kept.hidden_map(record)
    across, down = f'dimension modulo {values.shape[1]}', f'dimension / {values.shape[1]}'
    panel = heat_panel(f'hidden dimensions{name}', values, across, down)
    return [*pictures, Picture(f'masks_hidden{place}', f'Hidden dimensions, row by row{name}: {what}.', panel)]


def _lists(run: RunLog, name: str) -> list[Block]:
    record = run.pruning
    layers, total = kept.kept_layers(record), record['source_shape']['num_hidden_layers']
    gone, hidden = kept.removed_layers(record, decided=True), kept.kept_hidden(record)
    sizes = [len(kept.kept_part(record, layer, 'intermediate')) for layer in layers]
    cells = dict.fromkeys(gone, ['removed'] * 3)
    for layer, size in zip(layers, sizes):
        heads = (kept.ranges(kept.kept_part(record, layer, part)) for part in ('kv_heads', 'heads'))
        cells[layer] = [*heads, f'{size:,}']
    rows = [['layer', 'KV heads', 'heads', 'intermediate dimensions']]
    rows += [[str(layer), *cells[layer]] for layer in range(total)]
    at = f' at batch {record["batches"]}' if record.get('batches') is not None else ''
    text = f'No layer is kept{name}.'
    if layers:
        text = (
            f'Kept layers{name}{at}: {kept.ranges(layers)} ({len(layers)} of {total}; removed: {kept.ranges(gone)}). '
            f'Hidden dimensions: {len(hidden):,} of {record["source_shape"]["hidden_size"]:,}. '
            f'Intermediate dimensions per kept layer: {min(sizes):,} to {max(sizes):,}.'
        )
    dimensions = [['kept hidden dimensions'], [kept.ranges(hidden)]]
    return [
        text,
        Table(rows, f'kept heads and dimensions of every layer{name}', folded=True),
        Table(dimensions, f'kept hidden dimensions{name}', folded=True),
    ]
