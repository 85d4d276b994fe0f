"""From a request to the recipes of both stages: everything that can be known is worked out, the rest is refused."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmshearing.config.source import TOKENIZER_FILES, read_config, read_source, refuse_unusable
from llmshearing.data.fingerprint import check_tokenizer
from llmshearing.masks.axes import plan_axes
from llmshearing.masks.scores import RECOMMENDED_SCORES
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.families import family_of
from llmshearing.models.shapes import KEPT_FIELDS, ModelShape, shape_of, with_shape
from llmshearing.models.targets import target_shape
from llmshearing.recipes.commands import header_lines, preparations, train_command
from llmshearing.recipes.data import PreparedData, count_passes, read_data
from llmshearing.recipes.hardware import Hardware, Placement, place_stage
from llmshearing.recipes.recipe import STAGES, Recipe
from llmshearing.recipes.rules import (
    EVAL_SHARE,
    PAPER_TOKENS,
    Schedule,
    batch_size,
    eval_sequences,
    eval_share,
    make_schedule,
)
from llmshearing.scaling.fields import read_json
from llmshearing.utils.numbers import with_unit

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['MAX_PASSES', 'Made', 'Request', 'make_recipes']

MAX_PASSES = 4.0  # up to four, repeated text is nearly as good as new (Muennighoff et al. 2023, arXiv 2305.16264)
MEASURED = ('source', 'law')


@dataclasses.dataclass(frozen=True)
class Request:
    """What a person says.

    Attributes:
        source (str): Model folder, config.json or name on the hub.
        target (dict[str, Any]): As ``target:`` in a run file, budgets among it.
        data (str): Folder that ``llmshearing prepare`` wrote.
        hardware (Hardware): GPUs.
        tokens (float | None): Of continued pre-training. Default: one pass over the split, the paper's at most.
        prune_tokens (float | None): Of pruning. Default: the same.
        references (str): ``'source'``, ``'law'``, ``'none'``, or a file of reference losses.
        max_passes (float): Most passes over a split.
        work (str | None): Folder of the run. Default: ``runs/NAME``.
        output (str): Folder of the run files.
    """

    source: str
    target: dict[str, Any]
    data: str
    hardware: Hardware
    tokens: float | None = None
    prune_tokens: float | None = None
    references: str = 'source'
    max_passes: float = MAX_PASSES
    work: str | None = None
    output: str = '.'


@dataclasses.dataclass(frozen=True)
class Made:
    """Both recipes by stage, the source's config, lines that say what was worked out, and the commands to run."""

    recipes: dict[str, Recipe]
    config: PretrainedConfig
    lines: list[str]
    commands: list[str]


def make_recipes(request: Request) -> Made:
    """Works out both stages.

    Raises:
        ValueError: With the option to change, for whatever cannot be.
    """
    source = str(Path(request.source).parent) if Path(request.source).is_file() else request.source
    config = _read_source(request.source)
    family = family_of(config)
    data = read_data(request.data)
    notes = _check_against(source, config, data)
    shape, before = target_shape(config, request.target), shape_of(config)
    if shape == before:
        raise ValueError('--target is the source: nothing would be cut; lower at least one number.')
    references = _check_references(request.references, data)
    layout = layout_of(config)
    parameters = count_parameters(layout, shape).total
    name = f'{Path(source).resolve().name if Path(source).is_dir() else source.split("/")[-1]}-to-{_short(parameters)}'
    work = request.work or f'runs/{name}'
    tokens = {
        stage: given or min(PAPER_TOKENS[stage], data.tokens(stage))
        for stage, given in zip(STAGES, (request.prune_tokens, request.tokens))
    }
    trained = {'prune': config, 'continue': with_shape(config, shape, family.has_head_dim)}
    masked = {'prune': tuple(plan_axes(before, shape)), 'continue': ()}
    gpus = request.hardware.gpus
    places = {
        stage: place_stage(
            stage, trained[stage], request.hardware, batch_size(stage, gpus), data.max_seq_len, masked[stage]
        )
        for stage in STAGES
    }
    together = max(place.micro_batch for place in places.values()) * max(gpus, 1)
    schedules = {
        stage: make_schedule(stage, tokens[stage], data.max_seq_len, gpus, len(data.domains), together)
        for stage in STAGES
    }
    passes = {
        stage: count_passes(data, stage, schedules[stage].steps * schedules[stage].batch, request.max_passes)
        for stage in STAGES
    }
    sequences = _eval_sequences(schedules, together, len(data.domains))
    keep = shape.hidden_size if shape.hidden_size < before.hidden_size and family.rotates else None
    first = preparations(source, request.data, work, references, sequences, keep, parameters, tokens['continue'])
    recipes, lines = {}, [f'target: {parameters:,} parameters ({shape})', *notes]
    for stage in STAGES:
        schedule, place = schedules[stage], places[stage]
        share = eval_share(schedule, len(data.domains), sequences)
        facts = _facts(data, schedule.steps, schedule.batch, passes[stage], request.hardware, place, share)
        command = train_command(request.hardware.gpus, os.path.join(request.output, f'{stage}.yaml'))
        lines += [f'{stage}: {"; ".join(text for _, text in facts)}']
        if share > EVAL_SHARE:
            lines += [f'note: {stage} is too short for less: {sequences} sequences per domain are evaluated at once']
        recipes[stage] = Recipe(
            stage=stage,
            header=header_lines(stage, source, _short(parameters), facts, first, command),
            work=work,
            source=source,
            source_note='Hugging Face name or folder of the source'
            + ('; better the rotated one, see above, string' if keep else ' model, string'),
            data=request.data,
            max_passes=float(request.max_passes),
            data_note='output of `llmshearing prepare` for this tokenizer, string',
            max_seq_len=data.max_seq_len,
            target=_target(shape),
            scores={axis: RECOMMENDED_SCORES[axis] for axis in masked['prune']},
            target_note=f'shape to reach; the source has {_sizes(before)}',
            domains=data.domains,
            proportions=data.proportions(stage),
            proportions_note='first mixture: shares of the prepared split, floats',
            schedule=schedule,
            micro_batch=place.micro_batch,
            run_name=name if stage == 'prune' else f'{name}-continued',
            **_mixture(references, work),
            max_eval_sequences=sequences,
            max_eval_sequences_note='per domain, those that reference losses are measured on, int',
            max_eval_share=2 * EVAL_SHARE,
            max_eval_share_note='warn when evaluation takes more of the time, float',
            attention='sdpa',
            attention_note='sdpa or flash_attention_2, which needs the extra `gpu`',
            precision=request.hardware.precision,
            sharded=request.hardware.sharded,
            checkpointing=place.checkpointing,
        )
    given = {'prune': f' variables.source={shlex.quote(f"{work}/rotated")}' if keep else '', 'continue': ''}
    runs = [
        train_command(request.hardware.gpus, os.path.join(request.output, f'{stage}.yaml')) + given[stage]
        for stage in STAGES
    ]
    return Made(recipes, config, lines, [*first.values(), *runs])


def _eval_sequences(schedules: dict[str, Schedule], together: int, domains: int) -> int:
    """Sequences per domain that both stages evaluate: the same, in whole batches, so that references fit both."""
    most = min(eval_sequences(schedule, domains) for schedule in schedules.values())
    return max(most // together, 1) * together


def _read_source(source: str) -> PretrainedConfig:
    """Of a folder or file as it is; anything else that looks like a name is one on the hub."""
    if Path(source).exists() or source.startswith(('.', '/', '~')) or source.count('/') > 1:
        return read_source(source)
    try:
        config = read_config('SOURCE', source)
    except ValueError as error:
        problem = ' '.join(str(error).split())  # the hub's own take several lines
        raise ValueError(f'{problem} Give a folder with its config.json instead, or a name that can be had.') from error
    refuse_unusable(source, config)
    return config


def _check_against(source: str, config: PretrainedConfig, data: PreparedData) -> list[str]:
    """Positions and tokenizer; returns what could not be looked at."""
    longest = getattr(config, 'max_position_embeddings', None)
    if longest is not None and data.max_seq_len > longest:
        raise ValueError(
            f'--data {data.folder}: sequences of {data.max_seq_len} tokens are longer than the {longest} positions of '
            f'the source; prepare the data with max_seq_len={longest} or less.'
        )
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in TOKENIZER_FILES):
        return ['note: the source has no tokenizer beside its config, so it is not compared with that of the data']
    from llmshearing.compat.transformers import read_tokenizer

    check_tokenizer(read_tokenizer(source), [(str(Path(data.folder) / 'prune' / data.domains[0]), None)])
    return []


def _check_references(references: str, data: PreparedData) -> str:
    """``'source'``, ``'law'``, ``'none'``, or a file that has a loss for every domain."""
    if references in (*MEASURED, 'none'):
        return references
    if not Path(references).is_file():
        raise ValueError(f'--reference-losses {references}: no such file; give source, law, none or a file.')
    losses = read_json(references).get('reference_losses')
    missing = [name for name in data.domains if not isinstance(losses, dict) or name not in losses]
    if missing:
        raise ValueError(
            f'--reference-losses {references}: it has no loss for {", ".join(missing)}; write it with '
            '`llmshearing reference-losses`.'
        )
    return references


def _mixture(references: str, work: str) -> dict[str, Any]:
    if references == 'none':
        note = 'keeps the first mixture and needs no reference losses; sheared, the rule of the paper, needs them'
        return {'update': 'constant', 'update_note': note}
    if references in MEASURED:
        return {
            'references': f'{work}/reference_losses.json',
            'references_note': 'written by `llmshearing reference-losses`, see above, string',
        }
    return {'references': references, 'references_note': 'loss to aim at per domain, JSON file, string'}


def _facts(
    data: PreparedData, steps: int, batch: int, passes: float, hardware: Hardware, place: Placement, share: float
) -> list[tuple[str, str]]:
    tokens = steps * batch * data.max_seq_len
    where = 'this machine, on CPU'
    if hardware.gpus:
        where = (
            f'{hardware.gpus} x GPU of {hardware.memory:g} GB; estimated peak '
            f'{with_unit(place.peak, "B", binary=True)} on each'
        )
    return [
        ('Tokens', f'{tokens:,} tokens in {steps:,} steps of {batch} x {data.max_seq_len} ({passes:.2f} passes)'),
        ('Hardware', where),
        ('Evaluation', f'evaluation is {share:.1%} of the compute, counted in forward passes'),
    ]


def _target(shape: ModelShape) -> dict[str, tuple[int, str]]:
    notes = {'num_attention_heads': f'int; head_dim stays {shape.head_dim}'}
    return {key: (getattr(shape, key), notes.get(key, 'int')) for key in shape.as_dict() if key not in KEPT_FIELDS}


def _sizes(shape: ModelShape) -> str:
    return (
        f'{shape.num_hidden_layers} layers, {shape.hidden_size}, {shape.num_attention_heads} heads, '
        f'{shape.num_key_value_heads} KV heads, {shape.intermediate_size}'
        f'{f", {shape.num_experts} experts" if shape.num_experts else ""}'
    )


def _short(parameters: int) -> str:
    """1345423360 as 1.3B."""
    power = min(max(int(math.log10(parameters)) // 3, 0), 4)
    value = parameters / 1000**power
    return (f'{value:.1f}' if value < 10 and power else f'{value:.0f}') + ' KMBT'[power].strip()
