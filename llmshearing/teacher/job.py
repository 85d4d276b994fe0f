"""What a call of ``teach`` is to do: found, checked and planned before any work.

The plan is what a repeated call is held against: the same options and the same data go on, others are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from llmshearing.data.fingerprint import check_tokenizer, describe_tokenizer
from llmshearing.data.shard_checks import fingerprint
from llmshearing.data.teacher_column import ColumnFormat
from llmshearing.teacher.folders import ShardTask, check_room, find_folders, list_shards
from llmshearing.teacher.model import Teacher, hash_of_model, open_teacher
from llmshearing.teacher.settings import TeachSettings
from llmshearing.utils.files import refuse_unwritable

__all__ = ['Job', 'open_job']


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done: folders to teach and to copy, shards, tokens per sample, who teaches, what is kept.

    ``plan`` is all that decides the bytes; its ``key`` is a hash of it, without the data, which have their own.
    """

    data: Path
    settings: TeachSettings
    folders: list[str]
    copied: list[str]
    tasks: list[ShardTask]
    length: int
    teacher: Teacher
    form: ColumnFormat
    plan: dict[str, Any]


def open_job(data: Path, teacher: str, output: Path, settings: TeachSettings, device: str) -> Job:
    """Looks at everything that can refuse a call without the teacher's weights; arguments as of ``teach``.

    Raises:
        ValueError: If data, teacher, settings and output do not fit each other.
    """
    if output.resolve() == data.resolve() or data.resolve() in output.resolve().parents:
        raise ValueError(f'--output {output}: lies in the data that are read; choose another folder.')
    folders, copied = find_folders(data, settings.splits)
    tasks, length = list_shards(data, folders)
    empty = [folder for folder in folders if folder not in {task.folder for task in tasks}]
    folders, copied = [folder for folder in folders if folder not in empty], [*copied, *empty]
    opened = open_teacher(teacher, settings, device)
    form = settings.format(opened.vocab_size)
    check_tokenizer(opened.tokenizer, [(str(data / folder), None) for folder in folders])
    positions = getattr(opened.config, 'max_position_embeddings', None)
    if positions is not None and length > positions:
        raise ValueError(
            f'{data}: its samples have {length} tokens, and {opened.name} has {positions} positions '
            '(max_position_embeddings); prepare shorter sequences, or choose another teacher.'
        )
    check_room(tasks, form, length)
    refuse_unwritable('--output', output)
    plan = _plan(tasks, opened, form, settings)
    return Job(data, settings, folders, copied, tasks, length, opened, form, plan)


def _plan(tasks: list[ShardTask], opened: Teacher, form: ColumnFormat, settings: TeachSettings) -> dict[str, Any]:
    """Everything that decides the bytes, and the key that is a hash of it; the data have hashes of their own."""
    described = describe_tokenizer(opened.tokenizer)
    plan: dict[str, Any] = {
        'teacher': opened.name,
        'teacher_hash': hash_of_model(opened.folder),
        'kind': form.kind,
        'count': form.count,
        'vocab_size': form.vocab_size,
        'temperature': float(settings.temperature),
        'seed': settings.seed,
        'bytes_per_token': form.width,
        'vocabulary': {name: described[name] for name in ('vocab_size', 'vocabulary')},
        'kept': None if opened.kept is None else hashlib.sha256(repr(opened.kept).encode()).hexdigest()[:16],
        'computed_in': opened.dtype,
        'batch_tokens': settings.batch_tokens,
    }
    decisive = {name: value for name, value in plan.items() if name != 'teacher'}  # its hash is
    plan['key'] = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    by_folder = groupby(tasks, lambda task: task.folder)  # which are listed folder by folder
    plan['data'] = {folder: fingerprint([task.reader for task in own]) for folder, own in by_folder}
    return plan
