"""Inner channels of a mixer: the ones that matter most come first, and every weight of theirs moves with them."""

import pytest
import torch

from llmshearing.models.roles import Linear, PerUnit
from llmshearing.rotation.channels import channels_among
from tests.models.tiny import VARIANTS, tiny_model

WEIGHTS = {  # of three channels that read two dimensions; the norms of their rows are 1, 2, 3 and so on
    'in': torch.tensor([[1.0, 0], [2, 0], [0, 3], [0, 1], [1, 0], [1, 0], [2, 0], [0, 2], [0, 1]]),
    'conv': torch.tensor([[[3.0, 4]], [[0, 1]], [[1, 0]]]),
    'out': torch.tensor([[1.0, 0, 1], [0, 2, 0]]),
}
ROLES = {
    'in': Linear('three_channels', 'hidden'),
    'conv': PerUnit(('weight',), dim='channels'),
    'out': Linear('hidden', 'channels', writes=True),
    'norm': Linear('intermediate', 'hidden'),
}


def test_the_order_is_by_the_product_of_norms():
    channels = channels_among(ROLES)
    assert channels.sides == {'in': (0, 3), 'conv': (0, 1), 'out': (1, 1)}
    # 1*1*2 * 5 * 1 = 10, 2*1*2 * 1 * 2 = 8, 3*1*1 * 1 * 1 = 3: as they are; the second then ten times as large
    assert channels.order(WEIGHTS.__getitem__).tolist() == [0, 1, 2]
    larger = {**WEIGHTS, 'out': WEIGHTS['out'] * torch.tensor([1, 10, 4])}
    order = channels.order(larger.__getitem__)
    assert order.tolist() == [1, 2, 0]
    assert channels.taken('in', 'weight', WEIGHTS['in'], order[:2], 3).tolist() == [
        WEIGHTS['in'][row].tolist() for row in (1, 2, 4, 5, 7, 8)
    ]
    assert channels.taken('in', 'bias', torch.arange(9), order[:1], 3).tolist() == [1, 4, 7]
    assert channels.taken('out', 'weight', WEIGHTS['out'], order, 3).tolist() == [[0, 1, 1], [2, 0, 0]]
    assert channels.taken('out', 'bias', torch.arange(2), order, 3).tolist() == [0, 1]


def test_a_mixer_without_such_channels_has_none():
    assert channels_among({'q': Linear('query', 'hidden'), 'o': Linear('hidden', 'query', writes=True)}) is None


@pytest.mark.skipif('lfm2' not in VARIANTS, reason='transformers 4 has no such model')
def test_channels_in_any_order_compute_the_same():
    from llmshearing.rotation.stream import stream_parts

    model, ids = tiny_model('lfm2-adjusted').double(), torch.arange(1, 30)[None]
    with torch.no_grad():
        expected = model(ids).logits
        (first, *_) = stream_parts(model.config).channels
        order = torch.randperm(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        for path in first.sides:
            for kind, parameter in model.get_submodule(path).named_parameters():
                parameter.copy_(first.taken(path, kind, parameter.clone(), order, len(order)))
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-12, atol=1e-12)
