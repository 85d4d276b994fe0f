"""The solver: exact on noise-free data, no worse than brute force on noisy data, unmoved by an outlier with Huber."""

from __future__ import annotations

import numpy as np
import pytest

from llmshearing.scaling.separable import fit_separable

X = np.linspace(-2, 2, 9)
STARTS = [(start,) for start in (0.05, 0.2, 0.8)]


def basis(exponents):
    return np.stack([np.ones_like(X), np.exp(-exponents[0] * X)], axis=1)


def fit(measured, **options):
    return fit_separable(basis, measured, STARTS, [(0.01, 3.0)], [False, False], **options)


def test_recovers_exact_constants():
    result = fit(1.5 + 0.6 * np.exp(-0.37 * X))
    np.testing.assert_allclose([*result.exponents, *result.coefficients], [0.37, 1.5, 0.6], rtol=1e-6)
    assert np.abs(result.residuals).max() < 1e-9


def test_no_grid_point_is_better_than_the_fit_of_noisy_data():
    measured = (1.5 + 0.6 * np.exp(-0.37 * X)) * np.exp(0.01 * np.random.default_rng(0).standard_normal(len(X)))
    result = fit(measured)
    alpha, constant, term = np.meshgrid(
        np.linspace(0.05, 1, 60), np.linspace(0.5, 2, 60), np.linspace(0.1, 1.5, 60), indexing='ij'
    )
    predicted = constant[..., None] + term[..., None] * np.exp(-alpha[..., None] * X)
    costs = 0.5 * (np.log(predicted / measured) ** 2).sum(-1)
    # The finest grid that is quick comes within a factor, which catches a cost that is not what it says.
    assert result.cost <= costs.min()
    assert result.cost > 0.5 * costs.min()


def test_coefficients_stay_non_negative_unless_free():
    measured = 2 - 0.3 * np.exp(-0.4 * X)
    bounded = fit(measured)
    assert bounded.coefficients[1] == 0 and bounded.coefficients[0] == pytest.approx(measured.mean(), rel=0.02)
    free = fit_separable(basis, measured, STARTS, [(0.01, 3.0)], [False, True])
    np.testing.assert_allclose(free.coefficients, [2, -0.3], rtol=1e-5)


def test_huber_ignores_an_outlier_that_moves_least_squares():
    truth = 1.5 + 0.6 * np.exp(-0.37 * X)
    measured = truth * np.where(np.arange(len(X)) == 7, 1.1, 1.0)
    squares = np.abs(fit(measured).residuals[:7]).max()
    robust = fit(measured, huber=0.002)
    assert np.abs(robust.residuals[:7]).max() < 0.1 * squares
    assert robust.residuals[7] == pytest.approx(-np.log(1.1), abs=3e-3)


def test_known_offset_and_prior():
    offset = 1.0 + 0.1 * X
    result = fit(offset + 0.5 + 0.6 * np.exp(-0.37 * X), offset=offset)
    np.testing.assert_allclose([*result.exponents, *result.coefficients], [0.37, 0.5, 0.6], rtol=1e-5)
    # A constant loss says nothing about the exponent, which then stays where the prior is.
    flat = fit(np.full_like(X, 2.0), priors=[(0.55, 1e-3)])
    assert flat.exponents[0] == pytest.approx(0.55, abs=1e-3)
    np.testing.assert_allclose(flat.residuals, 0, atol=1e-9)
