"""Sections that every run has: loss, learning rates, throughput, evaluation's share of the time, the data mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmshearing.metrics.names import (
    EVAL_LOSS_METRIC,
    EVAL_SHARE,
    EVAL_TIME,
    LEARNING_RATE,
    TOKENS_PER_SECOND,
    TOTAL_TIME,
    TRAIN_LOSS,
    eval_loss_name,
    mixture_name,
)
from llmshearing.metrics.run_log import RunLog
from llmshearing.reports.blocks import Block, CurveSpec, Section, Table, curves, number, percent, series_lines, union
from llmshearing.reports.lines import Line
from llmshearing.reports.pruning_sections import sparsity_picture
from llmshearing.reports.svg import COLOURS, GREY

__all__ = ['eval_time_share', 'first_pictures', 'learning_rates', 'loss_table', 'mixture_section', 'training_section']

SHARE_LOGGERS = 'callback speed_monitor or dynamic_batch_loading'


def eval_time_share(run: RunLog) -> float | None:
    """Share of the time spent in evaluation: of the whole run where its times were logged, else a mean over rounds."""
    total, evaluation = run.last(TOTAL_TIME), run.last(EVAL_TIME)
    if total and evaluation is not None:
        return evaluation / total
    rounds = run.series(EVAL_SHARE)
    return None if rounds is None else float(rounds[1].mean())


def learning_rates(runs: Sequence[RunLog]) -> dict[str, str]:
    """Metrics that hold learning rates, with labels."""
    return {LEARNING_RATE + name: name for name in union(run.names(LEARNING_RATE) for run in runs)}


def first_pictures(runs: Sequence[RunLog]) -> list[Block]:
    """What is looked at first: losses of training and evaluation, and what is gone or, after pruning, the mixture."""
    evaluators = union(run.domain_losses() for run in runs)
    sources = _level_lines(runs, evaluators, 'source_losses', eval_loss_name)
    dotted, unit = '; dotted: the source' if sources else '', runs[0].loss_unit
    losses = {eval_loss_name(name): name for name in evaluators}
    table = {
        'loss': CurveSpec('training loss', 'Training loss.', {TRAIN_LOSS: 'loss'}, unit, smooth=True),
        'eval_loss': CurveSpec('evaluation loss', f'Evaluation loss of every evaluator{dotted}.', losses, unit),
    }
    if any(run.is_pruning for run in runs):
        return [*curves(runs, table, {'eval_loss': sources}), *sparsity_picture(runs)]
    return [*curves(runs, table | _weights(_domains(runs)), {'eval_loss': sources})]


def training_section(runs: Sequence[RunLog]) -> Section:
    """Learning rates, throughput and time in evaluation; what was not logged is named with what would log it."""
    speed, share = 'Tokens per second of training, over all ranks.', 'Share of the time in evaluation, by mixing round.'
    rates, speeds = learning_rates(runs), {TOKENS_PER_SECOND: 'tokens/s'}
    shares = {EVAL_SHARE: 'share of a mixing round'}
    table = {
        'learning_rate': CurveSpec('learning rates', 'Learning rates.', rates, 'learning rate', from_zero=True),
        'throughput': CurveSpec('throughput', speed, speeds, 'tokens per second', smooth=True, from_zero=True),
        'eval_share': CurveSpec('time in evaluation', share, shares, 'share of time', from_zero=True),
    }
    mixes = any(run.state.get('references') is not None for run in runs)
    by = 'dynamic_batch_loading logs it at the end of a mixing round' if mixes else SHARE_LOGGERS
    logged = {
        f'evaluation loss (eval_loader with the metric {EVAL_LOSS_METRIC})': any(run.domain_losses() for run in runs),
        'learning rates (callback lr_monitor)': bool(rates),
        'throughput (callback speed_monitor)': any(run.series(TOKENS_PER_SECOND) for run in runs),
        f'time in evaluation ({by})': any(eval_time_share(run) is not None for run in runs),
    }
    missing = [what for what, there in logged.items() if not there]
    blocks: list[Block] = [*curves(runs, table)]
    return Section('Training', blocks + ([f'Not logged: {"; ".join(missing)}.'] if missing else []))


def _domains(runs: Sequence[RunLog]) -> list[str]:
    return union(run.names(mixture_name('weight', '')) for run in runs)


def _weights(domains: Sequence[str]) -> dict[str, CurveSpec]:
    weights = {mixture_name('weight', name): name for name in domains}
    caption = 'Weight of every domain, from the update on.'
    return {'mixture_weights': CurveSpec('mixture weights', caption, weights, 'weight', steps=True, from_zero=True)}


def mixture_section(runs: Sequence[RunLog]) -> Section | None:
    """Mixture weights, domain losses against their references, gaps, data used and passes."""
    domains = _domains(runs)
    if not domains:
        return None

    def of(kind: str) -> dict[str, str]:
        return {mixture_name(kind, name): name for name in domains}

    gaps = series_lines(runs, of('gap'))
    more = {
        'domain_losses': _level_lines(runs, domains, 'references', lambda name: mixture_name('loss', name)),
        'domain_gaps': [Line('', gaps[0].x, 0 * gaps[0].x, GREY, ':')] if gaps else [],
    }
    losses, gap = 'Evaluation loss of every domain', 'Loss minus reference of every domain.'
    if gaps:
        losses += (
            '; dotted: its reference'
            if more['domain_losses']
            else '; not drawn: the references of so many, which the table below has'
        )
    used, passes = 'Share of every domain in the samples so far.', 'How often every domain has been gone through.'
    table = {
        **(_weights(domains) if any(run.is_pruning for run in runs) else {}),
        'domain_losses': CurveSpec('domain losses and their references', f'{losses}.', of('loss'), runs[0].loss_unit),
        'domain_gaps': CurveSpec('gaps to the reference', gap, of('gap'), runs[0].loss_unit),
        'data_shares': CurveSpec('data used', used, of('share'), 'share', from_zero=True),
        'passes': CurveSpec('passes through each domain', passes, of('passes'), 'passes', from_zero=True),
    }
    rows = [['domain', 'run', 'weight', 'loss', 'reference', 'gap', 'data used', 'passes']]
    for name in domains:
        for run in runs:
            last = {kind: run.last(mixture_name(kind, name)) for kind in ('weight', 'loss', 'share', 'passes')}
            reference = run.references.get(name)
            above = None if reference is None or last['loss'] is None else last['loss'] - reference
            cells = [number(last['weight']), number(last['loss'], 5), number(reference, 5), number(above, 3)]
            rows.append([name, run.name, *cells, percent(last['share']), number(last['passes'], 3)])
    text = (
        'Updated at the end of every mixing round from the evaluation losses. Gap: loss minus reference loss. Share: of'
        ' all samples served so far. Passes: how often a domain has been gone through.'
    )
    return Section('Data mixture', [text, *curves(runs, table, more), Table(rows)])


def _level_lines(runs: Sequence[RunLog], names: Sequence[str], levels: str, metric: Callable[[str], str]) -> list[Line]:
    """A level of every name as a dotted line over the first run that has both it and the metric.

    Levels are ``references`` or ``source_losses``. Lines have no label: the colour is the name's, and the caption says
    what dotted lines are. There is none of more names than colours: it could not be told whose it is.
    """
    lines = []
    if len(names) > len(COLOURS):
        return lines
    for i, name in enumerate(names):
        for run in runs:
            series = run.series(metric(name)) if name in getattr(run, levels) else None
            if series:
                x, y = series
                lines.append(Line('', x, 0 * y + getattr(run, levels)[name], COLOURS[i % len(COLOURS)], ':'))
                break
    return lines


def loss_table(runs: Sequence[RunLog]) -> list[list[str]]:
    """First and last loss per evaluator beside the source's and the reference; the header alone without any."""
    rows = [['evaluator', 'run', 'source', 'first', 'last', 'at batch', 'last - source', 'reference']]
    for name in union(run.domain_losses() for run in runs):
        for run in runs:
            found = run.domain_losses().get(name)
            if found is not None:
                (batches, losses), source = found, run.source_losses.get(name)
                above = '-' if source is None else f'{losses[-1] - source:+.4f}'
                places = [_places(source), _places(losses[0]), _places(losses[-1]), number(batches[-1])]
                rows.append([name, run.name, *places, above, _places(run.references.get(name))])
    return rows


def _places(value: float | None) -> str:
    return '-' if value is None else f'{value:.4f}'
