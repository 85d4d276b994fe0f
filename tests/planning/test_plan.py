"""Guidance on shapes: said of what it is about, and of nothing else."""

import dataclasses

import pytest

from llmshearing.models.counting import layout_of
from llmshearing.models.shapes import ModelShape, shape_of
from llmshearing.planning.plan import shape_guidance, shape_warnings
from tests.models.tiny import tiny_model

SOURCE = ModelShape(32, 4096, 32, 8, 14336, 128)


@pytest.mark.parametrize(
    ('target', 'kept', 'words'),
    [
        (ModelShape(16, 4096, 32, 8, 14336, 128), 0.55, ['50% of the layers go']),
        (ModelShape(32, 3072, 8, 2, 10752, 128), 0.6, ['75% of the heads go']),
        (ModelShape(32, 2048, 16, 4, 14336, 128), 0.6, ['50% of the hidden dimensions go']),
        (ModelShape(28, 3584, 28, 7, 12544, 128), 0.7, []),
        (ModelShape(20, 2560, 20, 5, 8960, 128), 0.3, ['70% of the parameters go in one step']),
    ],
)
def test_what_is_said(target, kept, words):
    said = shape_guidance(SOURCE, target, kept)
    assert len(said) == len(words)
    for line, word in zip(said, words):
        assert word in line and 'arXiv' in line and line.startswith('guidance: ')


def test_a_budget_that_leaves_experts_alone_is_not_told_to_be_given_again():
    config = tiny_model('qwen3_moe').config
    source = shape_of(config)
    few = dataclasses.replace(
        source, hidden_size=source.hidden_size // 4, intermediate_size=source.intermediate_size // 4
    )
    (said,) = [line for line in shape_warnings(source, few, layout_of(config)) if 'far from' in line]
    assert f'num_experts={source.num_experts // 2}' in said and 'params:' not in said
