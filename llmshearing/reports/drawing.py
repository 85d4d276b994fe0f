"""Pictures for reports, drawn with matplotlib on figures of their own: no global state, no display.

Every picture is one small panel, so that a page can set three side by side on a desk and one below the other on a phone
with the text still readable. Colours are the Okabe-Ito set, which colour-blind readers can tell apart; no picture needs
colour alone, lines also differ in dash or marker.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY = (
    '#000000',
    '#E69F00',
    '#56B4E9',
    '#009E73',
    '#0072B2',
    '#D55E00',
    '#CC79A7',
    '#8C8C8C',
)
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
DASHES = ('-', '--', '-.', ':')
MARKERS = 'os^DvPX'
DPI = 150
PANEL = (4.6, 3.1)  # inches
MOST_POINTS = 1500
KEPT_COLOURS = LinearSegmentedColormap.from_list('kept', ['#FFFFFF', SKY, '#00395C']).with_extremes(bad='#E3E3E3')


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Args:
        label: For the legend; empty for none.
        x: [points] increasing.
        y: [points]; gaps where not finite.
        colour: Matplotlib colour.
        dash: Matplotlib line style.
        steps: Whether a value holds until the next one.
        faint: Whether the line is in the background.
        width: In points.
        marker: Matplotlib marker, set about ten times along the line.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str = BLUE
    dash: str = '-'
    steps: bool = False
    faint: bool = False
    width: float = 1.6
    marker: str = ''


def figure_of(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of plain axes, [rows, columns]; sizes in inches."""
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(axis='y', color='#E5E5E5', linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about ``most`` points of a series, evenly chosen, the last always among them."""
    if len(x) <= most:
        return x, y
    chosen = np.unique(np.append(np.arange(0, len(x), -(-len(x) // most)), len(x) - 1))
    return x[chosen], y[chosen]


def smoothed(y: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Mean over the values before, a window that is ``share`` of the series; values that are not finite are left
    out."""
    window = max(1, round(share * len(y)))
    finite = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    end = np.arange(1, len(y) + 1)
    start = np.maximum(end - window, 0)
    number = count[end] - count[start]
    return np.where(number > 0, (total[end] - total[start]) / np.maximum(number, 1), np.nan)


def line_panel(
    title: str, lines: Sequence[Line], y_label: str, from_zero: bool = False, x_label: str = 'batch'
) -> bytes:
    """A panel of lines, as PNG.

    Args:
        title: Above the panel.
        lines: At least one.
        y_label: With the unit.
        from_zero: Whether the vertical axis begins at 0.
        x_label: What the lines run over.
    """
    figure, axes = figure_of(1, 1, *PANEL)
    axis: Axes = axes[0, 0]
    for line in lines:
        x, y = thinned(line.x, line.y)
        axis.plot(
            x,
            y,
            color=line.colour,
            linestyle=line.dash,
            label=line.label or None,
            marker=line.marker or None,
            markersize=4,
            markevery=max(1, len(x) // 10),
            linewidth=0.7 if line.faint else line.width,
            alpha=0.35 if line.faint else 1.0,
            drawstyle='steps-post' if line.steps else 'default',
        )
    axis.set_title(title, fontsize=10.5, loc='left')
    axis.set_ylabel(y_label, fontsize=9)
    axis.set_xlabel(x_label, fontsize=9)
    axis.tick_params(labelsize=8.5)
    if from_zero:
        axis.set_ylim(bottom=0)
    _legend(figure, [line.label for line in lines if line.label])
    return _png(figure)


def heat_panel(
    title: str,
    values: np.ndarray,
    x_label: str,
    y_label: str,
    columns: Sequence[str] | None = None,
    dots: np.ndarray | None = None,
) -> bytes:
    """A heat map of values from 0 (removed) to 1 (kept), as PNG; rows from the top.

    Args:
        title: Above the map.
        values: [rows, columns]; not a number where there is nothing to show.
        x_label, y_label: What columns and rows are.
        columns: Name of each column; numbers by default.
        dots: bool [rows, columns]: where to set a dot; at most 40 columns are dotted.
    """
    rows, width = values.shape
    figure, axes = figure_of(1, 1, PANEL[0], min(8.0, max(2.2, 1.1 + 0.135 * rows)))
    axis: Axes = axes[0, 0]
    axis.grid(False)
    image = axis.imshow(
        np.ma.masked_invalid(values), aspect='auto', cmap=KEPT_COLOURS, vmin=0, vmax=1, interpolation='nearest'
    )
    if dots is not None and width <= 40:
        y, x = np.nonzero(dots)
        axis.scatter(x, y, s=7, color=ORANGE, linewidths=0)
    axis.set_title(title, fontsize=10.5, loc='left')
    axis.set_xlabel(x_label, fontsize=9)
    axis.set_ylabel(y_label, fontsize=9)
    axis.tick_params(labelsize=8.5)
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if columns is not None:
        axis.set_xticks(range(len(columns)), columns)
    bar = figure.colorbar(image, ax=axis, fraction=0.045, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    return _png(figure)


def bar_panel(
    title: str, groups: Sequence[str], bars: dict[str, Sequence[float]], y_label: str, colours: Sequence[str] = COLOURS
) -> bytes:
    """Bars side by side, as PNG.

    Args:
        title: Above the panel.
        groups: Name of each group.
        bars: Label to [groups] heights, at most as many as ``colours``; gaps where not finite.
        y_label: With the unit.
        colours: One per label.
    """
    figure, axes = figure_of(1, 1, *PANEL)
    axis: Axes = axes[0, 0]
    width = 0.84 / len(bars)
    for i, (label, heights) in enumerate(bars.items()):
        positions = np.arange(len(groups)) + (i - (len(bars) - 1) / 2) * width
        axis.bar(positions, heights, 0.92 * width, color=colours[i % len(colours)], label=label)
    turned = sum(map(len, groups)) > 45
    axis.set_xticks(range(len(groups)), groups, rotation=35 if turned else 0, ha='right' if turned else 'center')
    axis.set_title(title, fontsize=10.5, loc='left')
    axis.set_ylabel(y_label, fontsize=9)
    axis.tick_params(labelsize=8.5)
    _legend(figure, list(bars))
    return _png(figure)


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    """A legend below the panel, in as many columns as fit."""
    if labels:
        room = int(PANEL[0] * 15 / (max(map(len, labels)) + 5))  # characters of this size in the panel's width
        figure.legend(loc='outside lower center', ncols=min(len(labels), max(1, room), 4), frameon=False, fontsize=8.5)


def _png(figure: Figure) -> bytes:
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a $ in the name of a metric begins no formula
    stream = io.BytesIO()
    figure.savefig(stream, dpi=DPI, format='png', metadata={'Software': None})
    return stream.getvalue()
