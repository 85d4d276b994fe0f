"""From a request to its two run files: worked out, rendered, held against the checks of their runs, written.

The decision here: nothing is written unless both files are good.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmshearing.config.files import check_names
from llmshearing.config.pruning import check_export, check_pruning
from llmshearing.config.secrets import check_no_secrets
from llmshearing.config.sections import check_config
from llmshearing.models.source_config import check_attention
from llmshearing.recipes.make import make_recipes
from llmshearing.recipes.recipe import STAGES, render
from llmshearing.recipes.request import Request
from llmshearing.utils.files import write_atomically
from llmshearing.utils.paths import local_destination

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['write_recipes']

ON_THIS_MACHINE = {'precision': 'fp32', 'fsdp_config': None}


def write_recipes(request: Request, overwrite: bool = False) -> list[str]:
    """Writes prune.yaml and continue.yaml; with ``overwrite`` in the place of files of these names.

    Returns:
        list[str]: What was worked out, what was written, and the commands to run next, in lines.

    Raises:
        ValueError: With the option to change, for whatever cannot be.
    """
    output = local_destination('--output', request.output)
    paths = {stage: output / f'{stage}.yaml' for stage in STAGES}
    taken = [path.name for path in paths.values() if path.exists()]
    if taken and not overwrite:
        raise ValueError(f'--output {output} has {" and ".join(taken)} already; give another folder, or --overwrite.')
    made = make_recipes(request)
    texts = {paths[stage]: render(recipe) for stage, recipe in made.recipes.items()}
    for path, text in texts.items():
        _check(path.name, text, made.config, request.data)
    output.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_atomically(path, text)
    written = [f'written: {path}' for path in paths.values()]
    return [*made.lines, *written, 'next:', *(f'  {command}' for command in made.commands)]


def _check(name: str, text: str, source: PretrainedConfig, data: str) -> None:
    """Holds a run file against the checks that its run will make, without its weights and without its GPUs.

    What is not there yet is stood in for: the machine by a CPU, files of earlier steps by values of their kind, data
    that are to be made by ``data``, which have the same folders. Weights of the source are looked at when the run
    starts.

    Raises:
        ValueError: As the run would, with the ``name`` of the file.
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
        check_attention(source, config['model']['attn_implementation'], dataset['max_seq_len'])
        pruning = config['algorithms'].get('targeted_pruning')
        if pruning is not None:
            check_pruning(config, pruning, source)
            check_export(config)
    except ValueError as error:
        raise ValueError(f'{name} would be refused by its run: {error}') from error
