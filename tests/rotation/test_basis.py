"""Bases by closed forms: a covariance whose principal directions are known."""

from __future__ import annotations

import pytest
import torch

from llmshearing.rotation.basis import completed_basis, energies, fixed_positions, principal_basis, principal_within
from llmshearing.rotation.energy import cut_gain_factors, energy_kept, energy_table, table_widths
from llmshearing.rotation.folding import column_squares, common_gain, odd_axes, scalar_gain

EYE = torch.eye(6, dtype=torch.float64)


def random_orthogonal(size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q


DIRECTIONS = random_orthogonal(6)
COVARIANCE = DIRECTIONS @ torch.diag(torch.tensor([3.0, 11, 1, 7, 2, 5], dtype=torch.float64)) @ DIRECTIONS.T


def check_principal(basis: torch.Tensor) -> None:
    """Some directions are the principal ones inside the subspace that they span."""
    inside = basis.T @ COVARIANCE @ basis
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), rtol=0, atol=1e-12)


def test_principal_directions_by_falling_energy_with_positive_largest_components():
    basis = principal_basis(COVARIANCE)
    expected = DIRECTIONS[:, [1, 3, 5, 0, 4, 2]]
    signs = expected.gather(0, expected.abs().argmax(0, keepdim=True)).sign()
    torch.testing.assert_close(basis, expected * signs)
    torch.testing.assert_close(energies(basis, COVARIANCE), torch.tensor([11.0, 7, 5, 3, 2, 1], dtype=torch.float64))


def test_fixed_axes_stay_axes_and_the_rest_is_principal_among_itself():
    fixed = torch.tensor([1, 4])
    basis = principal_basis(COVARIANCE, fixed)
    torch.testing.assert_close(basis.T @ basis, EYE)
    positions = fixed_positions(basis, fixed)
    assert torch.equal(basis[:, positions], EYE[:, fixed])
    rest = [i for i in range(6) if i not in positions.tolist()]
    assert not basis[fixed][:, rest].any()
    check_principal(basis[:, rest])
    falling = energies(basis, COVARIANCE)
    assert (falling[1:] <= falling[:-1]).all()


def test_a_subspace_is_completed_by_the_complement_s_directions():
    subspace = random_orthogonal(6, 3)[:, :2]
    basis = completed_basis(subspace, COVARIANCE)
    torch.testing.assert_close(basis.T @ basis, EYE)
    torch.testing.assert_close(basis[:, :2] @ basis[:, :2].T, subspace @ subspace.T)
    check_principal(basis[:, :2])
    check_principal(basis[:, 2:])


def test_a_completed_subspace_keeps_fixed_axes():
    fixed = torch.tensor([1, 4])
    free = EYE[:, [0, 2, 3, 5]] @ random_orthogonal(4, 1)[:, :2]
    basis = completed_basis(torch.cat([free, EYE[:, 4:5]], 1), COVARIANCE, fixed)
    torch.testing.assert_close(basis.T @ basis, EYE)
    assert torch.equal(basis[fixed].abs().sum(0).sort().values, torch.tensor([0.0, 0, 0, 0, 1, 1]).double())
    assert fixed_positions(basis, fixed)[1] < 3 <= fixed_positions(basis, fixed)[0]
    with pytest.raises(ValueError, match='partly inside'):
        completed_basis(random_orthogonal(6)[:, :2], COVARIANCE, fixed)


def test_a_covariance_without_tokens_or_with_nan_is_refused():
    with pytest.raises(ValueError, match='no token was seen'):
        principal_basis(torch.zeros(6, 6))
    with pytest.raises(ValueError, match='not finite'):
        principal_basis(EYE * float('nan'))
    assert principal_within(EYE, EYE[:, :0]).shape == (6, 0)


def test_one_gain_that_keeps_the_readers_size(monkeypatch):
    monkeypatch.setattr('llmshearing.rotation.folding.ROWS', 4)  # so that there are several blocks
    weights = [torch.randn(9, 6), torch.randn(5, 6)]
    gain = torch.rand(6) + 0.1
    scale = scalar_gain(gain, [column_squares(weight) for weight in weights])
    size = sum(weight.square().sum() for weight in weights).sqrt()
    folded = sum((weight * gain / scale).square().sum() for weight in weights).sqrt()
    torch.testing.assert_close(folded, size)
    assert scalar_gain(torch.zeros(6), [column_squares(weights[0])]) == 1.0


def test_odd_axes_and_their_gains():
    gain = torch.tensor([1.0, 1.0, 5.0, 1.0, -3.0, 1.2])
    squares = torch.tensor([1.0, 1.0, 1.0, 1.0, 4.0, 100.0])
    assert odd_axes(gain, squares, 2).tolist() == [2, 4]
    assert odd_axes(gain, squares, 0).tolist() == []
    with pytest.raises(ValueError, match='7 fixed axes of 6'):
        odd_axes(gain, squares, 7)
    assert common_gain(gain, torch.tensor([2, 4])).tolist() == [1.0, 1.0, 5.0, 1.0, -3.0, 1.0]
    assert torch.equal(common_gain(gain, torch.arange(6)), gain.double())


def test_energy_and_the_factor_that_follows_from_it():
    squares = torch.tensor([[4.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(energy_kept(squares)[0], torch.tensor([0.5, 0.75, 0.875, 1.0], dtype=torch.float64))
    torch.testing.assert_close(cut_gain_factors(squares, 1), torch.tensor([2**0.5, 1.0], dtype=torch.float64))
    assert torch.equal(cut_gain_factors(squares, 4), torch.ones(2, dtype=torch.float64))
    assert table_widths(64) == list(range(4, 65, 4)) and table_widths(3) == [1, 2, 3]
    assert '| 2 | 62.5 % | 50.0 % | 50.0 % |' in energy_table(energy_kept(squares))
