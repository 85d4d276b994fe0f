"""What a page is made of: sections of text, tables and pictures, still without a word of HTML.

Sections are built from one or two runs that stand side by side (the second is the one compared with), so every builder
takes a list of runs; a value that a run does not have is shown as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmshearing.metrics.run_log import RunLog
from llmshearing.reports.drawing import COLOURS, DASHES, MARKERS, Line, line_panel, smoothed

SMOOTH_FROM = 200  # points from which a noisy series is drawn with its running mean


@dataclass(frozen=True)
class Table:
    """A table; the first row is the header. ``folded`` tables are opened by a click, under their title."""

    rows: list[list[str]]
    title: str = ''
    folded: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture: name of its file without the ending, what it shows in words, and the PNG."""

    name: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: strings are paragraphs, pictures in a row stand side by side."""

    title: str
    blocks: list[str | Table | Picture]


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


def columns(runs: Sequence[RunLog], rows: Sequence[tuple[str, Sequence[str]]]) -> list[list[str]]:
    """Rows of a table with one column per run; rows that are dashes throughout are left out."""
    kept = [[name, *values] for name, values in rows if any(value != '-' for value in values)]
    return [['', *(run.name for run in runs)], *kept]


def label(run: RunLog, runs: Sequence[RunLog], text: str) -> str:
    """Legend of a line: with the run's name where there are several."""
    return f'{run.name}: {text}' if len(runs) > 1 else text


def series_lines(
    runs: Sequence[RunLog], metrics: dict[str, str], smooth: bool = False, steps: bool = False
) -> list[Line]:
    """Lines of several metrics for every run: a colour and a marker per metric, a dash per run.

    Args:
        runs: The runs, at most as many as there are dashes.
        metrics: Metric to its label.
        smooth: Draw long series faintly, and their running mean over them.
        steps: Whether a value holds until the next one.
    """
    lines = []
    for dash, run in zip(DASHES, runs):
        for i, (metric, text) in enumerate(metrics.items()):
            found = run.series(metric)
            if found is None:
                continue
            x, y = found
            colour = COLOURS[i % len(COLOURS)]
            if len(metrics) == 1 and len(runs) > 1:
                colour = COLOURS[runs.index(run) % len(COLOURS)]
            name = label(run, runs, text)
            if smooth and len(x) >= SMOOTH_FROM:
                lines.append(Line('', x, y, colour, '-', faint=True))
                y = smoothed(y)
                name += ' (running mean)'
            marker = MARKERS[i % len(MARKERS)] if len(metrics) > 1 else ''
            lines.append(Line(name, x, y, colour, dash, steps, marker=marker))
    return lines


def curve(
    name: str,
    title: str,
    caption: str,
    lines: Sequence[Line],
    y_label: str,
    from_zero: bool = False,
    x_label: str = 'batch',
) -> list[Picture]:
    """A picture of lines in a list, empty where there is nothing finite to draw."""
    drawn = [line for line in lines if np.isfinite(line.y).any()]
    return [Picture(name, caption, line_panel(title, drawn, y_label, from_zero, x_label))] if drawn else []
