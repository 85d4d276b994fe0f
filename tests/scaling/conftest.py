"""Tiny models and data for the tests of the scaling laws."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def tiny_llama():
    """A function that builds a random LLaMA; keyword arguments override its configuration."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(seed: int = 0, **overrides) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        shape = dict(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(LlamaConfig(**(shape | overrides))).eval()

    return build


def write_domains() -> None:
    """Two domains of three random sequences each, in ``data/eval`` of the current folder."""
    from streaming import MDSWriter

    generator = np.random.default_rng(0)
    for domain in ('code', 'web'):
        with MDSWriter(out=f'data/eval/{domain}', columns={'tokens': 'ndarray:uint16:32'}) as writer:
            for _ in range(3):
                writer.write({'tokens': generator.integers(0, 64, 32).astype(np.uint16)})
