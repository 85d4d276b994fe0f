"""llm-foundry 0.22 on transformers 5, which dropped arguments that llm-foundry still passes.

llm-foundry asks the class attribute ``model_cls`` of its Hugging Face models for ``from_pretrained`` and
``from_config``. :func:`install` puts an adapter there. It is a patched attribute and not a subclass, because the run
files of continued pre-training name llm-foundry's own ``hf_causal_lm``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llmshearing.compat.versions import TRANSFORMERS_5

__all__ = ['ModelLoader', 'install', 'keep_sharded_checkpoints']


class ModelLoader:
    """``AutoModelForCausalLM`` for a caller that still passes ``use_auth_token`` and ``load_in_8bit``."""

    @staticmethod
    def from_pretrained(*args: Any, use_auth_token: Any = None, load_in_8bit: bool = False, **kwargs: Any) -> Any:
        """Loads a model; arguments as for ``AutoModelForCausalLM.from_pretrained`` of transformers 4."""
        if nn.Module.register_parameter.__module__ != nn.Module.__module__:
            # llm-foundry is inside its init_empty_weights: it builds the model once to fill a cache of remote code and
            # drops it. That context cannot register the parameters that transformers 5 loads.
            return AutoModelForCausalLM.from_config(
                kwargs['config'],
                trust_remote_code=kwargs.get('trust_remote_code'),
                attn_implementation=kwargs.get('attn_implementation'),
            )
        if use_auth_token:
            kwargs.setdefault('token', use_auth_token)
        if load_in_8bit:
            kwargs['quantization_config'] = BitsAndBytesConfig(load_in_8bit=True)
        return AutoModelForCausalLM.from_pretrained(*args, **kwargs)

    @staticmethod
    def from_config(*args: Any, **kwargs: Any) -> Any:
        """Builds a model with random weights; arguments as for ``AutoModelForCausalLM.from_config``."""
        return AutoModelForCausalLM.from_config(*args, **kwargs)


def install() -> None:
    """Lets llm-foundry's Hugging Face models load under transformers 5; does nothing under 4, or a second time."""
    if TRANSFORMERS_5:
        from llmfoundry.models.hf import ComposerHFCausalLM

        ComposerHFCausalLM.model_cls = ModelLoader


def keep_sharded_checkpoints(fsdp_config: Mapping[str, Any] | None) -> None:
    """Lets a run on one process read and write the sharded checkpoints of runs on several.

    llm-foundry drops ``fsdp_config`` on one process before it builds Composer's trainer, and with it the kind of its
    checkpoints, although FSDP2 works there. The name that it calls the trainer by is the only place between the two.

    Args:
        fsdp_config (Mapping[str, Any] | None): Of the run that begins; without
            ``state_dict_type: sharded`` nothing is changed, and what was changed for another run before is undone.
    """
    import composer

    train = importlib.import_module('llmfoundry.command_utils.train')  # its package has a function of that name
    train.Trainer = composer.Trainer
    if not isinstance(fsdp_config, Mapping) or fsdp_config.get('state_dict_type') != 'sharded':
        return
    sharding = {key: value for key, value in fsdp_config.items() if not key.endswith('_planner')}

    def sharding_trainer(*args: Any, parallelism_config: dict[str, Any] | None = None, **settings: Any) -> Any:
        parallelism_config = dict(parallelism_config or {})
        if parallelism_config.get('fsdp') is None:
            parallelism_config['fsdp'] = dict(sharding)
        return composer.Trainer(*args, parallelism_config=parallelism_config, **settings)

    train.Trainer = sharding_trainer
