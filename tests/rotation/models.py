"""Tiny models for the tests of rotation, whose gains differ enough that forgetting one is seen."""

from __future__ import annotations

import torch

from llmshearing.rotation.stream import stream_parts
from tests.models.tiny import MIXTURES, VARIANTS, tiny_model

NORMED_WRITERS = ('exaone4', 'gemma2', 'gemma3_text', 'glm4', 'hyperclovax', 'olmo2', 'olmo3', 'olmo_hybrid')
REFUSED = (*NORMED_WRITERS, *MIXTURES, 'cohere2', 'gpt_neox', 'jais2', 'nemotron', 'starcoder2')
REFUSED = tuple(name for name in REFUSED if name in VARIANTS)  # transformers 4 has fewer
ROTATABLE = [name for name in VARIANTS if not {name, name.partition('-')[0]} & {*REFUSED}]
IDS = torch.arange(2 * 24).reshape(2, 24) * 7 % 97


def source_model(variant: str = 'llama', dtype: torch.dtype = torch.float64, spread: float = 1.5, **overrides):
    """A tiny model with random gains between 0.1 and 0.1 + ``spread`` in all norms that read the stream."""
    model = tiny_model(variant, **overrides).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for norm in stream_parts(model.config).norms:
            weight = model.get_submodule(norm.path).weight
            gain = torch.rand(weight.shape, generator=generator, dtype=torch.float64) * spread + 0.1
            weight.copy_(gain - norm.offset)
    return model
