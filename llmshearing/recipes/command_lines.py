"""The commands around a run, as they stand in the header of its file and at the end of what ``init`` prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from llmshearing.recipes.recipe import as_yaml

if TYPE_CHECKING:
    from llmshearing.recipes.request import Run

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


def preparations(run: Run, sequences: int) -> dict[str, str]:
    """Commands to run before stage 1, by what they are for.

    References are measured on as many ``sequences`` per domain as the run evaluates.
    """
    request = run.request
    paths = run.source, request.data, f'{run.work}/reference_losses.json'
    source, data, out = map(shlex.quote, paths)
    commands = {}
    if request.references == 'source':
        measure = (
            f'llmshearing reference-losses measure {source} --data {data} --max-sequences {sequences} --output {out}'
        )
        commands["the source's own losses, to aim at (Appendix B of the paper)"] = measure
    if request.references == 'law':
        options = f'--data {data} --max-sequences {sequences} --output POINTS.json'
        measure = f'llmshearing reference-losses measure MODEL_1 MODEL_2 MODEL_3 {options}'
        commands['losses of three or more models of the family'] = measure
        fit = f'llmshearing reference-losses fit POINTS.json --params {run.parameters} --output {out}'
        commands['those of this size, by a law'] = fit
    if run.rotates:
        rotated, keep = f'{run.work}/rotated', run.shape.hidden_size
        rotate = f'llmshearing rotate {source} --data {data}/prune --output {shlex.quote(rotated)} --keep {keep}'
        commands[f'a basis in which hidden dimensions cost less; then {override("variables.source", rotated)}'] = rotate
    if request.teacher == 'stored' and run.stored_teacher is None:
        teach = f'llmshearing teach {data} --teacher {source} --output {shlex.quote(run.taught)}'
        commands["the source's predictions beside the data"] = teach
    return commands


def header_lines(run: Run, stage: str, facts: Iterable[tuple[str, str]], before: Mapping[str, str]) -> str:
    """The comment at the top of the run file of a stage."""
    rows = [('Made by', MADE_BY), *facts]
    if stage == 'prune':
        for number, (purpose, text) in enumerate(before.items()):
            rows += [('' if number else 'Before', f'{purpose}:'), ('', f'  {text}')]
    else:
        rows += [('Before', 'the pruning run, whose result and last mixture it begins with')]
    rows += [('Command', run.command(stage))]
    lines = [TITLES[stage].format(source=run.source, size=run.size), '']
    lines += [f'{label + ":" if label else "":<{LABEL - 1}}{text}' for label, text in rows]
    return '\n'.join(f'# {line}'.rstrip() for line in lines)
