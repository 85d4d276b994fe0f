"""A model without memory, from its config: what parameters there are, before any weight is read."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from llmshearing.compat.transformers import attention_implementation, dtype_argument
from llmshearing.utils.replaced import replaced

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ['build_empty', 'build_on_meta', 'parameters_on_meta']

# Settings that modelling code trips over when they are wrong.
OFTEN_WRONG = (
    'hidden_act',
    'rope_parameters',
    'rope_scaling',
    'rope_theta',
    'vocab_size',
    'pad_token_id',
    'initializer_range',
)


def build_on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """Builds a causal language model on the meta device, of 80 layers in about a second.

    Raises:
        ValueError: If none can be built, with what its config gives; modelling code answers a value that it does not
            know in any of six ways.
    """
    MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # imports the modelling code, which must not happen under the meta device
    try:
        with torch.device('meta'):
            return AutoModelForCausalLM.from_config(config, attn_implementation='eager')
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        got = ', '.join(f'{key}={getattr(config, key)!r}' for key in OFTEN_WRONG if hasattr(config, key))
        raise ValueError(
            f'transformers builds no {config.model_type} model from the config of {config.name_or_path or "the source"}'
            f' ({type(error).__name__}: {error}); correct what its config.json gives, most often one of {got}.'
        ) from error


def build_empty(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Builds a causal language model whose parameters, of such a type, take no memory; its buffers are there."""
    with parameters_on_meta():
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=attention_implementation(config), **dtype_argument(dtype)
        )


def parameters_on_meta() -> AbstractContextManager[None]:
    """Moves each parameter to the meta device as its module takes it; buffers keep their values."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # one that is tied there stays the same
            parameter = nn.Parameter(parameter.detach().to('meta'), parameter.requires_grad)
        register(module, name, parameter)

    return replaced(nn.Module, 'register_parameter', register_on_meta)
