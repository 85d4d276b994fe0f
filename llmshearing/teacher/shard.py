"""One shard: its tokens read, the teacher asked in fixed batches, its tokens and the column written.

A batch never reaches over the end of a shard, so which rows are computed together, and with them the last bits of the
logits, depend on nothing but the shard and the settings.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming import MDSWriter

from llmshearing.data.mds import foreign_id, read_rows, tokens_of
from llmshearing.data.stored_teacher import TEACHER, TEACHER_OF, tag_of
from llmshearing.data.teacher_column import ColumnFormat
from llmshearing.teacher.folders import ShardTask
from llmshearing.teacher.model import LoadedTeacher
from llmshearing.teacher.sampling import encode, uniform_numbers
from llmshearing.teacher.settings import TeachSettings
from llmshearing.teacher.work import Work

__all__ = ['teach_shard']


def teach_shard(
    task: ShardTask,
    data: Path,
    teacher: LoadedTeacher,
    form: ColumnFormat,
    key: str,
    length: int,
    settings: TeachSettings,
    work: Work,
) -> None:
    """Writes a shard with the teacher's column.

    ``key`` is that of the note, which has the seed in it; ``length`` is the tokens of a sample. A forward pass takes as
    many whole samples as have at most ``settings.batch_tokens``, at least one.

    Raises:
        ValueError: For a damaged shard, tokens that the teacher does not have, or logits that are no numbers.
    """
    reader, new = task.reader, work.new_folder()
    columns = dict(zip(reader.column_names, reader.column_encodings))
    columns |= {TEACHER: form.encoding(length), TEACHER_OF: 'uint64'}
    hashes = sorted(reader.raw_data.hashes) or ['sha1']
    writer = MDSWriter(
        out=str(new / 'shard'), columns=columns, compression=reader.compression, hashes=hashes, size_limit=None
    )
    try:
        rows = read_rows(data / task.folder, reader)
        first, size = 0, max(1, settings.batch_tokens // length)
        where, temperature = f'{data / task.folder / task.name}', settings.temperature
        while samples := list(islice(rows, size)):
            for sample in _taught(samples, first, where, teacher, form, key, temperature):
                writer.write(sample)
            first += len(samples)
        writer.finish()
        (entry,) = json.loads((new / 'shard' / 'index.json').read_text(encoding='utf-8'))['shards']
        stored = entry.get('zip_data') or entry['raw_data']
        file = new / 'shard' / stored['basename']
        entry['raw_data']['basename'] = reader.raw_data.basename
        stored['basename'] = task.name
        work.put(task, file, entry)
    finally:
        writer.cancel_future_jobs()
        shutil.rmtree(new, ignore_errors=True)


def _taught(
    samples: list[dict[str, Any]],
    first: int,
    where: str,
    teacher: LoadedTeacher,
    form: ColumnFormat,
    key: str,
    temperature: float,
) -> Iterator[dict[str, Any]]:
    tokens = np.stack([tokens_of(sample) for sample in samples]).astype(np.int64)
    wrong = foreign_id(tokens, teacher.vocab_size)
    if wrong is not None:
        raise ValueError(
            f'{where} holds the token {wrong}, but the teacher has ids below {teacher.vocab_size}: the data were made '
            "with another tokenizer; prepare them with the teacher's, or name the trimmed folder with --like."
        )
    logits = teacher.logits(torch.from_numpy(tokens))
    for number, (sample, row) in enumerate(zip(samples, logits), first):
        tag = tag_of(tokens_of(sample), key)
        try:
            column = encode(row, form, temperature, uniform_numbers(int(tag), number, len(row)))
        except FloatingPointError as error:
            raise ValueError(
                f'{where}: for sample {number} {error}; check its weights, or take --dtype float32.'
            ) from error
        yield {**sample, TEACHER: column, TEACHER_OF: tag}
