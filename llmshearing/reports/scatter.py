"""Points with a front through the best of them, as an SVG panel; and panels side by side in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmshearing.reports.svg import COLOURS, GREY, WIDTH, Panel, limits, ticks

__all__ = ['scatter_panel', 'side_by_side']


def scatter_panel(
    title: str,
    points: Mapping[str, Sequence[tuple[float, float, str]]],
    front: Sequence[tuple[float, float]],
    x_label: str,
    y_label: str,
) -> str:
    """Points, and a line through those on the front.

    Args:
        title (str): Above the panel.
        points (Mapping[str, Sequence[tuple[float, float, str]]]): Label of the legend to (x, y, name) of its points; a
            browser shows the name under the mouse.
        front (Sequence[tuple[float, float]]): Points of the front by rising x.
        x_label (str): With the unit.
        y_label (str): With the unit.
    """
    every = [point for group in points.values() for point in group]
    x, y = (np.array([point[axis] for point in every]) for axis in (0, 1))
    panel = Panel(title, limits([x]), limits([y]))
    panel.scale_y(y_label, ticks(*panel.y))
    panel.scale_x(x_label, ticks(*panel.x, most=5))
    steps = [f'{panel.at_x(a):.1f} {panel.at_y(b):.1f}' for a, b in front]
    panel.marks.append(f'<path d="M{"L".join(steps)}" fill="none" stroke="{GREY}" stroke-dasharray="7 4"/>')
    for colour, group in zip(COLOURS, points.values()):
        for a, b, name in group:
            panel.dot(a, b, 4.5, colour, f'{name}: {b:.3f}')
    entries = [(f'<circle cx="12" r="4.5" fill="{colour}"/>', label) for colour, label in zip(COLOURS, points)]
    return panel.svg(panel.legend(entries, panel.bottom + 34))


def side_by_side(panels: Sequence[str]) -> str:
    """Panels of equal height as one picture in a file of its own."""
    height = max(float(panel.split('viewBox="')[1].split('"')[0].split()[3]) for panel in panels)
    inside = ''.join(
        panel.replace('<svg ', f'<svg x="{i * WIDTH}" width="{WIDTH}" height="{height:.0f}" ', 1)
        for i, panel in enumerate(panels)
    )
    size = f'viewBox="0 0 {len(panels) * WIDTH} {height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><rect width="100%" height="100%" fill="white"/>{inside}</svg>'
    )
