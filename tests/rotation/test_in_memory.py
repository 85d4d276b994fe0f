"""A model rotated in memory computes what it did, with as many fixed axes as a tied head asks for."""

from __future__ import annotations

import pytest
import torch

from llmshearing.rotation import check, in_memory, settings
from llmshearing.rotation.in_memory import rotate_in_memory
from llmshearing.rotation.moments import stream_moments
from tests.rotation.models import IDS, ROTATABLE, source_model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize('variant', ROTATABLE)
def test_untied_models_are_exact_and_their_dimensions_fall(variant):
    model = source_model(variant, torch.float32, tie_word_embeddings=False)
    before = logits(model)
    result = rotate_in_memory(model, [IDS])
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3)
    assert result.fixed_axes == 0 and result.loss_after == pytest.approx(result.loss_before, abs=1e-4)
    covariance = stream_moments(model, [IDS]).covariance
    energy = covariance.diagonal()
    assert torch.allclose(covariance, energy.diag(), atol=1e-3 * energy.max())
    assert (energy.diff() <= 1e-3 * energy.max()).all()


def tied_model_of_losses(monkeypatch, losses):
    """A model that is tried with 6 fixed axes first, and what is then measured, in order."""
    monkeypatch.setattr(settings, 'DEFAULT_FIXED_AXES', 6)
    losses = iter(losses)
    for module in (in_memory, check):
        monkeypatch.setattr(module, 'held_out_loss', lambda model, batches: next(losses))
    return source_model('llama-tied', torch.float32)


def test_a_tied_model_fixes_as_many_axes_as_it_needs(monkeypatch):
    # The source's loss; with 6, 12 and 24 axes fixed; the rotated model's.
    model = tied_model_of_losses(monkeypatch, [1.0, 1.5, 1.2, 1.005, 1.005])
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert rotate_in_memory(model, [IDS]).fixed_axes == 24
    assert model.lm_head.weight is model.model.embed_tokens.weight
    kept = (model.model.embed_tokens.weight[:, :, None] == own['model.embed_tokens.weight'][:, None]).all(0)
    assert kept.sum() == 24
    assert len(model.model.norm.weight.unique()) == 25


def test_a_tied_model_that_needs_them_all_is_left_as_it_is(monkeypatch):
    model = tied_model_of_losses(monkeypatch, [1.0, 1.5, 1.2, 1.2, 1.2, 1.0])
    before = logits(model)
    assert rotate_in_memory(model, [IDS]).fixed_axes == 48
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3)  # in another order
