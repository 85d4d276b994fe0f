"""Lines in a panel; they differ in dash as well as in colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmshearing.reports.svg import BLUE, Panel, limits, ticks

__all__ = ['DASHES', 'Line', 'line_panel', 'smoothed', 'thinned']

DASHES = {'-': '', '--': '7 4', '-.': '8 3 2 3', ':': '2 3'}
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Args:
        label (str): For the legend; empty for none.
        x (np.ndarray): [points] increasing.
        y (np.ndarray): [points]; gaps where not finite.
        colour (str): Of the line.
        dash (str): A key of :data:`DASHES`.
        steps (bool): Whether a value holds until the next one.
        faint (bool): Whether the line is in the background.
        width (float): In units of the panel.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str = BLUE
    dash: str = '-'
    steps: bool = False
    faint: bool = False
    width: float = 1.9


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about :data:`MOST_POINTS` points of a series, evenly chosen, the last always among them."""
    if len(x) <= MOST_POINTS:
        return x, y
    chosen = np.unique(np.append(np.arange(0, len(x), -(-len(x) // MOST_POINTS)), len(x) - 1))
    return x[chosen], y[chosen]


def smoothed(y: np.ndarray) -> np.ndarray:
    """Mean over a window that ends at each value, a fiftieth of the series long; skips what is not finite."""
    window = max(1, round(0.02 * len(y)))
    finite = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    end = np.arange(1, len(y) + 1)
    start = np.maximum(end - window, 0)
    number = count[end] - count[start]
    return np.where(number > 0, (total[end] - total[start]) / np.maximum(number, 1), np.nan)


def _path(line: Line, panel: Panel, x: np.ndarray, y: np.ndarray) -> str:
    """Moves and lines of a path, a new move behind every gap."""
    parts, pen = [], 'M'
    for across, up in zip(panel.at_x(x), panel.at_y(y)):
        if not math.isfinite(up):
            pen = 'M'
            continue
        parts.append(f'H{across:.1f}V{up:.1f}' if line.steps and pen == 'L' else f'{pen}{across:.1f} {up:.1f}')
        pen = 'L'
    return ''.join(parts)


def _stroke(line: Line) -> str:
    dash = f' stroke-dasharray="{DASHES[line.dash]}"' if DASHES[line.dash] else ''
    return (
        f'fill="none" stroke="{line.colour}" stroke-width="{0.8 if line.faint else line.width}"{dash} '
        f'stroke-opacity="{0.35 if line.faint else 1}"'
    )


def _rounded(values: np.ndarray) -> list[float | None]:
    """Numbers for the mouse: five digits, and None for what is not finite, which JSON does not have."""
    return [float(f'{value:.5g}') if math.isfinite(value) else None for value in values]


def line_panel(
    title: str,
    lines: Sequence[Line],
    y_label: str,
    from_zero: bool = False,
    x_label: str = 'batch',
    whole: bool = False,
) -> str:
    """A panel of lines.

    Args:
        title (str): Above the panel.
        lines (Sequence[Line]): At least one.
        y_label (str): With the unit.
        from_zero (bool): Whether the vertical axis begins at 0.
        x_label (str): What the lines run over, which is counted.
        whole (bool): Whether the vertical axis counts, so that only whole numbers stand beside it.
    """
    ends = [float(np.min([line.x[0] for line in lines])), float(np.max([line.x[-1] for line in lines]))]
    if ends[0] == ends[1]:
        ends = [ends[0] - 0.5, ends[1] + 0.5]
    panel = Panel(title, (ends[0], ends[1]), limits([line.y for line in lines], from_zero))
    panel.scale_y(y_label, ticks(*panel.y, whole))
    panel.scale_x(x_label, ticks(*panel.x, whole=True))
    series = []
    for line in lines:
        x, y = thinned(line.x, line.y)
        panel.marks.append(f'<path d="{_path(line, panel, x, y)}" {_stroke(line)}/>')
        if np.isfinite(y).sum() == 1:
            at = int(np.isfinite(y).argmax())
            panel.dot(x[at], y[at], 3, line.colour)
        if line.label:
            series.append({'n': line.label, 'c': line.colour, 'x': _rounded(x), 'y': _rounded(y)})
    entries = [(f'<path d="M0 0H24" {_stroke(line)}/>', line.label) for line in lines if line.label]
    below = panel.legend(entries, panel.bottom + 34)
    return panel.svg(below, {'k': 'line', 'x': ends, 'n': x_label, 's': series})
