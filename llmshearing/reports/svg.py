"""A panel as SVG: marks, axes, ticks and a legend, drawn from numbers without a plotting library.

Every panel is small, so that a page can set three side by side on a desk and one below the other on a phone with the
text still readable. It is drawn whole without a script; the numbers in ``data-panel`` let the page answer to the mouse.
Colours are the Okabe-Ito set, which colour-blind readers can tell apart. What a panel shows is in the modules beside
this one: :mod:`lines <llmshearing.reports.lines>`, :mod:`heat <llmshearing.reports.heat>`, :mod:`bars
<llmshearing.reports.bars>` and :mod:`scatter <llmshearing.reports.scatter>`.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

__all__ = ['COLOURS', 'GREY', 'LEFT', 'RIGHT', 'TOP', 'WIDTH', 'Panel', 'as_file', 'limits', 'ticks']

BLACK, ORANGE, SKY, GREEN = '#000000', '#E69F00', '#56B4E9', '#009E73'
BLUE, VERMILION, PURPLE, GREY = '#0072B2', '#D55E00', '#CC79A7', '#8C8C8C'
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
WIDTH, LEFT, RIGHT, TOP = 460, 58, 10, 30
LINE_HEIGHT, PLOT_HEIGHT = 18, 200


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


def as_file(svg: str) -> str:
    """A panel as it stands in a file of its own, which must name what it is."""
    return svg.replace('<svg ', '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
