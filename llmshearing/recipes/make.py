"""From a request to the recipes of both stages: everything that can be known is worked out, the rest is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llmshearing.checkpoints.rotated import has_learned_basis
from llmshearing.compat.transformers import attention_implementation
from llmshearing.masks.axes import plan_axes
from llmshearing.masks.scores import RECOMMENDED, method_by_axis
from llmshearing.models.counting import layout_of, training_flops_per_token
from llmshearing.models.families import family_of
from llmshearing.models.shapes import KEPT_FIELDS, ModelShape, with_shape
from llmshearing.recipes.command_lines import header_lines, override, preparations
from llmshearing.recipes.data import PreparedData, count_passes
from llmshearing.recipes.hardware import Placement, place_stage
from llmshearing.recipes.recipe import Recipe
from llmshearing.recipes.request import MEASURED, Request, Run, open_run
from llmshearing.recipes.rules import (
    EVAL_SHARE,
    FORWARDS_OF_A_STEP,
    Schedule,
    batch_size,
    eval_sequences,
    eval_share,
    make_schedule,
)
from llmshearing.utils.numbers import with_unit

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['Made', 'Stage', 'make_recipes']


@dataclasses.dataclass(frozen=True)
class Made:
    """Both recipes by stage, the source's config, lines that say what was worked out, and the commands to run."""

    recipes: dict[str, Recipe]
    config: PretrainedConfig
    lines: list[str]
    commands: list[str]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage, worked out: name, axes under masks, how it lies on its GPUs, how long it is, passes over its split."""

    name: str
    masked: tuple[str, ...]
    place: Placement
    schedule: Schedule
    passes: float


def make_recipes(request: Request) -> Made:
    """Works out both stages.

    Raises:
        ValueError: With the option to change, for whatever cannot be.
    """
    run, notes = open_run(request)
    _check_evaluation(run.data, request.hardware.gpus)
    data, stages = run.data, _plan_stages(run)
    domains, together = len(data.domains), _evaluated_at_once(run, (stage.place for stage in stages))
    # The same in both stages and in whole batches, so that references fit both.
    most = min(eval_sequences(stage.schedule, domains) for stage in stages)
    there = max(data.samples['eval'].values())
    sequences = min(max(most // together, 1), -(-there // together)) * together
    evaluated = min(sequences, there)
    first = preparations(run, sequences)
    recipes, lines = {}, [f'target: {run.parameters:,} parameters ({run.shape})', *notes]
    for stage in stages:
        share = eval_share(stage.schedule, domains, evaluated)
        facts = _facts(run, stage, share)
        lines += [f'{stage.name}: {"; ".join(text for _, text in facts)}']
        if share > EVAL_SHARE:
            short = f'{stage.name} is too short for less'
            lines += [f'note: {short}: {evaluated} sequences per domain are evaluated at once']
        header = header_lines(run, stage.name, facts, first)
        recipes[stage.name] = _recipe(run, stage, header, sequences)
    rotated = f' {override("variables.source", f"{run.work}/rotated")}' if run.rotates else ''
    trainings = [run.command('prune') + rotated, run.command('continue')]
    return Made(recipes, run.config, lines, [*first.values(), *trainings])


def _check_evaluation(data: PreparedData, gpus: int) -> None:
    name, count = min(data.samples['eval'].items(), key=lambda domain: domain[1])
    if count < gpus:
        raise ValueError(
            f'--gpus {gpus}: the domain {name!r} has {count} evaluation sequences, and every GPU evaluates at least '
            'one of each domain; prepare more of them (eval_tokens), or use fewer GPUs.'
        )


def _evaluated_at_once(run: Run, places: Iterable[Placement]) -> int:
    """Sequences that every stage can evaluate at once."""
    return max(place.micro_batch for place in places) * max(run.request.hardware.gpus, 1)


def _plan_stages(run: Run) -> list[Stage]:
    request, data, gpus = run.request, run.data, run.request.hardware.gpus
    trained = {
        'prune': (run.config, tuple(plan_axes(run.before, run.shape))),
        'continue': (with_shape(run.config, run.shape, family_of(run.config).has_head_dim), ()),
    }
    places = {
        stage: place_stage(
            stage, config, request.hardware, batch_size(stage, gpus), data.max_seq_len, masked, run.teacher
        )
        for stage, (config, masked) in trained.items()
    }
    together = _evaluated_at_once(run, places.values())
    stages = []
    for name, place in places.items():
        schedule = make_schedule(name, run.tokens(name), data.max_seq_len, gpus, len(data.domains), together)
        passes = count_passes(data, name, schedule.steps * schedule.batch, request.max_passes)
        stages.append(Stage(name, trained[name][1], place, schedule, passes))
    return stages


def _recipe(run: Run, stage: Stage, header: str, sequences: int) -> Recipe:
    request, data = run.request, run.data
    stored, attention = request.teacher == 'stored', attention_implementation(run.config)
    return Recipe(
        stage=stage.name,
        header=header,
        work=run.work,
        source=run.source,
        source_note='Hugging Face name or folder of the source'
        + ('; better the rotated one, see above, string' if run.rotates else ' model, string'),
        teacher=request.teacher,
        data=run.taught if stored else request.data,
        max_passes=float(request.max_passes),
        data_note='output of `llmshearing teach`, string'
        if stored
        else 'output of `llmshearing prepare` for this tokenizer, string',
        max_seq_len=data.max_seq_len,
        target=_target(run.shape),
        scores=method_by_axis(RECOMMENDED, stage.masked, has_learned_basis(run.source)),
        target_note=f'shape to reach; the source has {_sizes(run.before)}',
        domains=data.domains,
        proportions=data.proportions(stage.name),
        proportions_note='first mixture: shares of the prepared split, floats',
        schedule=stage.schedule,
        micro_batch=stage.place.micro_batch,
        run_name=run.name if stage.name == 'prune' else f'{run.name}-continued',
        **_mixture(request.references, run.work),
        max_eval_sequences=sequences,
        max_eval_share=2 * EVAL_SHARE,
        max_eval_share_note='warn when evaluation takes more of the time, float',
        attention=attention,
        attention_note='sdpa or flash_attention_2, which needs the extra `gpu`'
        if attention == 'sdpa'
        else 'what this model asks for, which sdpa leaves out, string',
        precision=request.hardware.precision,
        sharded=request.hardware.sharded,
        checkpointing=stage.place.checkpointing,
    )


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


def _facts(run: Run, stage: Stage, share: float) -> list[tuple[str, str]]:
    steps, batch, length = stage.schedule.steps, stage.schedule.batch, run.data.max_seq_len
    where, hardware = 'this machine, on CPU', run.request.hardware
    if hardware.gpus:
        peak = with_unit(stage.place.peak, 'B', binary=True)
        where = f'{hardware.gpus} x GPU of {hardware.memory:g} GB; estimated peak {peak} on each'
    tokens = f'{steps * batch * length:,} tokens in {steps:,} steps of {batch} x {length} ({stage.passes:.2f} passes)'
    return [
        ('Tokens', tokens),
        ('Hardware', where),
        *_teacher_facts(run),
        ('Evaluation', f'evaluation is {share:.1%} of the compute, counted in forward passes'),
    ]


def _teacher_facts(run: Run) -> list[tuple[str, str]]:
    """What a live teacher costs is counted in the matrix products of a step at the target."""
    if run.teacher is None:
        stored = run.request.teacher == 'stored'
        return [('Teacher', f'{run.stored_teacher or "the source"} teaches, by what is stored of it')] if stored else []
    layout, length = layout_of(run.config), run.data.max_seq_len
    source, target = (training_flops_per_token(layout, shape, length) for shape in (run.before, run.shape))
    times = 1 + source / FORWARDS_OF_A_STEP / target
    return [('Teacher', f'the source teaches; at the target a step computes {times:.2f} times what it would without')]


def _target(shape: ModelShape) -> dict[str, tuple[int, str]]:
    notes = {'num_attention_heads': f'int; head_dim stays {shape.head_dim}'}
    return {key: (size, notes.get(key, 'int')) for key, size in shape.as_dict().items() if key not in KEPT_FIELDS}


def _sizes(shape: ModelShape) -> str:
    return (
        f'{shape.num_hidden_layers} layers, {shape.hidden_size}, {shape.num_attention_heads} heads, '
        f'{shape.num_key_value_heads} KV heads, {shape.intermediate_size}'
        f'{f", {shape.num_experts} experts" if shape.num_experts else ""}'
    )
