"""Extrapolation factor and jackknife interval against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from llmshearing.scaling.intervals import CONFIDENCE, extrapolation_factor, jackknife_interval


def test_extrapolation_factor():
    measured = np.array([1e9, 7e7, 7e10])
    assert extrapolation_factor(2e9, measured) == 1
    assert extrapolation_factor(35e6, measured) == pytest.approx(2)
    assert extrapolation_factor(280e9, measured) == pytest.approx(4)


def test_jackknife_of_a_mean_is_the_textbook_interval():
    values = np.random.default_rng(0).normal(5, 1, 12)
    others = np.array([np.delete(values, i).mean() for i in range(12)])
    low, high = jackknife_interval(values.mean(), others, 11)
    expected = t.interval(CONFIDENCE, 11, loc=values.mean(), scale=values.std(ddof=1) / np.sqrt(12))
    np.testing.assert_allclose((low, high), expected)


def test_no_interval_without_spread_and_none_below_zero():
    assert jackknife_interval(2.0, np.array([2.0]), 3) is None
    assert jackknife_interval(2.0, np.array([]), 3) is None
    assert jackknife_interval(2.0, np.array([2.0, 2.1, 1.9]), 0) is None
    assert jackknife_interval(0.1, np.array([0.1, 2.1, 0.2]), 2)[0] == 0
