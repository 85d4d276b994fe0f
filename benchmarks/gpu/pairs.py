"""Pairs of a source and a target whose steps are measured, and one of them at a number of tokens on a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from llmshearing.compat.transformers import dtype_argument
from llmshearing.models.shapes import ModelShape, resolve_target, shape_of, with_shape

__all__ = ['LARGE', 'SMALL', 'TOY', 'Pair', 'Setting']


@dataclasses.dataclass(frozen=True)
class Pair:
    """A source and a target.

    Attributes:
        name (str): As in the table.
        source (dict): Settings of a LlamaConfig.
        target (dict): What differs in the target.
        length (int): Tokens per sequence.
        tokens (tuple[int, ...]): Per micro-batch.
        checkpointing (int): From so many tokens on, activations are computed twice, by every kind of step.
    """

    name: str
    source: Mapping[str, Any]
    target: Mapping[str, Any]
    length: int
    tokens: tuple[int, ...]
    checkpointing: int


LLAMA_32 = dict(vocab_size=128256, tie_word_embeddings=True, rope_theta=500000.0, max_position_embeddings=8192)
SMALL = Pair(
    'Llama-3.2-1B to 0.4B',
    dict(
        LLAMA_32,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
    ),
    dict(hidden_size=1280, intermediate_size=4608, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=8),
    4096,
    (16384, 8192, 32768),
    32768,
)
LARGE = Pair(
    'Llama-3.2-3B to 1B',
    dict(
        LLAMA_32,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
    ),
    dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=20, num_attention_heads=16, num_key_value_heads=8),
    4096,
    (8192, 16384, 32768),
    16384,
)
TOY = Pair(
    'toy',
    dict(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    ),
    dict(hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2),
    32,
    (64,),
    1 << 30,
)


@dataclasses.dataclass
class Setting:
    """One pair at one number of tokens on one device: what every kind of step is built from."""

    pair: Pair
    tokens: int
    device: str

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(use_cache=False, bos_token_id=0, eos_token_id=0, **self.pair.source)

    @property
    def shapes(self) -> tuple[ModelShape, ModelShape]:
        source = shape_of(self.config)
        return source, resolve_target(source, dict(self.pair.target), True)

    @property
    def ids(self) -> Tensor:
        length = min(self.pair.length, self.tokens)
        ids = torch.randint(
            3, self.config.vocab_size, (self.tokens // length, length), generator=torch.Generator().manual_seed(1)
        )
        return ids.to(self.device)

    def model(self, of_target: bool = False) -> nn.Module:
        """The source, or the target's shape, in bfloat16 with random weights and in training mode."""
        torch.manual_seed(0)
        config = with_shape(self.config, self.shapes[1], True) if of_target else self.config
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation='sdpa', **dtype_argument(torch.bfloat16)
            ).train()
        if self.tokens >= self.pair.checkpointing:
            model.gradient_checkpointing_enable({'use_reentrant': False})
        return model

    @property
    def label(self) -> str:
        checkpointing = ', checkpointing' if self.tokens >= self.pair.checkpointing else ''
        return f'{self.pair.name}, {self.tokens} tokens{checkpointing}'

    def flops(self, number: int) -> float:
        """Of the source's (0) or the target's (1) products in a step; what is computed twice counts once.

        Forward and backward, and of causal attention the half that is needed.
        """
        shape = self.shapes[number]
        query = shape.num_attention_heads * shape.head_dim
        key_value = shape.num_key_value_heads * shape.head_dim
        layer = 2 * shape.hidden_size * (query + key_value) + 3 * shape.hidden_size * shape.intermediate_size
        weights = shape.num_hidden_layers * layer + shape.hidden_size * self.config.vocab_size
        attention = shape.num_hidden_layers * query * min(self.pair.length, self.tokens)
        return 6.0 * self.tokens * (weights + attention)
