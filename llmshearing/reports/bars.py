"""Bars side by side in a panel."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from llmshearing.reports.svg import COLOURS, Panel, limits, ticks

__all__ = ['bar_panel']


def bar_panel(title: str, groups: Sequence[str], bars: Mapping[str, Sequence[float]], y_label: str) -> str:
    """Bars side by side.

    Args:
        title (str): Above the panel.
        groups (Sequence[str]): Name of each group.
        bars (Mapping[str, Sequence[float]]): Label to [groups] heights; gaps where not finite.
        y_label (str): With the unit.
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
