"""The commands around a run, as they stand in the header of its file and at the end of what ``init`` prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from llmshearing.recipes.recipe import as_yaml

__all__ = ['header_lines', 'override', 'preparations', 'train_command']

NODE = 8  # GPUs
LABEL = 13  # columns before the text of a header line
TITLES = {
    'prune': 'Stage 1: prune {source} to {size} parameters.',
    'continue': 'Stage 2: continue pre-training the pruned {source}; the mixture follows the losses.',
}
MADE_BY = '`llmshearing init`, by the shares and rates of Sheared LLaMA (arXiv 2310.06694, Table 7)'


def train_command(gpus: int, path: str) -> str:
    """The command that starts a run file on so many GPUs (0: a CPU), on each node where there are several."""
    options = f'-n {max(gpus, 1)}'
    if gpus > NODE:
        options = f'--world_size {gpus} --node_rank RANK --master_addr FIRST_NODE --master_port 29400 -n {NODE}'
    return f'llmshearing train {options} {shlex.quote(path)}'


def override(key: str, value: str) -> str:
    """A key and its value as the last words of ``llmshearing train`` take them, in a shell."""
    return shlex.quote(f'{key}={as_yaml(value)}')


def preparations(
    source: str,
    data: str,
    work: str,
    references: str,
    sequences: int,
    keep: int | None,
    parameters: int,
    tokens: float,
    taught: str | None,
) -> dict[str, str]:
    """Commands to run before stage 1, by what they are for.

    Args:
        source (str): Folder or name of the source.
        data (str): Prepared data.
        work (str): Folder of the run.
        references (str): ``'source'``, ``'law'``, or what needs no command.
        sequences (int): That the run evaluates per domain; references must be measured on the same.
        keep (int | None): Hidden size of the target, where a rotated source pays.
        parameters (int): Of the target.
        tokens (float): Of continued pre-training.
        taught (str | None): Folder for the data with the source's predictions, where the runs read them.
    """
    source, data, out = (shlex.quote(path) for path in (source, data, f'{work}/reference_losses.json'))
    commands = {}
    if references == 'source':
        measure = (
            f'llmshearing reference-losses measure {source} --data {data} --max-sequences {sequences} --output {out}'
        )
        commands["the source's own losses, to aim at (Appendix B of the paper)"] = measure
    if references == 'law':
        fit = f'llmshearing reference-losses fit POINTS.json --params {parameters} --tokens {tokens:.0f} --output {out}'
        commands['the losses of this size by a law of three or more measured models'] = fit
    if keep is not None:
        rotated = f'{work}/rotated'
        rotate = f'llmshearing rotate {source} --data {data}/prune --output {shlex.quote(rotated)} --keep {keep}'
        commands[f'a basis in which hidden dimensions cost less; then {override("variables.source", rotated)}'] = rotate
    if taught is not None:
        teach = f'llmshearing teach {data} --teacher {source} --output {shlex.quote(taught)}'
        commands["the source's predictions beside the data"] = teach
    return commands


def header_lines(
    stage: str, source: str, size: str, facts: Iterable[tuple[str, str]], before: Mapping[str, str], command: str
) -> str:
    """The comment at the top of a run file."""
    rows = [('Made by', MADE_BY), *facts]
    if stage == 'prune':
        for number, (purpose, text) in enumerate(before.items()):
            rows += [('' if number else 'Before', f'{purpose}:'), ('', f'  {text}')]
    else:
        rows += [('Before', 'the pruning run, whose result and last mixture it begins with')]
    rows += [('Command', command)]
    lines = [TITLES[stage].format(source=source, size=size), '']
    lines += [f'{label + ":" if label else "":<{LABEL - 1}}{text}' for label, text in rows]
    return '\n'.join(f'# {line}'.rstrip() for line in lines)
