"""The memory that a cut is said to take, part by part."""

from llmshearing.cut.memory import PROCESS, memory_needed
from llmshearing.models.shapes import ModelShape
from tests.models.tiny import tiny_model

TARGET = ModelShape(3, 24, 6, 2, 32, 8)


def needed(**settings):
    defaults = dict(axes=('layer', 'hidden', 'intermediate'), dtype='float32', sequences=1, length=2, shard_bytes=0)
    return memory_needed(tiny_model(**settings.pop('model', {})).config, TARGET, **{**defaults, **settings}) - PROCESS


def test_weights_and_whatever_is_largest_on_top():
    weights = sum(parameter.numel() for parameter in tiny_model().parameters())
    sums = 4 * (9 * 48**2 + 4 * 64**2)  # float32: hidden, read twice a layer and by the head, and intermediate
    sums += 4 * 64 * (64 + 48)  # the layer that goes, told from the inside of the one before
    assert needed() - needed(dtype='bfloat16') == 2 * weights
    assert needed() == 4 * weights + sums + 3 * 8 * 64**2
    smaller = sum(parameter.numel() for parameter in tiny_model(**SMALL).parameters())
    assert needed(compensate=False) == 4 * weights + 4 * smaller  # the folder, opened in float32
    assert needed(compensate=False, sequences=500, length=100) == 4 * weights + 3 * 4 * 500 * 100 * 97  # logits
    assert needed(methods=('taylor',), sequences=8, length=64) > needed(sequences=8, length=64)


SMALL = dict(num_hidden_layers=3, hidden_size=24, intermediate_size=32, head_dim=8)
