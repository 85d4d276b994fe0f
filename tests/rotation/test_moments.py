"""Moments of the normalised stream: by their definition, and in pieces."""

from __future__ import annotations

import pytest
import torch

from llmshearing.rotation.moments import StreamMoments, stream_mean_squares, stream_moments
from tests.rotation.models import IDS, source_model


def by_definition(model, ids: torch.Tensor) -> list[torch.Tensor]:
    """Normalised input of each norm, [tokens, hidden], from the layers' stock forward passes."""
    inputs = []
    for name, module in model.named_modules():
        if name.endswith(('layernorm', 'model.norm')):
            module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1).double()))
    with torch.no_grad():
        model(ids)
    return [x / (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt() for x in inputs]


def test_moments_by_their_definition():
    x_hat = by_definition(source_model(), IDS)
    moments = stream_moments(source_model(), [IDS])
    torch.testing.assert_close(moments.covariance, sum(x.T @ x for x in x_hat))
    torch.testing.assert_close(moments.squares, torch.stack([x.square().sum(0) for x in x_hat]))
    assert moments.tokens == IDS.numel() and len(x_hat) == 9


def test_batches_add_up_and_mean_squares_sum_to_the_width():
    model = source_model()
    whole = stream_moments(model, [IDS])
    pieces = stream_moments(model, [IDS[:1], IDS[1:]])
    torch.testing.assert_close(pieces.covariance, whole.covariance)
    squares = stream_mean_squares(model, [IDS[:1], IDS[1:]])
    torch.testing.assert_close(squares, whole.mean_squares())
    torch.testing.assert_close(squares.sum(1), torch.full((9,), 48.0, dtype=torch.float64), rtol=1e-3, atol=0)
    half = stream_mean_squares(model, [IDS], torch.eye(48, dtype=torch.float64)[:, ::2])
    torch.testing.assert_close(half, squares[:, ::2])


def test_tokens_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match='token 190 is outside the vocabulary of 97.*another tokenizer'):
        stream_moments(source_model(), [IDS + 97])


def test_no_hook_is_left():
    model = source_model()
    with pytest.raises(ValueError):
        stream_moments(model, [IDS + 97])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert StreamMoments.zeros(9, 48).mean_squares().sum() == 0
