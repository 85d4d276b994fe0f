"""Panels as SVG: lines, heat maps and bars, drawn from arrays without a plotting library.

Every panel is small, so that a page can set three side by side on a desk and one below the other on a phone with the
text still readable. It is drawn whole without a script; the numbers in ``data-panel`` let the page answer to the mouse.
Colours are the Okabe-Ito set, which colour-blind readers can tell apart; lines differ in dash as well.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np

__all__ = [
    'COLOURS',
    'DASHES',
    'GREY',
    'WIDTH',
    'Line',
    'Panel',
    'as_file',
    'bar_panel',
    'heat_panel',
    'limits',
    'line_panel',
    'smoothed',
    'thinned',
    'ticks',
]

BLACK, ORANGE, SKY, GREEN = '#000000', '#E69F00', '#56B4E9', '#009E73'
BLUE, VERMILION, PURPLE, GREY = '#0072B2', '#D55E00', '#CC79A7', '#8C8C8C'
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
DASHES = {'-': '', '--': '7 4', '-.': '8 3 2 3', ':': '2 3'}
WIDTH, LEFT, RIGHT, TOP = 460, 58, 10, 30
LINE_HEIGHT, PLOT_HEIGHT = 18, 200
MOST_POINTS = 400
NOTHING = '#E3E3E3'
KEPT_COLOURS = np.array([[255, 255, 255], [86, 180, 233], [0, 57, 92]])  # at 0, 1/2 and 1


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Args:
        label: For the legend; empty for none.
        x: [points] increasing.
        y: [points]; gaps where not finite.
        colour: Of the line.
        dash: A key of :data:`DASHES`.
        steps: Whether a value holds until the next one.
        faint: Whether the line is in the background.
        width: In units of the panel.
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


def ticks(low: float, high: float, whole: bool = False, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``most`` of them; only whole ones of what is counted."""
    rough = max((high - low) / most, 1e-300)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    """A number beside a tick."""
    for size, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
        if abs(value) >= size:
            return f'{value / (1e3 if letter == "k" else size):.4g}{letter}'
    text = f'{value:.4g}'
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f'{value:.3e}'.split('e')
        text = f'{float(mantissa):g}e{int(exponent)}'
    return text


Places = TypeVar('Places', float, np.ndarray)


class Panel:
    """Marks of one panel, and the scales from values to places."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float], height: float = PLOT_HEIGHT):
        self.marks: list[str] = []
        self.x, self.y, self.bottom = x, y, TOP + height
        self.text(6, 17, title, size=13.5, font_weight='bold')

    def at_x(self, value: Places) -> Places:
        """Where a value stands from left to right."""
        return LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)

    def at_y(self, value: Places) -> Places:
        """Where a value stands from top to bottom."""
        return self.bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - TOP)

    def text(self, x: float, y: float, words: str, anchor: str = 'start', size: float = 12, **more: str) -> None:
        """Adds words; ``more`` are attributes of the text."""
        attributes = ''.join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
        self.marks.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{attributes}>'
            f'{html.escape(words)}</text>'
        )

    def dot(self, x: float, y: float, radius: float, colour: str, title: str = '') -> None:
        """Adds a dot where two values meet; a browser shows its title under the mouse."""
        end = f'><title>{html.escape(title)}</title></circle>' if title else '/>'
        place = f'cx="{self.at_x(x):.1f}" cy="{self.at_y(y):.1f}"'
        self.marks.append(f'<circle {place} r="{radius:g}" fill="{colour}"{end}')

    def scale_y(self, label: str, values: Sequence[float], lines: bool = True) -> None:
        """Adds numbers on the left, with a line across at each, and what they count."""
        for value in values:
            place = self.at_y(value)
            if lines:
                self.marks.append(f'<path d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}" stroke="#E5E5E5"/>')
            self.text(LEFT - 6, place + 4, _number(value), 'end')
        middle = (TOP + self.bottom) / 2
        self.text(13, middle, label, 'middle', transform=f'rotate(-90 13 {middle:.0f})', fill='#5b6675')

    def scale_x(self, label: str, values: Sequence[float]) -> None:
        """Adds the lower edge, numbers below it, and what they count."""
        self.marks.append(f'<path d="M{LEFT} {self.bottom}H{WIDTH - RIGHT}" stroke="#5b6675"/>')
        for value in values:
            self.text(float(self.at_x(value)), self.bottom + 15, _number(value), 'middle')
        self.text((LEFT + WIDTH - RIGHT) / 2, self.bottom + 31, label, 'middle', fill='#5b6675')

    def legend(self, entries: Sequence[tuple[str, str]], below: float) -> float:
        """Words with a mark before each, as many in a row as fit. Returns the place below the last row."""
        x, y = 6.0, below + LINE_HEIGHT
        for mark, words in entries:
            needed = 40 + 7.2 * len(words)
            if x > 6 and x + needed > WIDTH:
                x, y = 6.0, y + LINE_HEIGHT
            self.marks.append(f'<g transform="translate({x:.0f} {y - 4:.0f})">{mark}</g>')
            self.text(x + 28, y, words)
            x += needed
        return y + 8 if entries else below + 4

    def svg(self, height: float, data: Mapping | None = None) -> str:
        """The panel; ``data`` is what the page answers to the mouse with."""
        content = ''
        if data is not None:
            box = {'l': LEFT, 'r': WIDTH - RIGHT, 't': TOP, 'b': round(self.bottom, 1)}
            content = f' data-panel="{html.escape(json.dumps(box | dict(data), separators=(",", ":")))}"'
        return (
            f'<svg class="panel" viewBox="0 0 {WIDTH} {height:.0f}" font-family="system-ui,DejaVu Sans,sans-serif" '
            f'fill="#1c2430"{content}>{"".join(self.marks)}</svg>'
        )


def limits(values: Sequence[np.ndarray], from_zero: bool = False) -> tuple[float, float]:
    """Ends of an axis that all finite values fit between, a twentieth of their range apart from them."""
    finite = np.concatenate([value[np.isfinite(value)] for value in values])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if from_zero:
        low = min(low, 0.0)
    room = (high - low or abs(high) or 1.0) * 0.05
    return low if from_zero and low == 0 else low - room, high + room


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
        title: Above the panel.
        lines: At least one.
        y_label: With the unit.
        from_zero: Whether the vertical axis begins at 0.
        x_label: What the lines run over, which is counted.
        whole: Whether the vertical axis counts, so that only whole numbers stand beside it.
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


def _kept_colour(value: float) -> str:
    """White for 0, blue for 1/2, dark for 1, in 32 steps, so that equal neighbours become one mark."""
    mixed = (np.interp(round(value * 32) / 32, (0, 0.5, 1), channel) for channel in KEPT_COLOURS.T)
    return '#' + ''.join(f'{round(part):02x}' for part in mixed)


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
        title: Above the map.
        values: [rows, columns]; not a number where there is nothing to show.
        x_label: What the columns are.
        y_label: What the rows are.
        columns: Name of each column; numbers by default.
        dots: bool [rows, columns]: where to set a dot; at most 40 columns are dotted.
        removed: Rows that are gone as a whole, drawn as such whatever their values are.
    """
    rows, width = values.shape
    cell = max(min(14.0, max(5.0, 220 / rows)), 90 / rows)
    panel = Panel(title, (-0.5, width - 0.5), (rows - 0.5, -0.5), cell * rows)
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
    if dots is not None and width <= 40:
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
    if dots is not None and width <= 40:
        entries.append((f'<circle cx="12" r="2.2" fill="{ORANGE}"/>', 'stays'))
    below = panel.legend(entries, panel.bottom + (34 if columns is None else 18))
    shown = [[None if not math.isfinite(value) else round(float(value), 3) for value in row] for row in values]
    names = {'n': [y_label, x_label], 'c': columns and list(columns)}
    return panel.svg(below, {'k': 'heat', 'v': shown, 'g': sorted(removed), **names})


def as_file(svg: str) -> str:
    """A panel as it stands in a file of its own, which must name what it is."""
    return svg.replace('<svg ', '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def bar_panel(title: str, groups: Sequence[str], bars: Mapping[str, Sequence[float]], y_label: str) -> str:
    """Bars side by side.

    Args:
        title: Above the panel.
        groups: Name of each group.
        bars: Label to [groups] heights; gaps where not finite.
        y_label: With the unit.
    """
    heights = np.array([list(values) for values in bars.values()], dtype=np.float64)
    panel = Panel(title, (-0.5, len(groups) - 0.5), limits([heights], from_zero=True))
    panel.scale_y(y_label, ticks(*panel.y))
    width = 0.84 / len(bars)
    for i, (label, values) in enumerate(bars.items()):
        for group, value in enumerate(values):
            if math.isfinite(value):
                left = panel.at_x(group + (i - len(bars) / 2) * width)
                wide = panel.at_x(width * 0.92) - panel.at_x(0)
                top, base = panel.at_y(value), panel.at_y(max(0.0, panel.y[0]))
                panel.marks.append(
                    f'<rect x="{left:.1f}" y="{min(top, base):.1f}" width="{wide:.1f}" height="{abs(base - top):.1f}" '
                    f'fill="{COLOURS[i % len(COLOURS)]}"><title>{html.escape(f"{groups[group]}, {label}: {value:.4g}")}'
                    '</title></rect>'
                )
    panel.scale_x('', [])
    turned = sum(map(len, groups)) > 50
    for group, name in enumerate(groups):
        place, y = float(panel.at_x(group)), panel.bottom + 15
        if turned:
            panel.text(place, y, name, 'end', transform=f'rotate(-25 {place:.0f} {y:.0f})')
        else:
            panel.text(place, y, name, 'middle')
    below = panel.bottom + (24 + 2.9 * max(map(len, groups)) if turned else 18)
    mark = '<rect y="-6" width="24" height="10" fill="{}"/>'.format
    entries = [(mark(COLOURS[i % len(COLOURS)]), label) for i, label in enumerate(bars)]
    return panel.svg(panel.legend(entries, below))
