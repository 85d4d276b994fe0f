"""What a run's process needs before anything is built, in one function: :func:`prepare_process`.

``llmshearing/train.py`` calls it before Composer is imported, the config transform once the configuration is known. The
environment decides where it has a value. Two settings are safer than llm-foundry's: no code that comes with a model is
run unless the configuration asks for it, and no checkpoint is loaded that could run code.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from llmshearing.config.files import expand_paths
from llmshearing.config.parts import section_names

__all__ = ['prepare_process']

ENVIRONMENT = {
    'FSDP_VERSION': '2',  # read by Composer when it builds the trainer; FSDP1 cannot shard on CPU and is not tested
    'TOKENIZERS_PARALLELISM': 'false',  # threads of the tokenizer do not survive the forks of loaders
}
# Modules whose deprecations are theirs to mend; they fill the first screen of a run.
NOISY = ('pkg_resources', 'composer', 'llmfoundry', 'streaming', 'torch', 'torchmetrics', 'transformers', 'google')


def prepare_process(config: dict[str, Any] | None = None) -> None:
    """Sets environment variables and, for a configuration, the level of our loggers, the guard of checkpoint loading
    and the defaults that are safer than llm-foundry's.

    Args:
        config (dict[str, Any] | None): A whole llm-foundry training configuration; defaults are filled in. Default:
            ``None``, it is not known yet.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _silence_deprecations()
    if config is None:
        return
    from llmshearing.checkpoints.guard import guard_checkpoint_loading
    from llmshearing.compat import composer, llmfoundry

    composer.install()
    llmfoundry.install()
    guard_checkpoint_loading()
    level = config.get('python_log_level', 'debug')  # llm-foundry's default; it sets the level of its own loggers only
    if isinstance(level, str) and level.upper() in logging.getLevelNamesMapping():
        logging.getLogger('llmshearing').setLevel(level.upper())
    _trust_no_remote_code(config)
    expand_paths(config)


def _silence_deprecations() -> None:
    for module in NOISY:
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.filterwarnings('ignore', category=category, module=rf'{module}(\.|$)')


def _trust_no_remote_code(config: dict[str, Any]) -> None:
    """llm-foundry runs code that comes with a model unless told otherwise, and transformers asks on the terminal."""
    from llmfoundry import registry

    model, tokenizer = config.get('model'), config.get('tokenizer')
    if section_names(model, 'name') and model['name'] in ('sheared_causal_lm', 'hf_causal_lm', 'hf_t5'):
        model.setdefault('trust_remote_code', False)
    if section_names(tokenizer, 'name') and tokenizer['name'] not in registry.tokenizers:
        if isinstance(tokenizer.get('kwargs') or {}, dict):
            tokenizer['kwargs'] = {'trust_remote_code': False, **(tokenizer.get('kwargs') or {})}
