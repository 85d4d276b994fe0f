"""What distillation adds to a training step: the teacher's forward pass and the divergence.

In one process, in turn: the student's own step (forward, language-model loss, backward), the same with the divergence
from a teacher over the whole vocabulary and over its top 64 tokens, from what is stored of a teacher in 64 bytes per
token (draws, and top tokens), and the teacher's forward pass alone. Sizes are LLaMA2-7B beside its 1.3B target, each
dimension a quarter, or those of two folders. Medians over rounds, and medians of the ratios within each
round. The divergence itself is the rest: step with distillation, less the student's step, less the teacher's forward.

usage: python benchmarks/distillation_step.py [--tokens N] [--rounds N] [--threads N] [--quick] [--output FILE]
                                              [--teacher FOLDER --student FOLDER]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from llmshearing.algorithms.distillation.distillation import predicting_positions
from llmshearing.algorithms.distillation.divergence import distillation_loss, teacher_target
from llmshearing.algorithms.distillation.stored import stored_target
from llmshearing.data.stored_teacher import TeacherNote
from llmshearing.data.teacher_column import KINDS, ColumnFormat, most_tokens
from llmshearing.teacher.sampling import encode

TEACHER = dict(hidden_size=1024, intermediate_size=2752, num_hidden_layers=8, num_attention_heads=8)
STUDENT = dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=4)
QUICK_TEACHER = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
QUICK_STUDENT = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1)
TOP_K = 64


def build(sizes: dict, vocab_size: int) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocab_size, use_cache=False, **sizes)
    return AutoModelForCausalLM.from_config(config, attn_implementation='sdpa')


def ask(teacher: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return teacher(input_ids=ids).logits


def store(teacher: nn.Module, ids: Tensor, kind: str) -> tuple[Tensor, TeacherNote]:
    """What a loader would serve of the batch's teacher, and what it says of it."""
    size = teacher.config.vocab_size
    form = ColumnFormat(kind, most_tokens(kind, size), size)
    rows = encode(ask(teacher, ids).flatten(0, 1), form, 1.0, np.random.default_rng(0).random(ids.numel()))
    note = TeacherNote('', '', '', kind, form.count, size, 1.0, 0, form.width, {}, '', {})
    return torch.from_numpy(rows).unflatten(0, ids.shape), note


def step(
    student: nn.Module,
    ids: Tensor,
    teacher: nn.Module | None = None,
    top_k: int | None = None,
    stored: tuple[Tensor, TeacherNote] | None = None,
) -> None:
    """Forward, losses and backward of one micro-batch."""
    target = None if stored is None else stored_target(*stored)
    if teacher is not None:
        target = teacher_target(ask(teacher, ids), 1.0, top_k, student.config.vocab_size)
    outputs = student(input_ids=ids, labels=ids)
    loss = outputs.loss
    if target is not None:
        loss = loss + distillation_loss(outputs.logits, target, predicting_positions(ids))
    student.zero_grad()
    loss.backward()


def seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(tokens: int, rounds: int, quick: bool, folders: tuple[Path, Path] | None = None) -> dict:
    """All steps in turn; returns seconds per step and ratios."""
    vocab_size, length = (256, 64) if quick else (32000, 512)
    if folders is None:
        teacher = build(QUICK_TEACHER if quick else TEACHER, vocab_size)
        student = build(QUICK_STUDENT if quick else STUDENT, vocab_size)
    else:
        teacher, student = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
        vocab_size = student.config.vocab_size
    teacher, student = teacher.float().requires_grad_(False).eval(), student.float().train()
    ids = torch.randint(3, vocab_size, (max(1, tokens // length), length), generator=torch.Generator().manual_seed(1))
    kept = {kind: store(teacher, ids, kind) for kind in KINDS}
    steps = {
        'student': lambda: step(student, ids),
        'teacher forward': lambda: ask(teacher, ids),
        'whole vocabulary': lambda: step(student, ids, teacher),
        f'top {TOP_K}': lambda: step(student, ids, teacher, TOP_K),
        'stored draws': lambda: step(student, ids, stored=kept['draws']),
        'stored top': lambda: step(student, ids, stored=kept['top_k']),
    }
    for function in steps.values():
        function()
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, function in steps.items():
            times[name].append(seconds(function))
    distilled = ('whole vocabulary', f'top {TOP_K}')
    ways = (*distilled, 'stored draws', 'stored top')
    whole = {name: [both / own for both, own in zip(times[name], times['student'])] for name in ways}
    alone = {
        name: [
            (both - own - asked) / own
            for both, own, asked in zip(times[name], times['student'], times['teacher forward'])
        ]
        for name in distilled
    }
    return {
        'teacher_parameters': sum(p.numel() for p in teacher.parameters()),
        'student_parameters': sum(p.numel() for p in student.parameters()),
        'tokens': ids.numel(),
        'rounds': rounds,
        'seconds': {name: {'median': statistics.median(v), 'min': min(v), 'max': max(v)} for name, v in times.items()},
        'ratios': {
            **{f'{name} / student': statistics.median(values) for name, values in whole.items()},
            **{f'{name}, divergence alone / student': statistics.median(values) for name, values in alone.items()},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tokens', type=int, default=2048)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--quick', action='store_true', help='toy shapes, to see that it runs')
    parser.add_argument('--teacher', type=Path, help='Hugging Face folder, with --student')
    parser.add_argument('--student', type=Path, help='Hugging Face folder, with --teacher')
    parser.add_argument('--output', type=Path, help='write the results as JSON')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {
        'date': date.today().isoformat(),
        'machine': f'{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, float32',
        **measure(
            arguments.tokens,
            arguments.rounds,
            arguments.quick,
            (arguments.teacher, arguments.student) if arguments.teacher else None,
        ),
    }
    for name, value in result['seconds'].items():
        sys.stdout.write(f'{name:<20}{value["median"]:8.3f} s  ({value["min"]:.3f} to {value["max"]:.3f})\n')
    for name, value in result['ratios'].items():
        sys.stdout.write(f'{name:<50}{value:6.3f}\n')
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
