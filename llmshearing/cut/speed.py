"""Tokens per second of a model on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel

from llmshearing.utils.replaced import replaced

__all__ = ['tokens_per_second']

PROMPT = 8  # tokens that generation starts from
REPEATS = 3  # after one that does not count


@torch.inference_mode()
def tokens_per_second(model: PreTrainedModel, length: int = 512, new_tokens: int = 32) -> dict[str, float]:
    """Speed of a model at batch 1 where it is and in its own type; medians of :data:`REPEATS`.

    Args:
        model (PreTrainedModel): In evaluation mode.
        length (int): Tokens of the text that is read, at most the model's positions. Default: ``512``.
        new_tokens (int): Tokens to generate, at most what the positions leave. Default: ``32``.

    Returns:
        dict[str, float]: ``forward``: tokens/s of reading; ``generate``: tokens/s of greedy generation.
    """
    positions = getattr(model.config, 'max_position_embeddings', None) or length + new_tokens
    length, new_tokens = min(length, positions), min(new_tokens, positions - PROMPT)
    ids = torch.randint(0, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)

    def seconds(call: Callable, *args, **settings) -> float:
        start = time.perf_counter()
        call(*args, **settings)
        if model.device.type == 'cuda':
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - start

    generate, prompt = cast(Any, model).generate, ids[:, :PROMPT]
    plain = GenerationConfig(pad_token_id=0)  # the source's may sample, or ask for a tokenizer
    reading = [seconds(model, input_ids=ids, use_cache=False) for _ in range(REPEATS + 1)]
    with replaced(model, 'generation_config', plain):
        generating = [
            seconds(generate, prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens)
            for _ in range(REPEATS + 1)
        ]
    # The first call of each kind allocates and is left out.
    return {
        'forward': length / statistics.median(reading[1:]),
        'generate': new_tokens / statistics.median(generating[1:]),
    }
