"""From a request to its two run files: worked out, rendered, held against the checks of their runs, written.

The decision here: nothing is written unless both files are good.
"""

from __future__ import annotations

from llmshearing.recipes.checks import check_text
from llmshearing.recipes.make import make_recipes
from llmshearing.recipes.recipe import STAGES, render
from llmshearing.recipes.request import Request
from llmshearing.utils.files import write_atomically
from llmshearing.utils.paths import local_destination

__all__ = ['write_recipes']


def write_recipes(request: Request, overwrite: bool = False) -> list[str]:
    """Writes prune.yaml and continue.yaml.

    Args:
        request (Request): What a person says.
        overwrite (bool): Replace files of these names. Default: ``False``.

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
        check_text(path.name, text, made.config, request.data)
    output.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_atomically(path, text)
    written = [f'written: {path}' for path in paths.values()]
    return [*made.lines, *written, 'next:', *(f'  {command}' for command in made.commands)]
