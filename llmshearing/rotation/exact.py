"""float64 all the way: transformers' RMSNorms compute in float32 whatever their input is.

Two models that compute the same function in exact arithmetic differ by 1e-7 through that alone, which would hide small
mistakes. Inside :func:`_exact_norms` a model in float64 rounds nowhere to less, and a rotated model agrees with its
source to 1e-12.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmshearing.models.roles import Norm
from llmshearing.rotation.moments import norm_epsilon, stream_device
from llmshearing.rotation.stream import check_rotatable, stream_parts

__all__ = ['exact_logits']


@contextlib.contextmanager
def _exact_norms(model: PreTrainedModel) -> Iterator[None]:
    """All RMSNorms of a rotatable model compute in the type of their input inside the block."""
    family = check_rotatable(model.config)
    norms = [
        (model.get_submodule(path), role.offset)
        for path, role, _ in family.modules(model.config.num_hidden_layers)
        if isinstance(role, Norm)
    ]
    for norm, offset in norms:
        norm.forward = _forward(norm, offset)
    try:
        yield
    finally:
        for norm, _ in norms:
            del norm.forward


def _forward(norm: nn.Module, offset: float) -> Callable[[Tensor], Tensor]:
    epsilon = norm_epsilon(norm)

    def forward(x: Tensor) -> Tensor:
        weight: Any = norm.weight  # a parameter, or what a functional call puts in its place
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * (weight + offset)

    return forward


@torch.no_grad()
def exact_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [batch, tokens, vocabulary] on CPU, with norms in the model's own type."""
    device = stream_device(model, stream_parts(model.config))
    with _exact_norms(model):
        return model(input_ids=ids.to(device), use_cache=False).logits.cpu()
