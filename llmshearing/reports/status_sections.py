"""The first sections of a page: where the run stands, how it will end, and the source beside the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmshearing.metrics.run_log import RunLog
from llmshearing.models.shapes import TARGET_KEYS
from llmshearing.reports.blocks import Picture, Section, Table, columns, curve, label, number, percent
from llmshearing.reports.drawing import COLOURS, GREY, Line, bar_panel
from llmshearing.reports.projection import LAW_NAMES, find_law, last_mean_loss, planned_tokens, project
from llmshearing.reports.training_sections import TOKENS_PER_SECOND, TRAIN_LOSS, eval_share, last_losses, learning_rates

MODEL_NAMES = {
    'source': 'source',
    'pruned': 'pruned, as exported',
    'continued': 'pruned, then continued',
    'scratch': 'same shape from random weights',
}


def status_section(runs: Sequence[RunLog]) -> Section:
    """How far the run is, and its latest numbers."""

    def over_runs(value) -> list[str]:
        return [value(run) for run in runs]

    def tokens(run: RunLog) -> float | None:
        found = run.tokens_at(np.array([run.batches]))
        return None if found is None else float(found[0])

    rows = [
        ('batches', over_runs(lambda run: number(run.batches))),
        ('planned', over_runs(lambda run: run.state.get('max_duration') or '-')),
        ('done', over_runs(lambda run: percent(run.state.get('elapsed_share')))),
        ('tokens', over_runs(lambda run: number(tokens(run)))),
        ('training loss', over_runs(lambda run: number(run.last(TRAIN_LOSS), 5))),
        ('evaluation loss, mean', over_runs(lambda run: number(last_mean_loss(run), 5))),
        ('expected sparsity', over_runs(lambda run: percent(run.last('pruning/expected_sparsity')))),
        ('tokens per second', over_runs(lambda run: number(run.last(TOKENS_PER_SECOND)))),
        ('time in evaluation', over_runs(lambda run: percent(eval_share(run)))),
        *(
            (f'learning rate, {text}', over_runs(lambda run, metric=metric: number(run.last(metric))))
            for metric, text in learning_rates(runs).items()
        ),
    ]
    notes = [f'{run.name}: {note}.' if len(runs) > 1 else f'{note}.' for run in runs for note in run.notes]
    return Section('Where it stands', [Table(columns(runs, rows)), *notes])


def projection_section(runs: Sequence[RunLog], law: Path | None) -> Section | None:
    """Loss at the planned end by the budget law, for runs after pruning."""
    runs = [run for run in runs if not run.is_pruning]
    if not runs:
        return None
    paths = {run.name: law or find_law(run.path.parent) for run in runs}
    if not any(paths.values()):
        return Section(
            'Projected end',
            [
                f'No budget law: none of {", ".join(LAW_NAMES)} lies beside the metrics, and --law was not '
                'given. `llmshearing budget fit` makes one from earlier runs.'
            ],
        )
    rows, lines, remarks = [], [], []
    for i, run in enumerate(run for run in runs if paths[run.name]):
        try:
            found = project(run, paths[run.name])
        except ValueError as error:
            remarks.append(f'No projection of {run.name}: {error}.')
            continue
        if planned_tokens(run) is None:
            remarks.append(
                f'Nothing tells when {run.name} is to end, so the law is shown at its last evaluation; the '
                'callback run_report notes the plan.'
            )
        colour = COLOURS[i % len(COLOURS)]
        lines.append(Line(label(run, runs, 'measured'), found.curve.tokens, found.curve.losses, colour))
        lines.append(Line(label(run, runs, 'law'), found.tokens, found.law, GREY if len(runs) == 1 else colour, '--'))
        rows.append(
            [
                run.name,
                number(found.planned_tokens),
                f'{found.curve.losses[-1]:.4f}',
                f'{found.end:.4f}',
                f'{found.shifted_end:.4f}',
                f'{found.curve.source_loss:.4f}',
                f'x{found.extrapolation:.3g}',
            ]
        )
    header = [
        'run',
        'planned tokens',
        'measured last',
        'projected end',
        'from the last measurement',
        'source',
        'extrapolation',
    ]
    pictures = curve(
        'projection',
        'loss by tokens after pruning',
        'Mean evaluation loss, and what the law says, by tokens.',
        lines,
        'nats per token',
        x_label='tokens',
    )
    text = (
        'The P2 law at the planned number of tokens; and the last measurement plus the fall that the law still'
        " promises. The extrapolation factor says how far outside the law's own runs this is."
    )
    return Section('Projected end', [text, *pictures, Table([header, *rows]), *remarks] if rows else remarks)


def source_and_result_section(runs: Sequence[RunLog]) -> Section | None:
    """Shape, parameters, losses and speed of source and result next to each other."""
    blocks: list = []
    for run in runs:
        blocks += _shape_table(run, runs)
    losses = last_losses(runs)
    if len(losses) > 1:
        blocks.append(Table(losses, 'evaluation loss, nats per token'))
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
    rows = [row for row in rows if row[1] is not None or row[2] is not None]
    if not rows:
        return []
    table = [['', 'source', 'result', 'ratio']]
    for name, old, new in rows:
        table.append([name, number(old), number(new), '-' if not old or new is None else f'{new / old:.3f}'])
    return [Table(table, f'shape{"" if len(runs) == 1 else " of " + run.name}')]


def measured_section(measured: dict) -> Section | None:
    """What was measured on the finished models: losses, sizes and speeds of source and result."""
    blocks: list = []
    losses = measured.get('losses') or {}
    models = [name for name in MODEL_NAMES if name in losses]
    if models:
        domains = list(losses[models[0]])
        bars = {MODEL_NAMES[name]: [losses[name].get(domain, float('nan')) for domain in domains] for name in models}
        blocks.append(
            Picture(
                'models',
                'Held-out loss of source and results, per domain.',
                bar_panel('held-out loss', domains, bars, 'nats per token'),
            )
        )
        blocks.append(
            Table(
                [
                    ['held-out loss', *bars],
                    *([domain, *(f'{values[i]:.3f}' for values in bars.values())] for i, domain in enumerate(domains)),
                ]
            )
        )
    facts = measured.get('models') or {}
    if 'source' in facts and 'result' in facts:
        keys = [
            key
            for key, value in facts['source'].items()
            if isinstance(value, (int, float)) and facts['result'].get(key)
        ]
        blocks.append(
            Table(
                [
                    ['measured on this machine', 'source', 'result', 'ratio'],
                    *(
                        [
                            key.replace('_', ' '),
                            number(facts['source'][key]),
                            number(facts['result'][key]),
                            f'{facts["result"][key] / facts["source"][key]:.2f}' if facts['source'][key] else '-',
                        ]
                        for key in keys
                    ),
                ]
            )
        )
    return Section('Measured on the finished models', blocks) if blocks else None
