"""Sections that every run has: loss, learning rates, throughput, evaluation's share of the time, and the data
mixture."""

from __future__ import annotations

from collections.abc import Sequence

from llmshearing.metrics.run_log import RunLog
from llmshearing.reports.blocks import Section, Table, curve, number, percent, series_lines
from llmshearing.reports.drawing import COLOURS, DASHES, GREY, Line

TRAIN_LOSS = 'loss/train/total'
TOKENS_PER_SECOND = 'throughput/tokens_per_sec'
EVAL_SHARE = 'mixture/eval_share'


def eval_share(run: RunLog) -> float | None:
    """Share of the time spent in evaluation: of the whole run where its times were logged, else the mean over
    rounds."""
    total, evaluation = run.last('time/total'), run.last('time/val')
    if total and evaluation is not None:
        return evaluation / total
    rounds = run.series(EVAL_SHARE)
    return None if rounds is None else float(rounds[1].mean())


def learning_rates(runs: Sequence[RunLog]) -> dict[str, str]:
    """Metrics that hold learning rates, with labels."""
    names = list(dict.fromkeys(name for run in runs for name in run.names('lr-')))
    return {f'lr-{name}': name for name in names}


def training_section(runs: Sequence[RunLog]) -> Section:
    """Training and evaluation loss, learning rates, throughput, time in evaluation."""
    blocks: list = []
    blocks += curve(
        'loss',
        'training loss',
        'Training loss by batch.',
        series_lines(runs, {TRAIN_LOSS: 'loss'}, smooth=True),
        'nats per token',
    )
    domains = list(dict.fromkeys(name for run in runs for name in run.domain_losses()))
    blocks += curve(
        'eval_loss',
        'evaluation loss',
        'Evaluation loss of every evaluator by batch.',
        series_lines(runs, {f'metrics/eval/{name}/LanguageCrossEntropy': name for name in domains}),
        'nats per token',
    )
    missing = [] if domains else ['evaluation loss (eval_loader with the metric LanguageCrossEntropy)']
    rates = learning_rates(runs)
    blocks += curve(
        'learning_rate', 'learning rates', 'Learning rates by batch.', series_lines(runs, rates), 'learning rate', True
    )
    if not rates:
        missing.append('learning rates (callback lr_monitor)')
    speed = series_lines(runs, {TOKENS_PER_SECOND: 'tokens per second'}, smooth=True)
    blocks += curve(
        'throughput', 'throughput', 'Tokens per second of training, over all ranks.', speed, 'tokens per second', True
    )
    if not speed:
        missing.append('throughput (callback speed_monitor)')
    shares = series_lines(runs, {EVAL_SHARE: 'share of a mixing round'})
    blocks += curve(
        'eval_share',
        'time in evaluation',
        'Share of the time that went to evaluation, by mixing round.',
        shares,
        'share of time',
        True,
    )
    if all(eval_share(run) is None for run in runs):
        missing.append('time in evaluation (callback speed_monitor or dynamic_batch_loading)')
    if missing:
        blocks.append(f'Not logged: {"; ".join(missing)}.')
    return Section('Training', blocks)


def _domains(runs: Sequence[RunLog]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.names('mixture/weight/')))


def mixture_section(runs: Sequence[RunLog]) -> Section | None:
    """Mixture weights, domain losses against their references, gaps, data used and passes."""
    domains = _domains(runs)
    if not domains:
        return None
    blocks: list = [
        'Updated at the end of every mixing round from the evaluation losses. Gap: loss minus reference loss. Share: of'
        ' all samples served so far. Passes: how often a domain has been gone through.'
    ]

    def by_domain(kind: str) -> dict[str, str]:
        return {f'mixture/{kind}/{name}': name for name in domains}

    blocks += curve(
        'mixture_weights',
        'mixture weights',
        'Weight of every domain, from the update on.',
        series_lines(runs, by_domain('weight'), steps=True),
        'weight',
        True,
    )
    lines = series_lines(runs, by_domain('loss'))
    blocks += curve(
        'domain_losses',
        'domain losses and their references',
        'Evaluation loss of every domain by batch; dotted: its reference loss.',
        lines + _reference_lines(runs, domains),
        'nats per token',
    )
    gaps = series_lines(runs, by_domain('gap'))
    blocks += curve(
        'domain_gaps',
        'gaps to the reference',
        'Loss minus reference loss of every domain by batch.',
        gaps + _zero_line(gaps),
        'nats per token',
    )
    blocks += curve(
        'data_shares',
        'data used',
        'Share of every domain in the samples served so far.',
        series_lines(runs, by_domain('share')),
        'share',
        True,
    )
    blocks += curve(
        'passes',
        'passes through each domain',
        'How often every domain has been gone through.',
        series_lines(runs, by_domain('passes')),
        'passes',
        True,
    )
    rows = [['domain', 'run', 'weight', 'loss', 'reference', 'gap', 'data used', 'passes']]
    for name in domains:
        for run in runs:
            value = {kind: run.last(f'mixture/{kind}/{name}') for kind in ('weight', 'loss', 'share', 'passes')}
            reference = run.references.get(name)
            gap = None if reference is None or value['loss'] is None else value['loss'] - reference
            rows.append(
                [
                    name,
                    run.name,
                    number(value['weight']),
                    number(value['loss'], 5),
                    number(reference, 5),
                    number(gap, 3),
                    percent(value['share']),
                    number(value['passes'], 3),
                ]
            )
    blocks.append(Table(rows))
    return Section('Data mixture', blocks)


def _reference_lines(runs: Sequence[RunLog], domains: Sequence[str]) -> list[Line]:
    """The reference of every domain as a dotted line over the first run that has both it and a loss."""
    lines = []
    for i, name in enumerate(domains):
        run = next((run for run in runs if name in run.references and run.series(f'mixture/loss/{name}')), None)
        if run is not None:
            x, y = run.series(f'mixture/loss/{name}')
            # Without a label: the colour is the domain's, and the caption says what dotted lines are.
            lines.append(Line('', x, 0 * y + run.references[name], COLOURS[i % len(COLOURS)], ':'))
    return lines


def _zero_line(lines: Sequence[Line]) -> list[Line]:
    return [Line('', lines[0].x, 0 * lines[0].x, GREY, DASHES[-1])] if lines else []


def last_losses(runs: Sequence[RunLog]) -> list[list[str]]:
    """Table of first and last evaluation loss per evaluator beside the reference; only the header without
    evaluations."""
    names = list(dict.fromkeys(name for run in runs for name in run.domain_losses()))
    rows = [['evaluator', 'run', 'first', 'at batch', 'last', 'at batch', 'reference']]
    for name in names:
        for run in runs:
            found = run.domain_losses().get(name)
            if found is not None:
                (batches, losses), reference = found, run.references.get(name)
                rows.append(
                    [
                        name,
                        run.name,
                        f'{losses[0]:.4f}',
                        number(batches[0]),
                        f'{losses[-1]:.4f}',
                        number(batches[-1]),
                        '-' if reference is None else f'{reference:.4f}',
                    ]
                )
    return rows
