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
from llmshearing.config.resume import resume_source
from llmshearing.config.sharding import is_sharded

__all__ = ['prepare_process']

ENVIRONMENT = {
    'FSDP_VERSION': '2',  # read by Composer when it builds the trainer; FSDP1 cannot shard on CPU and is not tested
    'TOKENIZERS_PARALLELISM': 'false',  # threads of the tokenizer do not survive the forks of loaders
}
# What other libraries say of themselves once per run, which is no setting of the user's.
KNOWN = (
    'pkg_resources is deprecated as an API',
    'TypedStorage is deprecated',
    'To copy construct from a tensor',
    'Specifying the ConsoleLogger via `loggers`',  # ours is one, and takes nothing from those arguments
    "'pin_memory' argument is set as true but no accelerator",
)
# Modules whose deprecations are theirs to mend; they fill the first screen of a run.
NOISY = ('pkg_resources', 'composer', 'llmfoundry', 'streaming', 'torch', 'torchmetrics', 'transformers', 'google')


def prepare_process(config: dict[str, Any] | None = None) -> None:
    """Sets environment variables and, for a configuration, what it asks of the process.

    That is the level of our loggers, the guard of checkpoint loading and the defaults that are safer than
    llm-foundry's.

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
    from llmshearing.compat import composer, llmfoundry, transformers

    composer.install()
    llmfoundry.install()
    transformers.install()
    guard_checkpoint_loading()
    level = config.get('python_log_level', 'debug')  # llm-foundry's default; it sets the level of its own loggers only
    if isinstance(level, str) and level.upper() in logging.getLevelNamesMapping():
        logging.getLogger('llmshearing').setLevel(level.upper())
    _trust_no_remote_code(config)
    expand_paths(config)
    _add_resume_settings(config)
    if 'console_progress' in section_names(config.get('loggers')):  # in the place of Composer's wall of lines
        config.update(log_to_console=False, progress_bar=False)
    if section_names(config.get('train_loader'), 'name') == ['dynamic_text']:  # resumed at the end of a round
        warnings.filterwarnings('ignore', message='No batches were trained')
    llmfoundry.keep_sharding(_sharding_of_one_process(config))


def _silence_deprecations() -> None:
    for module in NOISY:
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.filterwarnings('ignore', category=category, module=rf'{module}(\.|$)')
    for message in KNOWN:
        warnings.filterwarnings('ignore', message=rf'\s*{message}')
    logging.getLogger('transformers.configuration_utils').addFilter(_concerns_the_user)


def _concerns_the_user(record: logging.LogRecord) -> bool:
    """Whether a message is another one than transformers' on an attribute that Composer and llm-foundry ask for."""
    return 'use_return_dict' not in record.getMessage()


def _add_resume_settings(config: dict[str, Any]) -> None:
    """Runs that save or load checkpoints notice settings that have changed since."""
    callbacks = config.get('callbacks') or {}
    if isinstance(callbacks, dict) and (config.get('save_folder') or config.get('load_path')):
        config['callbacks'] = {**callbacks, 'resume_settings': callbacks.get('resume_settings') or {}}


def _sharding_of_one_process(config: dict[str, Any]) -> dict[str, Any] | None:
    """The ``fsdp_config`` of a run of one process that reads and writes sharded checkpoints, as more processes do.

    A single-file checkpoint, as one process wrote it before, is gone on from without sharding.
    """
    fsdp, model = config.get('fsdp_config'), config.get('model')
    if not isinstance(fsdp, dict) or os.environ.get('WORLD_SIZE', '1') != '1':
        return None
    if isinstance(model, dict) and model.get('init_device') == 'mixed':
        model['init_device'] = 'cpu'  # the first rank reads the weights, and there is no other
    resumed = resume_source(config)
    is_file = resumed is not None and resumed.is_file()
    return dict(fsdp) if is_sharded(config) and not is_file else None


def _trust_no_remote_code(config: dict[str, Any]) -> None:
    """llm-foundry runs code that comes with a model unless told otherwise, and transformers asks on the terminal."""
    from llmfoundry import registry

    model: Any = config.get('model')
    tokenizer: Any = config.get('tokenizer')
    if section_names(model, 'name') and model['name'] in ('sheared_causal_lm', 'hf_causal_lm', 'hf_t5'):
        model.setdefault('trust_remote_code', False)
    if section_names(tokenizer, 'name') and tokenizer['name'] not in registry.tokenizers:
        if isinstance(tokenizer.get('kwargs') or {}, dict):
            tokenizer['kwargs'] = {'trust_remote_code': False, **(tokenizer.get('kwargs') or {})}
