"""One shard: its tokens read, the teacher asked in fixed batches, its tokens and the column written.

A batch never reaches over the end of a shard, so which rows are computed together, and with them the last bits of the
logits, depend on nothing but the shard and the settings.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from streaming import MDSWriter

from llmshearing.data.mds import check_ids, encodings_of, read_rows, tokens_of
from llmshearing.data.stored_teacher import TEACHER, TEACHER_OF, tag_of
from llmshearing.teacher.folders import ShardTask
from llmshearing.teacher.job import Job
from llmshearing.teacher.model import LoadedTeacher
from llmshearing.teacher.sampling import encode, uniform_numbers
from llmshearing.teacher.work import Work
from llmshearing.utils.files import load_json

__all__ = ['teach_shard']


def teach_shard(task: ShardTask, job: Job, teacher: LoadedTeacher, work: Work) -> None:
    """Writes a shard with the teacher's column.

    A forward pass takes as many whole samples as have at most ``batch_tokens`` of the settings, at least one.

    Raises:
        ValueError: For a damaged shard, tokens that the teacher does not have, or logits that are no numbers.
    """
    reader, new = task.reader, work.new_folder()
    columns = encodings_of(reader) | {TEACHER: job.form.encoding(job.length), TEACHER_OF: 'uint64'}
    hashes = sorted(reader.raw_data.hashes) or ['sha1']
    writer = MDSWriter(
        out=str(new / 'shard'), columns=columns, compression=reader.compression, hashes=hashes, size_limit=None
    )
    try:
        for sample in _taught(task, job, teacher):
            writer.write(sample)
        writer.finish()
        (entry,) = load_json(new / 'shard' / 'index.json')['shards']
        stored = entry.get('zip_data') or entry['raw_data']
        file = new / 'shard' / stored['basename']
        entry['raw_data']['basename'] = reader.raw_data.basename
        stored['basename'] = task.name
        work.put(task, file, entry)
    finally:
        writer.cancel_future_jobs()
        shutil.rmtree(new, ignore_errors=True)


def _taught(task: ShardTask, job: Job, teacher: LoadedTeacher) -> Iterator[dict[str, Any]]:
    """The samples of a shard with the teacher's column."""
    folder, key = job.data / task.folder, job.plan['key']  # the key has the seed in it
    size = max(1, job.settings.batch_tokens // job.length)
    rows, where, number = read_rows(folder, task.reader), folder / task.name, 0
    while samples := list(islice(rows, size)):
        tokens = np.stack([tokens_of(sample) for sample in samples]).astype(np.int64)
        remedy = "prepare it with the teacher's, or name the trimmed folder with --like"
        check_ids(where, tokens, teacher.vocab_size, remedy)
        for sample, row in zip(samples, teacher.logits(torch.from_numpy(tokens))):
            seed = int(tag_of(tokens_of(sample), key))
            try:
                column = encode(row, job.form, job.settings.temperature, uniform_numbers(seed, number, len(row)))
            except FloatingPointError as error:
                raise ValueError(
                    f'{where}: for sample {number} {error}; check its weights, or take --dtype float32.'
                ) from error
            yield {**sample, TEACHER: column, TEACHER_OF: tag_of(tokens_of(sample), key, column)}
            number += 1
