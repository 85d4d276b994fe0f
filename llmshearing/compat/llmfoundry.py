"""llm-foundry 0.22: on transformers 5, which dropped arguments that it still passes, and on one process.

llm-foundry asks the class attribute ``model_cls`` of its Hugging Face models for ``from_pretrained`` and
``from_config``, and names ``AutoConfig`` and ``AutoTokenizer`` in modules. :func:`install` puts adapters there. They
are patched attributes and not subclasses, because the run files of continued pre-training name llm-foundry's own
``hf_causal_lm``.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from llmshearing.compat.configs import OF_A_FORWARD_PASS
from llmshearing.compat.tokenizers import TokenizerLoader
from llmshearing.compat.transformers import dtype_argument
from llmshearing.compat.versions import TRANSFORMERS_5

__all__ = ['ConfigLoader', 'ModelLoader', 'install', 'keep_sharding']


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


class ConfigLoader:
    """``AutoConfig`` for llm-foundry's Hugging Face models, which trip over more outputs than they ask for."""

    @staticmethod
    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        """Reads a config, which asks for no more; arguments as for ``AutoConfig.from_pretrained`` of transformers 4."""
        if 'torch_dtype' in kwargs:  # transformers 5 warns of it in a call; in a config.json it does not
            kwargs |= dtype_argument(kwargs.pop('torch_dtype'))
        return AutoConfig.from_pretrained(*args, **OF_A_FORWARD_PASS, **kwargs)


def install() -> None:
    """Lets llm-foundry read any config and tokenizer and, under transformers 5, load its Hugging Face models."""
    hf_base: Any = importlib.import_module('llmfoundry.models.hf.hf_base')
    hf_base.AutoConfig = ConfigLoader
    builders: Any = importlib.import_module('llmfoundry.utils.builders')
    builders.AutoTokenizer = TokenizerLoader
    if TRANSFORMERS_5:
        from llmfoundry.models.hf import ComposerHFCausalLM

        ComposerHFCausalLM.model_cls = ModelLoader  # pyright: ignore[reportAttributeAccessIssue]  # stands in for its class


def keep_sharding(fsdp_config: dict[str, Any] | None) -> None:
    """Makes llm-foundry's ``train`` shard a run of one process, too, which it does not by itself.

    It drops ``fsdp_config`` where there is one process, and with it the kind of checkpoint: a sharded one of two
    processes could not be read by one, nor the reverse.

    Args:
        fsdp_config (dict[str, Any] | None): What the coming run is to be built with; ``None`` leaves it to llm-foundry.
    """
    from composer import Trainer

    def sharded_trainer(*args: Any, parallelism_config: dict[str, Any], **settings: Any) -> Trainer:
        return Trainer(*args, parallelism_config={**parallelism_config, 'fsdp': fsdp_config}, **settings)

    module: Any = importlib.import_module('llmfoundry.command_utils.train')  # the package has a function of that name
    module.Trainer = Trainer if fsdp_config is None else sharded_trainer
    if fsdp_config is not None:
        warnings.filterwarnings('ignore', message='FSDP is not applicable for single-GPU training')
