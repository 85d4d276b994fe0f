"""What there is to teach: the MDS folders below DATA, and their shards one by one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmshearing.data.lengths import check_sizes, local_bytes, token_sizes
from llmshearing.data.mds import encodings_of, mds_folders, read_index, read_rows, stored_file, tokens_of
from llmshearing.data.stored_teacher import TEACHER
from llmshearing.data.teacher_column import ColumnFormat

if TYPE_CHECKING:
    from llmshearing.compat.streaming import MDSReader

__all__ = ['ShardTask', 'check_room', 'find_folders', 'list_shards']

HELD_OUT = 'eval'
LARGEST = (1 << 32) - 1  # positions in a shard of Streaming are 32 bits


@dataclass(frozen=True)
class ShardTask:
    """One shard to be taught: the unit of work.

    Attributes:
        folder (str): Its folder below DATA, ``.`` for DATA itself.
        name (str): Its file, compressed if it is.
        reader (MDSReader): Reads it.
    """

    folder: str
    name: str
    reader: MDSReader


def find_folders(data: Path, splits: tuple[str, ...] | None) -> tuple[list[str], list[str]]:
    """Folders to teach and folders to copy, as paths below ``data``.

    Args:
        data (Path): An MDS folder, or a folder of them.
        splits (tuple[str, ...] | None): Beginnings of those to teach, such as ``prune`` or ``prune/python``. Default:
            all whose path has no part ``eval``, or all if there are no others.

    Raises:
        ValueError: If there is no MDS folder, or none of a split.
    """
    if '://' in str(data):
        raise ValueError(f'{data}: the teacher reads data on this machine; copy them here.')
    if not data.is_dir():
        raise ValueError(f'{data}: no such folder.')
    found = mds_folders(data)
    if not found:
        raise ValueError(
            f'{data} holds no finished MDS folder (with an index.json); make one with llmshearing prepare.'
        )
    if splits is None:
        taught = [folder for folder in found if HELD_OUT not in folder.split('/')] or found
    else:
        named = [split.rstrip('/') for split in splits]  # as a shell completes them
        for split in named:
            if not any(_is_in(folder, split) for folder in found):
                raise ValueError(f'--splits {split}: {data} has no such folder; it has {", ".join(found)}.')
        taught = [folder for folder in found if any(_is_in(folder, split) for split in named)]
    return taught, [folder for folder in found if folder not in taught]


def _is_in(folder: str, split: str) -> bool:
    return folder == split or folder.startswith(f'{split}/')


def list_shards(data: Path, folders: list[str]) -> tuple[list[ShardTask], int]:
    """Every shard of some folders, in order, and the tokens per sample.

    Raises:
        ValueError: For shards without tokens, that have a teacher already, or whose samples differ in length.
    """
    tasks, lengths = [], set()
    for folder in folders:
        for reader in read_index(data / folder):
            path, stored = stored_file(data / folder, reader)
            columns = encodings_of(reader)
            if 'tokens' not in columns:
                raise ValueError(
                    f'{path} has the columns {sorted(columns)} and no tokens; run llmshearing prepare first.'
                )
            if TEACHER in columns:
                raise ValueError(f"{path} has a teacher's column already; teach the data that it was made from.")
            if not path.is_file() or path.stat().st_size != stored.bytes:
                size = path.stat().st_size if path.is_file() else 'no'
                raise ValueError(
                    f'{path} has {size} bytes where its index says {stored.bytes}; fetch or prepare it again.'
                )
            reader.validate(allow_unsafe_types=False)
            check_sizes(path, token_sizes(reader, local_bytes(reader)))
            tasks.append(ShardTask(folder, (reader.zip_data or reader.raw_data).basename, reader))
            lengths.add(_length(columns['tokens'], reader, path))
    lengths.discard(None)
    if len(lengths) != 1:
        raise ValueError(
            f'{data}: samples have {" and ".join(map(str, sorted(lengths))) or "no"} tokens; expected one length. '
            'Prepare them alike, or choose folders with --splits.'
        )
    return tasks, lengths.pop()


def _length(encoding: str, reader: MDSReader, path: Path) -> int | None:
    """Tokens per sample of a shard, None for one without samples."""
    fixed = re.fullmatch(r'ndarray:\w+:(\d+)', encoding)
    if fixed:
        return int(fixed.group(1))
    if not reader.samples:
        return None
    if not encoding.startswith(('bytes', 'ndarray')):
        raise ValueError(f'{path}: its tokens are {encoding}; expected ndarray or bytes of int64.')
    return len(next(read_rows(path.parent, reader, tokens_of)))


def check_room(tasks: list[ShardTask], form: ColumnFormat, length: int) -> None:
    """Refuses shards that would be larger than Streaming's can be.

    Raises:
        ValueError: Naming the first one.
    """
    for task in tasks:
        size = task.reader.raw_data.bytes + task.reader.samples * (length * form.width + 8) + (1 << 16)
        if size > LARGEST:
            raise ValueError(
                f'{task.folder}/{task.name} would have {size / 1e9:.1f} GB with {form.width} bytes per token, more '
                'than the 4.3 GB of a shard; prepare the data with a smaller shard_size, or keep fewer tokens.'
            )
