"""The tensors that have a row per token, found through transformers, and a model's tensors with fewer of these rows.

``get_input_embeddings`` and ``get_output_embeddings`` name the embedding and the LM head of any decoder, so no table of
families is needed. A tied head is in no file, or is in one as a copy, which loses the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor
from llmshearing.models.families import stored_name
from llmshearing.models.on_meta import build_on_meta

__all__ = ['rows_by_token', 'trimmed_tensors']


def rows_by_token(config: PretrainedConfig) -> dict[str, int]:
    """Rows of each tensor with a row per token, by its name in a model folder; the embedding is the first.

    Raises:
        ValueError: If transformers has no decoder of this type, it does not say which its embedding is, or embedding
            and LM head have different numbers of rows.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f'transformers has no decoder of model_type {config.model_type!r}; expected one.')
    model: Any = build_on_meta(config)
    embedding = model.get_input_embeddings()
    found = {}
    for module in (embedding, model.get_output_embeddings()):
        path = next((path for path, other in model.named_modules() if other is module), None)
        if path is None and module is embedding:
            raise ValueError(f'model_type {config.model_type!r} does not say which module its embedding is.')
        for name, parameter in [] if path is None else module.named_parameters(recurse=False):
            found[stored_name(config, f'{path}.{name}')] = parameter.shape[0]
    if len(set(found.values())) != 1:
        raise ValueError(f'embedding and LM head have different numbers of rows: {found}; expected one number.')
    return found


def trimmed_tensors(
    stored: Mapping[str, StoredTensor], by_token: Mapping[str, int], kept: Sequence[int]
) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of the trimmed model, one after the other, in the types in which they are stored.

    Args:
        stored (Mapping[str, StoredTensor]): The source's.
        by_token (Mapping[str, int]): :func:`rows_by_token` of its config.
        kept (Sequence[int]): Old ids in the order of the new ones.
    """
    rows = torch.tensor(list(kept))
    for name, tensor in stored.items():
        yield name, tensor.read()[rows] if name in by_token else tensor.read()
