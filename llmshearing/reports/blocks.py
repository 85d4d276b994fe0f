"""What a page is made of: sections of text, tables and pictures, still without a word of HTML.

Sections are built from one or two runs that stand side by side (the second is the one compared with), so every builder
takes a list of runs; a value that a run does not have is shown as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmshearing.metrics.run_log import RunLog
from llmshearing.reports.lines import DASHES, Line, line_panel, smoothed
from llmshearing.reports.svg import COLOURS

__all__ = [
    'Block',
    'Card',
    'Code',
    'CurveSpec',
    'Picture',
    'Section',
    'Table',
    'Verdict',
    'columns',
    'curve',
    'curves',
    'duration',
    'label',
    'number',
    'percent',
    'series_lines',
    'union',
]

SMOOTH_FROM = 200  # points from which a noisy series is drawn with its running mean


@dataclass(frozen=True)
class Verdict:
    """How a run stands, in a sentence, and what to do next; the mood is ``good``, ``open``, ``bad`` or empty.

    From the Unix time ``due`` on, whoever opens the page also reads ``overdue``.
    """

    first: str
    rest: str = ''
    mood: str = ''
    due: float | None = None
    overdue: str = ''


@dataclass(frozen=True)
class Card:
    """One number that is looked for first: its name, the value, and a few words below it."""

    name: str
    value: str
    more: str = ''


@dataclass(frozen=True)
class Table:
    """A table; the first row is the header. ``folded`` tables are opened by a click, under their title."""

    rows: list[list[str]]
    title: str = ''
    folded: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture: name of its file without the ending, what it shows in words, and the SVG."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is."""

    text: str


@dataclass(frozen=True)
class CurveSpec:
    """What :func:`curves` draws in a picture: labels are by metric; how it is drawn as in :func:`series_lines`."""

    title: str
    caption: str
    labels: Mapping[str, str]
    y_label: str
    smooth: bool = False
    steps: bool = False
    from_zero: bool = False


Block = str | Verdict | Card | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: strings are paragraphs, pictures and cards in a row stand side by side."""

    title: str
    blocks: list[Block]


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table: thousands separated, ``digits`` significant ones; a dash for None."""
    if value is None:
        return '-'
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f'{int(value):,}'
    if abs(value) >= 10**digits:
        return f'{value:,.0f}'
    return f'{value:.{digits}g}'


def percent(value: float | None) -> str:
    """A share for a table."""
    return '-' if value is None else f'{100 * value:.1f} %'


def duration(seconds: float | None) -> str:
    """``3725`` as ``1 h 02 min``."""
    if seconds is None:
        return '-'
    if seconds < 60:
        return f'{seconds:.1f} s' if seconds < 10 else f'{seconds:.0f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {rest:02d} s'
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes:02d} min' if hours < 48 else f'{hours // 24} days {hours % 24} h'


def union(names: Iterable[Iterable[str]]) -> list[str]:
    """Names of several runs, each once, in the order in which they come."""
    return list(dict.fromkeys(name for of_run in names for name in of_run))


def columns(runs: Sequence[RunLog], rows: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Rows of a table with one column per run; rows that are dashes throughout are left out."""
    kept = [[name, *values] for name, values in rows.items() if any(value != '-' for value in values)]
    return [['', *(run.name for run in runs)], *kept]


def label(run: RunLog, runs: Sequence[RunLog], text: str) -> str:
    """Legend of a line: with the run's name where there are several."""
    return f'{run.name}: {text}' if len(runs) > 1 else text


def series_lines(
    runs: Sequence[RunLog], metrics: Mapping[str, str], smooth: bool = False, steps: bool = False
) -> list[Line]:
    """Lines of several metrics for every run: a colour per metric, and a dash per run or, of one run, per metric.

    Args:
        runs (Sequence[RunLog]): The runs, at most as many as there are dashes.
        metrics (Mapping[str, str]): Metric to its label.
        smooth (bool): Draw long series faintly, and their running mean over them.
        steps (bool): Whether a value holds until the next one.
    """
    lines = []
    for number_of_run, (dash, run) in enumerate(zip(DASHES, runs)):
        for number_of_metric, (metric, text) in enumerate(metrics.items()):
            found = run.series(metric)
            if found is None:
                continue
            x, y = found
            colour = COLOURS[(number_of_metric if len(metrics) > 1 else number_of_run) % len(COLOURS)]
            name = label(run, runs, text)
            if smooth and len(x) >= SMOOTH_FROM:
                lines.append(Line('', x, y, colour, '-', faint=True))
                y = smoothed(y)
                name += ' (running mean)'
            of_metric = list(DASHES)[number_of_metric % 3]
            lines.append(Line(name, x, y, colour, dash if len(runs) > 1 else of_metric, steps))
    return lines


def curve(name: str, title: str, caption: str, lines: Sequence[Line], y_label: str, **more: Any) -> list[Picture]:
    """A picture of lines in a list, empty where there is nothing finite to draw; ``more`` is for the panel."""
    drawn = [line for line in lines if np.isfinite(line.y).any()]
    return [Picture(name, caption, line_panel(title, drawn, y_label, **more))] if drawn else []


def curves(
    runs: Sequence[RunLog], table: Mapping[str, CurveSpec], more: Mapping[str, Sequence[Line]] | None = None
) -> list[Picture]:
    """Pictures from a table by their names; ``more`` are lines to add to a picture, by its name."""
    pictures = []
    for name, spec in table.items():
        lines = series_lines(runs, spec.labels, spec.smooth, spec.steps)
        if lines:
            lines += (more or {}).get(name, ())
            pictures += curve(name, spec.title, spec.caption, lines, spec.y_label, from_zero=spec.from_zero)
    return pictures
