"""Panels: where marks stand, what the axes say, what is drawn as removed."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from llmshearing.reports.bars import bar_panel
from llmshearing.reports.heat import heat_panel
from llmshearing.reports.lines import Line, line_panel, smoothed, thinned
from llmshearing.reports.svg import ticks


@pytest.mark.parametrize(
    'low, high, whole, values',
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1, True, [0, 1]),
        (1.9, 4.1, True, [2, 3, 4]),
        (0, 48, True, [0, 10, 20, 30, 40]),
        (2.5, 3.1, False, [2.5, 2.6, 2.7, 2.8, 2.9, 3.0, 3.1]),
        (0, 3e9, True, [0, 5e8, 1e9, 1.5e9, 2e9, 2.5e9, 3e9]),
    ],
)
def test_ticks_are_round_and_whole_where_something_is_counted(low, high, whole, values):
    assert ticks(low, high, whole) == pytest.approx(values)


def marks(svg, tag):
    return list(ElementTree.fromstring(svg).iter(tag))


def words(svg):
    return [mark.text for mark in marks(svg, 'text')]


def test_a_line_goes_through_its_points():
    line = Line('a', np.array([0.0, 1, 2, 3]), np.array([0.0, 10, np.nan, 5]))
    svg = line_panel('title', [line], 'nats', from_zero=True)
    path = next(mark.get('d') for mark in marks(svg, 'path') if mark.get('stroke') == line.colour)
    points = [tuple(map(float, point.split())) for point in re.split('[ML]', path)[1:]]
    # From the left edge at 58 to the right one at 450; 10 stands 5 % below the top at 30, 0 at the bottom at 230.
    across, up = (58, 58 + 392 / 3, 450), (230, 230 - 200 / 1.05, 230 - 100 / 1.05)
    assert points == [pytest.approx(pair, abs=0.06) for pair in zip(across, up)]
    assert path.count('M') == 2  # a gap where the value is not finite
    assert json.loads(ElementTree.fromstring(svg).get('data-panel'))['s'][0]['y'] == [0, 10, None, 5]


def test_steps_and_single_points_can_be_seen():
    steps = Line('a', np.array([0.0, 1, 2]), np.array([1.0, 3, 2]), steps=True)
    drawn = [mark.get('d') for mark in marks(line_panel('t', [steps], 'y'), 'path') if mark.get('stroke') == '#0072B2']
    assert re.fullmatch(r'M[\d.]+ [\d.]+(H[\d.]+V[\d.]+){2}', drawn[0])
    assert len(marks(line_panel('t', [Line('a', np.array([5.0]), np.array([2.0]))], 'y'), 'circle')) == 1


def test_counts_have_whole_numbers_beside_them():
    line = Line('layers', np.array([0.0, 20]), np.array([2.0, 1.0]))
    assert not [text for text in words(line_panel('t', [line], 'units', whole=True)) if re.match(r'\d+\.', text)]
    assert [text for text in words(line_panel('t', [line], 'units')) if re.match(r'\d+\.', text)]


def test_a_removed_layer_is_drawn_as_removed_whatever_its_units_are():
    values = np.array([[1.0, 0.0], [0.9, 0.8], [np.nan, np.nan]])
    svg = heat_panel('t', values, 'head', 'layer', removed=[1])
    gone = [mark for mark in marks(svg, 'rect') if mark.get('class') == 'removed']
    assert [float(mark.get('width')) for mark in gone] == [392] and 'layer removed' in words(svg)
    assert 'layer removed' not in words(heat_panel('t', values, 'head', 'layer'))
    assert json.loads(ElementTree.fromstring(svg).get('data-panel'))['v'][2] == [None, None]


def test_bars_stand_on_zero_with_their_value():
    svg = bar_panel('t', ['a', 'b'], {'x': [1.0, float('nan')], 'y': [2.0, 4.0]}, 'nats')
    bars = [mark for mark in marks(svg, 'rect') if mark.find('title') is not None]
    assert [mark.find('title').text for mark in bars] == ['a, x: 1', 'a, y: 2', 'b, y: 4']
    assert [float(mark.get('y')) + float(mark.get('height')) for mark in bars] == pytest.approx([230] * 3, abs=0.1)
    heights = [float(mark.get('height')) for mark in bars]
    assert heights[2] == pytest.approx(4 * heights[0], rel=0.01)


def test_long_series_are_thinned_and_smoothed():
    x = np.arange(5000.0)
    thin_x, thin_y = thinned(x, 2 * x)
    assert len(thin_x) <= 401 and thin_x[-1] == 4999 and (thin_y == 2 * thin_x).all()
    y = np.array([1.0, 3.0, np.nan, 5.0, *np.zeros(96)])  # a window of two
    assert smoothed(y)[:6].tolist() == [1.0, 2.0, 3.0, 5.0, 2.5, 0.0]
