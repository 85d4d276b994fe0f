"""The memory that a cut is said to take, part by part."""

from llmshearing.cut.memory import PROCESS, memory_needed
from llmshearing.models.shapes import ModelShape
from tests.models.tiny import tiny_model

TARGET = ModelShape(3, 24, 6, 2, 32, 8)


def needed(**settings):
    defaults = dict(axes=('layer', 'hidden', 'intermediate'), dtype='float32', sequences=1, length=2, tokens=100)
    return memory_needed(tiny_model(**settings.pop('model', {})).config, TARGET, **{**defaults, **settings}) - PROCESS


def test_weights_and_whatever_is_largest_on_top():
    weights = sum(parameter.numel() for parameter in tiny_model().parameters())
    # Of each token the streams, and what the projections of a layer read; and the widest sums, in both precisions.
    held, sums = 100 * (7 * 48 + 48 + 2 * 64), 4 * 8 * 64**2
    assert needed() - needed(dtype='bfloat16') == 2 * (weights + held)
    assert needed() == 4 * (weights + held) + sums
    assert needed(tokens=10**9) == 4 * (weights + held // 100 * 16_384) + sums  # more are not looked at
    smaller = sum(parameter.numel() for parameter in tiny_model(**SMALL).parameters())
    assert needed(compensate=False) == 4 * weights + 2 * 4 * smaller  # the folder, opened in float32, and a file of it
    assert needed(compensate=False, sequences=500, length=100) == 4 * weights + 3 * 4 * 500 * 100 * 97  # logits
    assert needed(in_file=True) == needed() - 4 * weights
    assert needed(in_file=True, compensate=False) == 4 * smaller  # one file, while it fills
    assert needed(methods=('taylor',), sequences=8, length=64) > needed(sequences=8, length=64)


SMALL = dict(num_hidden_layers=3, hidden_size=24, intermediate_size=32, head_dim=8)
