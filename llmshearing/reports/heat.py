"""A heat map of what is kept: one cell per unit, or per run of units."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import groupby

import numpy as np

from llmshearing.reports.svg import LEFT, ORANGE, RIGHT, TOP, VERMILION, WIDTH, Panel, ticks

__all__ = ['heat_panel']

NOTHING = '#E3E3E3'
KEPT_COLOURS = np.array([[255, 255, 255], [86, 180, 233], [0, 57, 92]])  # at 0, 1/2 and 1
MOST_DOTTED = 40  # columns


def heat_panel(
    title: str,
    values: np.ndarray,
    x_label: str,
    y_label: str,
    columns: Sequence[str] | None = None,
    dots: np.ndarray | None = None,
    removed: Collection[int] = (),
) -> str:
    """A heat map of values from 0 (removed) to 1 (kept); rows from the top.

    Args:
        title (str): Above the map.
        values (np.ndarray): [rows, columns]; not a number where there is nothing to show.
        x_label (str): What the columns are.
        y_label (str): What the rows are.
        columns (Sequence[str] | None): Name of each column; numbers by default.
        dots (np.ndarray | None): bool [rows, columns]: where to set a dot; in maps of at most :data:`MOST_DOTTED`
            columns.
        removed (Collection[int]): Rows that are gone as a whole, drawn as such whatever their values are.
    """
    rows, width = values.shape
    cell = max(min(14.0, max(5.0, 220 / rows)), 90 / rows)
    panel = Panel(title, (-0.5, width - 0.5), (rows - 0.5, -0.5), cell * rows)
    _draw_cells(panel, values, cell, removed)
    dots = dots if width <= MOST_DOTTED else None
    if dots is not None:
        for row, column in zip(*np.nonzero(dots)):
            panel.dot(column, row, 2.2, ORANGE)
    frame = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{cell * rows:.1f}"'
    panel.marks.append(f'<rect {frame} fill="none" stroke="#8C8C8C"/>')
    panel.scale_y(y_label, ticks(0, rows - 1, whole=True, most=max(2, int(cell * rows / 18))), lines=False)
    if columns is None:
        panel.scale_x(x_label, ticks(0, width - 1, whole=True))
    else:
        for column, name in enumerate(columns):
            panel.text(float(panel.at_x(column)), panel.bottom + 15, name, 'middle')
    swatch = '<rect y="-6" width="24" height="10" fill="{}" stroke="#8C8C8C"/>'.format
    entries = [(swatch(_kept_colour(value)), words) for value, words in ((0, '0'), (0.5, '1/2'), (1, '1, kept'))]
    if removed:
        strike = f'<path d="M0 -1H24" stroke="{VERMILION}"/>'
        entries.append((swatch(NOTHING) + strike, f'{y_label} removed'))
    if np.isnan(np.delete(values, list(removed), axis=0)).any():
        entries.append((swatch(NOTHING), 'no unit'))
    if dots is not None:
        entries.append((f'<circle cx="12" r="2.2" fill="{ORANGE}"/>', 'stays'))
    below = panel.legend(entries, panel.bottom + (34 if columns is None else 18))
    shown = [[None if not math.isfinite(value) else round(float(value), 3) for value in row] for row in values]
    names = {'n': [y_label, x_label], 'c': columns and list(columns)}
    return panel.svg(below, {'k': 'heat', 'v': shown, 'g': sorted(removed), **names})


def _draw_cells(panel: Panel, values: np.ndarray, cell: float, removed: Collection[int]) -> None:
    """Row by row; neighbours of one shade are one mark, and white ones none."""
    rows, width = values.shape
    across, edges = panel.at_x(np.arange(width + 1) - 0.5), panel.at_y(np.arange(rows + 1) - 0.5)
    for row in range(rows):
        size = f'y="{edges[row]:.1f}" height="{cell:.1f}"'
        if row in removed:
            gone = f'x="{LEFT}" {size} width="{WIDTH - LEFT - RIGHT}"'
            middle = edges[row] + cell / 2
            panel.marks.append(f'<rect class="removed" {gone} fill="{NOTHING}"/>')
            panel.marks.append(f'<path d="M{LEFT} {middle:.1f}H{WIDTH - RIGHT}" stroke="{VERMILION}"/>')
            continue
        shades = [_kept_colour(value) if math.isfinite(value) else NOTHING for value in values[row]]
        for shade, run in groupby(range(width), shades.__getitem__):
            first, *_, last = [*run] * 2
            if shade != '#ffffff':
                wide = f'x="{across[first]:.1f}" {size} width="{across[last + 1] - across[first]:.1f}"'
                panel.marks.append(f'<rect {wide} fill="{shade}"/>')


def _kept_colour(value: float) -> str:
    """White for 0, blue for 1/2, dark for 1, in 32 steps, so that equal neighbours become one mark."""
    mixed = (np.interp(round(value * 32) / 32, (0, 0.5, 1), channel) for channel in KEPT_COLOURS.T)
    return '#' + ''.join(f'{round(part):02x}' for part in mixed)
