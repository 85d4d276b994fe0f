"""``llmshearing teach``: one pass of a teacher over prepared data, kept beside the tokens.

The output is data as prepared: the same splits, shards and order of samples, so that mixture, passes, resume and any
number of ranks are what they are without. Folders that are not taught are copied.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmshearing.compat.torch import usable_device
from llmshearing.data.mds import read_index, read_shard
from llmshearing.data.stored_teacher import NOTE, TeacherNote, read_note, shard_mark
from llmshearing.prepare.manifest import MANIFEST, read_manifest
from llmshearing.teacher.folders import ShardTask
from llmshearing.teacher.job import Job, open_job
from llmshearing.teacher.settings import TeachSettings
from llmshearing.teacher.shard import teach_shard
from llmshearing.teacher.work import Work
from llmshearing.utils.files import dump_json, write_atomically
from llmshearing.utils.processes import choose_device

__all__ = ['teach']

Report = Callable[[str], None]


def teach(
    data: Path | str,
    teacher: str,
    output: Path | str,
    settings: TeachSettings,
    device: str | None = None,
    rank: int = 0,
    ranks: int = 1,
    report: Report = lambda line: None,
) -> bool:
    """Writes ``data`` with a column of the teacher's predictions to ``output``.

    Args:
        data (Path): Folder that prepare wrote, or any MDS folder or folder of them, on this machine.
        teacher (str): Hugging Face folder or cached name.
        output (Path): Folder to make. An interrupted call goes on when it is repeated.
        settings (TeachSettings): What is kept, and how the teacher is asked.
        device (str | None): Such as ``cuda:1``. Default: that of
            :func:`~llmshearing.utils.processes.choose_device`.
        rank (int): Of this process among those that were started together; says where it begins. Default: 0.
        ranks (int): How many there are. Default: 1.
        report (Callable): Receives a line now and then.

    Returns:
        bool: Whether the output is complete; False where other processes are still at work on the rest.

    Raises:
        ValueError: If data, teacher, settings and output do not fit each other, in one sentence, before any work.
    """
    output = Path(output)
    job = open_job(Path(data), teacher, output, settings, usable_device(device or choose_device()))
    if output.exists():
        _check_same(output, job)
        report(f'{output} is complete')
        return True
    tokens, form = sum(task.reader.samples for task in job.tasks) * job.length, job.form
    report(
        f'{tokens:,} tokens in {len(job.tasks)} shards of {", ".join(job.folders)}; {form.width} bytes per token '
        f'({form.kind}, {form.count} of {form.vocab_size:,} tokens), {tokens * form.width / 1e9:.3g} GB more'
    )
    work = Work(output)
    work.begin(job.plan)
    try:
        _teach_shards(work, job, rank, ranks, report)
    except ValueError:
        work.drop_if_empty()  # whoever corrects the call may begin anew
        raise
    return _finish(work, job, report)


def _teach_shards(work: Work, job: Job, rank: int, ranks: int, report: Report) -> None:
    """Teaches every shard that is not done and that no other process holds."""
    loaded = None
    begin = len(job.tasks) * rank // ranks  # a stretch of its own first, so that few meet
    for number, task in enumerate([*job.tasks[begin:], *job.tasks[:begin]], 1):
        if work.is_done(task) or work.output.exists():
            continue
        with work.taken(task) as mine:
            if not mine:
                continue
            loaded = loaded or job.teacher.load()
            began = time.monotonic()
            try:
                teach_shard(task, job, loaded, work)
            except FileNotFoundError:
                if not work.output.exists():  # else, on a disk without locks, others did it meanwhile and cleared up
                    raise
                continue
            rate = task.reader.samples * job.length / max(time.monotonic() - began, 1e-9)
            report(f'{task.folder}/{task.name} ({number} of {len(job.tasks)}): {rate:,.0f} tokens/s')


def _check_same(output: Path, job: Job) -> None:
    for folder in job.folders:
        note = read_note(output / folder)
        if note is None or note.key != job.plan['key'] or note.data != job.plan['data'][folder]:
            raise ValueError(
                f'--output {output} exists and is not what this call would make; choose another folder or remove it.'
            )


def _finish(work: Work, job: Job, report: Report) -> bool:
    with work.finishing() as mine:
        if not mine:
            return work.output.exists()
        waiting = [task for task in job.tasks if not work.is_done(task)]
        if waiting:
            report(f'{len(waiting)} shards are in the hands of other processes; if one of them ended, repeat the call')
            return False
        for folder in job.folders:
            own = [task for task in job.tasks if task.folder == folder]
            _write_index(work, folder, own, job.plan)
            _check_written(work, folder, own)
        for folder in job.copied:
            _copy(job.data / folder, work.data / folder)
        _write_manifest(work.data, job)
        work.commit()
    report(f'written: {work.output}')
    return True


def _write_index(work: Work, folder: str, tasks: list[ShardTask], plan: dict[str, Any]) -> None:
    entries: list[Any] = [work.entry(task) for task in tasks]
    marks = {}
    for entry in entries:
        raw = entry['raw_data']
        marks[raw['basename']] = shard_mark(entry['samples'], raw['bytes'], raw['hashes'])
    note = {name: plan[name] for name in TeacherNote.__dataclass_fields__ if name in plan}
    note |= {'data': plan['data'][folder], 'shards': marks}
    content = {'version': 2, 'shards': entries, NOTE: TeacherNote(**note).to_json()}
    dump_json(work.data / folder / 'index.json', content, indent=None, end='', sort_keys=True)


def _check_written(work: Work, folder: str, tasks: list[ShardTask]) -> None:
    """Compares the finished shards of a folder with their hashes: days may lie between the first and the last."""
    for task, reader in zip(tasks, read_index(work.data / folder), strict=True):
        try:
            read_shard(work.data / folder, reader)
        except ValueError as error:
            work.drop(task)
            path = work.data / folder / task.name
            raise ValueError(f'{path} has changed since it was written; repeat the call to make it again.') from error


def _copy(source: Path, target: Path) -> None:
    """Copies the files of an MDS folder as they are, the index last."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name == 'index.json'):
        if path.is_file():
            new = target / f'.{path.name}.new'
            shutil.copyfile(path, new)
            os.replace(new, target / path.name)


def _write_manifest(target: Path, job: Job) -> None:
    """The manifest of prepare with what was taught by whom; nothing where the data have none."""
    path = job.data / MANIFEST
    if not path.is_file():
        return
    try:
        manifest = read_manifest(path)
    except ValueError:  # another program's
        write_atomically(target / MANIFEST, path.read_bytes())
        return
    taught = {**job.plan, 'folders': job.folders}
    dump_json(target / MANIFEST, {**manifest, NOTE: taught})
