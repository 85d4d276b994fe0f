"""The learned subspace: the cut model it computes with, its steps, and going on from a saved state."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from llmshearing.models.shapes import shape_of, with_shape
from llmshearing.rotation.basis import completed_basis, principal_basis
from llmshearing.rotation.learning import SubspaceLearner, cut_loss, cut_parameters, folded_parameters, polar_factor
from llmshearing.rotation.moments import stream_moments
from llmshearing.rotation.rotate import Rotation, rotate_model
from llmshearing.rotation.stream import stream_parts
from tests.rotation.models import IDS, ROTATABLE, source_model


@pytest.mark.parametrize('variant', ROTATABLE)
def test_cut_parameters_are_the_leading_dimensions_of_the_rotated_model(variant):
    model = source_model(variant, torch.float32)
    parts = stream_parts(model.config)
    basis = principal_basis(stream_moments(model, [IDS]).covariance)
    kept, factors = 32, torch.linspace(0.8, 1.2, len(parts.norms))
    folded = folded_parameters(model)
    with torch.no_grad():
        loss = cut_loss(model, cut_parameters(parts, folded, basis[:, :kept].float(), factors), IDS)
    rotated = rotate_model(model, Rotation(basis))
    small = AutoModelForCausalLM.from_config(
        with_shape(rotated.config, dataclasses.replace(shape_of(rotated.config), hidden_size=kept))
    ).eval()
    gains = {f'{norm.path}.weight': (norm, factor) for norm, factor in zip(parts.norms, factors)}
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            value = rotated.get_parameter(name)
            if name.rpartition('.')[0].endswith('conv.in_proj'):  # three times the channels
                value = value.unflatten(0, (3, -1))[:, :kept].flatten(0, 1)
            value = value[tuple(slice(size) for size in parameter.shape)]
            if name in gains:
                norm, factor = gains[name]
                value = (value + norm.offset) * factor - norm.offset
            parameter.copy_(value)
        logits = small(IDS, use_cache=False).logits
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def new_learner():
    """A learner of 24 dimensions at the principal directions, and its loss."""
    model = source_model('llama', torch.float32).requires_grad_(False)
    parts = stream_parts(model.config)
    basis = principal_basis(stream_moments(model, [IDS]).covariance)
    folded, ones = folded_parameters(model), torch.ones(len(parts.norms))

    def loss_of(subspace):
        return cut_loss(model, cut_parameters(parts, folded, subspace, ones), IDS)

    return SubspaceLearner.start(basis, 24), loss_of


def test_learning_lowers_the_loss_and_stays_orthonormal():
    learner, loss_of = new_learner()
    losses = [learner.step(loss_of) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.2
    subspace = learner.subspace()
    torch.testing.assert_close(subspace.T @ subspace, torch.eye(24, dtype=torch.float64))


def test_a_step_follows_the_gradient_of_the_subspace_and_has_the_stated_size():
    learner, loss_of = new_learner()
    before = learner.subspace()
    free = before.float().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(free), free)
    gradient = gradient.double() - before @ (before.T @ gradient.double())
    learner.step(loss_of)
    change = learner.subspace() - before
    assert functional.cosine_similarity(change.flatten(), -gradient.flatten(), 0) > 0.999
    expected = 0.02 * 24**0.5
    assert abs(change.norm().item() - expected) < 0.1 * expected


def test_only_the_subspace_matters_to_the_loss():
    learner, loss_of = new_learner()
    turned = learner.subspace() @ torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    torch.testing.assert_close(loss_of(turned.float()), loss_of(learner.subspace().float()))


def test_going_on_from_saved_tensors_gives_the_same_bits():
    whole, loss_of = new_learner()
    for _ in range(4):
        whole.step(loss_of)
    first, loss_of = new_learner()
    for _ in range(2):
        first.step(loss_of)
    second = SubspaceLearner.from_tensors(dict(first.tensors()))
    for _ in range(2):
        second.step(loss_of)
    assert torch.equal(second.free, whole.free)
    assert second.square == whole.square and second.steps == whole.steps == 4


def test_fixed_axes_stay_in_a_learned_subspace():
    model = source_model('llama-tied', torch.float32).requires_grad_(False)
    parts, fixed = stream_parts(model.config), torch.tensor([3, 17, 30])
    covariance = stream_moments(model, [IDS]).covariance
    basis = principal_basis(covariance, fixed)
    gain = model.model.norm.weight.double()
    folded, ones = folded_parameters(model, gain), torch.ones(len(parts.norms))
    learner = SubspaceLearner.start(basis, 24, fixed)
    for _ in range(3):
        learner.step(lambda subspace: cut_loss(model, cut_parameters(parts, folded, subspace, ones), IDS))
    axes = basis[fixed][:, :24].abs().sum(0) > 0.5
    assert learner.axes.shape[1] == axes.sum()
    assert learner.free[fixed].abs().max() < 1e-12
    completed = completed_basis(learner.subspace(), covariance, fixed)
    torch.testing.assert_close(completed.T @ completed, torch.eye(48, dtype=torch.float64))
    assert ((completed[fixed] == 0) | (completed[fixed] == 1)).all()


def test_polar_factor_is_the_nearest_orthonormal_matrix():
    matrix = torch.randn(9, 4, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(polar_factor(matrix), left @ right)


def test_a_subspace_that_keeps_all_or_nothing_is_refused():
    for kept in (0, 48):
        with pytest.raises(ValueError, match='expected 1 to 47'):
            SubspaceLearner.start(torch.eye(48), kept)
