"""Closed forms of the gate, the warm-up, the penalty and the overall sparsity."""

import math

import pytest
import torch

from llmshearing.masks.constraints import overall_sparsity, penalty, target_sparsity
from llmshearing.masks.hard_concrete import deterministic_gate, probability_kept, sample_gate
from llmshearing.models.shapes import ModelShape


@pytest.mark.parametrize('log_alpha', [-4.0, -1.0, 0.0, 0.7, 4.0])
def test_probability_kept_is_the_frequency_of_open_gates(log_alpha):
    expected = 1 / (1 + math.exp(-(log_alpha - (2 / 3) * math.log(0.1 / 1.1))))
    assert probability_kept(torch.tensor(log_alpha)).item() == pytest.approx(expected, rel=1e-6)
    gates = sample_gate(torch.full((200_000,), log_alpha), torch.Generator().manual_seed(0))
    assert (gates > 0).float().mean().item() == pytest.approx(
        expected, abs=4 * math.sqrt(expected * (1 - expected) / 2e5)
    )
    assert gates.min() >= 0 and gates.max() <= 1


def test_probability_is_clamped_at_both_ends():
    ends = probability_kept(torch.tensor([-100.0, 100.0]))
    assert ends.tolist() == pytest.approx([1e-6, 1 - 1e-6], rel=1e-3)


def test_deterministic_gate():
    # sigmoid(0.8 * log_alpha / (2/3)) = sigmoid(1.2 * log_alpha)
    assert deterministic_gate(torch.tensor(1.5)).item() == pytest.approx(1 / (1 + math.exp(-1.8)), rel=1e-6)


def test_gates_pass_gradients_only_where_they_are_open_and_not_saturated():
    log_alpha = torch.zeros(10_000, requires_grad=True)
    gates = sample_gate(log_alpha, torch.Generator().manual_seed(1))
    gates.sum().backward()
    inside = (gates > 0) & (gates < 1)
    assert (log_alpha.grad[inside] > 0).all()
    assert (log_alpha.grad[~inside] == 0).all()
    # dz/dlog_alpha = (r - l) / beta * s * (1 - s), with s from z
    s = (gates[inside].detach() + 0.1) / 1.2
    torch.testing.assert_close(log_alpha.grad[inside], 1.2 / (2 / 3) * s * (1 - s), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('progress, expected', [(0.0, 0.1), (0.25, 0.2), (0.5, 0.3), (1.0, 0.5), (7.0, 0.5)])
def test_target_rises_linearly_and_stays(progress, expected):
    assert target_sparsity(progress, 0.1, 0.5) == pytest.approx(expected)
    assert target_sparsity(progress, 0.5, 0.125) == 0.125  # does not run backwards


def test_penalty_and_its_derivatives():
    sparsity = torch.tensor([0.2, 0.6], requires_grad=True)
    multipliers = torch.tensor([3.0, 5.0], requires_grad=True)
    value = penalty(sparsity, 0.5, multipliers[0], multipliers[1])
    # mean of 3 * gap + 5 * gap^2 over gaps -0.3 and 0.1
    assert value.item() == pytest.approx((3 * -0.3 + 5 * 0.09 + 3 * 0.1 + 5 * 0.01) / 2)
    value.backward()
    torch.testing.assert_close(
        sparsity.grad, torch.tensor([(3 + 10 * -0.3) / 2, (3 + 10 * 0.1) / 2]), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(multipliers.grad, torch.tensor([-0.1, 0.05]), atol=1e-6, rtol=1e-6)


def test_overall_sparsity_of_binary_masks_is_the_fraction_of_weights_removed():
    shape = ModelShape(
        num_hidden_layers=3,
        hidden_size=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=10,
        head_dim=4,
    )
    kept = {
        'hidden': torch.tensor([1.0, 1, 1, 0, 0, 1, 1, 1]),
        'layer': torch.tensor([1.0, 0, 1]),
        'head': torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]),
        'intermediate': torch.ones(3, 10),
    }
    kept['intermediate'][0, :4] = 0
    # layer 0: 3 heads over 2 KV heads, 6 intermediate; layer 2: 2 heads over 1 KV head, 10 intermediate; 6 hidden
    remaining = 6 * (2 * 3 * 4 + 2 * 2 * 4 + 3 * 6) + 6 * (2 * 2 * 4 + 2 * 1 * 4 + 3 * 10)
    total = 3 * 8 * (2 * 4 * 4 + 2 * 2 * 4 + 3 * 10)
    assert overall_sparsity(kept, shape) == pytest.approx(1 - remaining / total, abs=1e-6)
    assert overall_sparsity({}, shape) == 0.0
