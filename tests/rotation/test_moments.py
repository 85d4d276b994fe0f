"""Moments of the normalised stream: by their definition, in pieces, over ranks."""

from __future__ import annotations

import os

import pytest
import torch
from torch import distributed, multiprocessing

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
    pieces = stream_moments(model, [IDS[:1], {'input_ids': IDS[1:]}])
    torch.testing.assert_close(pieces.covariance, whole.covariance)
    squares = stream_mean_squares(model, [IDS[:1], IDS[1:]])
    torch.testing.assert_close(squares, whole.mean_squares())
    torch.testing.assert_close(squares.sum(1), torch.full((9,), 48.0, dtype=torch.float64), rtol=1e-3, atol=0)
    half = stream_mean_squares(model, [IDS], torch.eye(48, dtype=torch.float64)[:, ::2])
    torch.testing.assert_close(half, squares[:, ::2])


def test_padding_does_not_count():
    model = source_model()
    padded = torch.cat([IDS, torch.zeros(2, 5, dtype=torch.long)], 1)
    mask = torch.ones_like(padded)
    mask[:, 24:] = 0
    moments = stream_moments(model, [{'input_ids': padded, 'attention_mask': mask}])
    whole = stream_moments(model, [IDS])
    assert moments.tokens == whole.tokens
    torch.testing.assert_close(moments.covariance, whole.covariance)
    squares = stream_mean_squares(model, [{'input_ids': padded, 'attention_mask': mask}])
    torch.testing.assert_close(squares, whole.mean_squares())


def test_tokens_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match='has the token id 190, outside a vocabulary of 97.*another tokenizer'):
        stream_moments(source_model(), [IDS + 97])


def _rank(rank: int, place: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{place}/meet', rank=rank, world_size=2)
    model = source_model()
    moments = stream_moments(model, [IDS[rank : rank + 1]]).over_ranks()
    torch.save((moments.covariance, moments.squares, moments.tokens), f'{place}/rank{rank}')
    distributed.barrier()
    os._exit(0)  # torch 2.7's gloo was seen to wait for ever while it was taken down, after all was computed


def test_two_ranks_see_what_one_does(tmp_path):
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    one = stream_moments(source_model(), [IDS])
    for rank in range(2):
        covariance, squares, tokens = torch.load(tmp_path / f'rank{rank}')
        assert tokens == one.tokens
        torch.testing.assert_close(covariance, one.covariance, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(squares, one.squares, rtol=1e-12, atol=1e-12)


def test_no_hook_is_left():
    model = source_model()
    with pytest.raises(ValueError):
        stream_moments(model, [IDS + 97])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert StreamMoments.zeros(9, 48).mean_squares().sum() == 0
