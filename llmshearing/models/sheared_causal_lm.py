"""``sheared_causal_lm``: llm-foundry's Hugging Face causal LM, able to run under masks.

Everything a run needs besides masks (loading, FSDP wrapping, tokenizer, metrics, checkpoint metadata) is llm-foundry's
and Composer's. Defaults differ where they cost: no full-vocabulary metrics on training batches, cross-entropy and
perplexity only in evaluation, ``sdpa`` attention, and no remote code.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from llmfoundry.models.hf import ComposerHFCausalLM
from llmfoundry.utils.config_utils import set_config_overrides
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from llmshearing.compat import composer, llmfoundry
from llmshearing.compat.transformers import attention_implementation, set_attention, set_dtype
from llmshearing.models.cuttable import Cutter
from llmshearing.models.source_config import read_config

__all__ = ['ShearedCausalLM']

log = logging.getLogger(__name__)

llmfoundry.install()
composer.install()


class ShearedCausalLM(ComposerHFCausalLM):
    """A causal language model whose layers, heads, KV groups and dimensions can be masked.

    Args:
        tokenizer (PreTrainedTokenizerBase): The source's tokenizer.
        pretrained_model_name_or_path (str): Hugging Face folder or name of the source model.
        trust_remote_code (bool): Run code that comes with the model. Default: ``False``.
        attn_implementation (str): ``'sdpa'``, ``'flash_attention_2'`` or ``'eager'``. Default: ``'sdpa'``, or
            ``'eager'`` where a config soft-caps scores, which sdpa cannot.
        **kwargs (Any): As for llm-foundry's ``hf_causal_lm``.

    Raises:
        ValueError: If the model's type has no family table.
    """

    default_train_metrics: tuple = ()
    default_eval_metrics: tuple = ('language_cross_entropy', 'language_perplexity')
    cutter: Cutter

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        pretrained_model_name_or_path: str,
        trust_remote_code: bool = False,
        attn_implementation: str = 'sdpa',
        **kwargs: Any,
    ):
        config = read_config(pretrained_model_name_or_path, trust_remote_code)
        possible = attention_implementation(config, attn_implementation)
        if possible != attn_implementation:
            log.info('attn_implementation: %s, which soft-caps scores as this config asks.', possible)
        super().__init__(
            tokenizer=tokenizer,  # pyright: ignore[reportArgumentType]  # Composer's base takes None, which this omits
            pretrained_model_name_or_path=pretrained_model_name_or_path,
            trust_remote_code=trust_remote_code,
            attn_implementation=possible,
            **kwargs,
        )
        self.source = pretrained_model_name_or_path
        # Not a submodule: it only holds references to modules that are already in the tree.
        self.cutter = Cutter(self.model)

    @classmethod
    def build_config(
        cls,
        pretrained_model_name_or_path: str,
        trust_remote_code: bool,
        use_auth_token: bool,
        attn_implementation: str,
        config_overrides: dict[str, Any],
    ) -> PretrainedConfig:
        """llm-foundry's, from a config that either generation of transformers may have written."""
        config = read_config(pretrained_model_name_or_path, trust_remote_code)
        if cls.subselect_config_attr is not None:
            config = getattr(config, cls.subselect_config_attr, config)
        config.use_cache = False
        set_attention(config, attn_implementation)
        set_dtype(config, torch.float32)
        set_config_overrides(config, config_overrides)
        return config
