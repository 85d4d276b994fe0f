"""The memory that a cut is said to take, part by part."""

from llmshearing.cut import memory
from llmshearing.cut.memory import PROCESS, layers_by_pass, memory_needed
from llmshearing.models.shapes import ModelShape
from tests.models.tiny import tiny_model

TARGET = ModelShape(3, 24, 6, 2, 32, 8)


def needed(**settings):
    defaults = dict(axes=('layer', 'hidden', 'intermediate'), dtype='float32', sequences=1, length=2)
    return memory_needed(tiny_model(**settings.pop('model', {})).config, TARGET, **{**defaults, **settings}) - PROCESS


def test_weights_and_whatever_is_largest_on_top():
    weights = sum(parameter.numel() for parameter in tiny_model().parameters())
    # Of each of the layers that stay, float32: hidden dimensions, read twice and by the head, the inside of the MLP,
    # and that once more beside the stream, where layers that go are told from it.
    sums = 3 * 4 * (3 * 48**2 + 64**2 + 64 * (64 + 48))
    assert needed() - needed(dtype='bfloat16') == 2 * weights
    assert needed() == 4 * weights + sums + 3 * 8 * 64**2
    smaller = sum(parameter.numel() for parameter in tiny_model(**SMALL).parameters())
    assert needed(compensate=False) == 4 * weights + 2 * 4 * smaller  # the folder, opened in float32, and a file of it
    assert needed(compensate=False, sequences=500, length=100) == 4 * weights + 3 * 4 * 500 * 100 * 97  # logits
    assert needed(in_file=True) == needed() - 4 * weights
    assert needed(in_file=True, compensate=False) == 4 * smaller  # one file, while it fills
    assert needed(methods=('taylor',), sequences=8, length=64) > needed(sequences=8, length=64)


SMALL = dict(num_hidden_layers=3, hidden_size=24, intermediate_size=32, head_dim=8)


def test_a_pass_of_compensation_sees_to_as_many_layers_as_memory_takes(monkeypatch):
    shape = ModelShape(8, 48, 6, 2, 64, 8)
    layer = 4 * (3 * 48**2 + 64**2 + 64 * (64 + 48))
    axes = ('layer', 'hidden', 'intermediate')
    assert layers_by_pass(shape, axes, [0, 2, 3, 5, 7]) == [[0, 2, 3, 5, 7]]
    assert layers_by_pass(shape, ('expert',), [0, 1]) == [[0, 1]]  # nothing is added up
    monkeypatch.setattr(memory, 'SUMS_AT_ONCE', 2 * layer)
    assert layers_by_pass(shape, axes, [0, 2, 3, 5, 7]) == [[5, 7], [2, 3], [0]]  # the last ones first
    monkeypatch.setattr(memory, 'SUMS_AT_ONCE', 4 * 64 * (64 + 48))
    assert layers_by_pass(shape, ('layer',), [0, 2]) == [[2], [0]]
    monkeypatch.setattr(memory, 'SUMS_AT_ONCE', 1)
    assert layers_by_pass(shape, axes, [0, 2, 3]) == [[3], [2], [0]]
