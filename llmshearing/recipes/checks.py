"""Holds a new run file against the checks that its run will make, without its weights and without its GPUs.

What is not there yet is stood in for: the machine by a CPU, files of earlier steps by values of their kind. Weights of
the source are looked at when the run starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmshearing.config.files import check_names
from llmshearing.config.pruning import check_export, check_pruning
from llmshearing.config.secrets import check_no_secrets
from llmshearing.config.sections import check_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['check_text']

ON_THIS_MACHINE = {'precision': 'fp32', 'fsdp_config': None}


def check_text(name: str, text: str, source: PretrainedConfig, data: str) -> None:
    """Checks the text of a run file, which is called ``name`` in the message.

    Args:
        name (str): Of the file.
        text (str): Of the file.
        source (PretrainedConfig): The source's config.
        data (str): Prepared data as they are there now; what is to be made of them has the same folders.

    Raises:
        ValueError: As the run would.
    """
    from omegaconf import OmegaConf

    document = OmegaConf.create(text)
    document.variables.data = data
    config: Any = OmegaConf.to_container(document, resolve=True)
    config['eval_loaders'] = config.pop('eval_loader')  # as llm-foundry hands lists on
    config |= ON_THIS_MACHINE
    config['model']['init_device'] = 'cpu'
    dataset, mixture = config['train_loader']['dataset'], config['callbacks']['dynamic_batch_loading']
    domains = dataset['domains']
    for section, key in ((dataset, 'proportions'), (mixture, 'reference_losses')):
        if isinstance(section.get(key), str) and not Path(section[key]).is_file():
            section[key] = dict.fromkeys(domains, 1.0)
    try:
        check_no_secrets(config)
        check_config(config)
        check_names(config)
        if 'targeted_pruning' in config['algorithms']:
            check_pruning(config, source)
            check_export(config)
    except ValueError as error:
        raise ValueError(f'{name} would be refused by its run: {error}') from error
