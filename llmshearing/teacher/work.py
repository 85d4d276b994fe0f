"""Where unfinished work is, and how processes share it without speaking to each other.

Everything is written to a hidden folder beside the output, shard by shard, and renamed as a whole when the last shard
is there. A process takes the next shard that is not done and that no other holds (a lock on a file, which a killed
process lets go of). So any number of processes on any number of machines with that disk may work, start and stop; and
where a disk has no locks, two may do the same shard, to the same bytes. The last to finish completes the output.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmshearing.teacher.folders import ShardTask
from llmshearing.utils.files import dump_json, load_json
from llmshearing.utils.locks import hold_lock

__all__ = ['Work']


class Work:
    """The working folder of one output.

    Args:
        output (Path): Folder to be made, with its parent on the same disk.
    """

    def __init__(self, output: Path) -> None:
        self.output = Path(output)
        self.folder = self.output.with_name(f'.{self.output.name}.teaching')
        self.data = self.folder / 'data'
        self._plan = self.folder / 'plan.json'

    def begin(self, plan: dict[str, Any]) -> None:
        """Makes the folder, or goes on with what is there of the same plan, which is all that decides the result.

        Raises:
            ValueError: If another plan was begun there, naming what differs.
        """
        with contextlib.ExitStack() as held:
            while not self._lock(held):  # another process has finished and removed the folder just now
                self.folder.mkdir(parents=True, exist_ok=True)
            if not self._plan.is_file():
                dump_json(self._plan, plan, indent=1)
        there = load_json(self._plan)
        different = [name for name in plan if there.get(name) != plan[name]]
        if different:
            name = different[0]
            raise ValueError(
                f'{self.folder} holds work of another call: its {name} is {there.get(name)}, here {plan[name]}. '
                'Give the same options to go on with it, remove it, or choose another --output.'
            )

    def drop_if_empty(self) -> None:
        """Removes the folder where it has no finished shard."""
        if not any(self.folder.glob('entries/**/*.json')):
            shutil.rmtree(self.folder, ignore_errors=True)

    def is_done(self, task: ShardTask) -> bool:
        """Whether a shard is there, as long as its entry says."""
        entry = self.entry(task)
        if entry is None:
            return False
        stored = entry.get('zip_data') or entry['raw_data']
        path = self.data / task.folder / task.name
        return path.is_file() and path.stat().st_size == stored['bytes']

    def entry(self, task: ShardTask) -> dict[str, Any] | None:
        """The entry of a finished shard for the index of its folder."""
        path = self._entry_path(task)
        return load_json(path) if path.is_file() else None

    @contextlib.contextmanager
    def taken(self, task: ShardTask) -> Iterator[bool]:
        """Holds a shard for the block; False where another process has it, or has done it."""
        path = self._entry_path(task).with_suffix('.lock')
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(path, optional=True) as mine:
            yield mine and not self.is_done(task)

    def new_folder(self) -> Path:
        """An empty folder on the same disk, for a shard that is being written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.folder, prefix='new-'))

    def drop(self, task: ShardTask) -> None:
        """Has a finished shard made again by the next call."""
        self._entry_path(task).unlink()

    def put(self, task: ShardTask, file: Path, entry: dict[str, Any]) -> None:
        """Puts a finished shard in place: the file first, then its entry for the index, which has ``task.name``."""
        target = self.data / task.folder / task.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(file, 'rb') as written:  # on the disk before the name is
            os.fsync(written.fileno())
        os.replace(file, target)
        dump_json(self._entry_path(task), entry, indent=None, end='')

    @contextlib.contextmanager
    def finishing(self) -> Iterator[bool]:
        """Holds the whole folder for the block; False where another process has completed the output."""
        with contextlib.ExitStack() as held:
            yield self.folder.is_dir() and self._lock(held) and not self.output.exists()
            if self.output.exists():  # another process, or this one; whoever came late made the folder again
                shutil.rmtree(self.folder, ignore_errors=True)

    def commit(self) -> None:
        """Gives the finished data their name; the rest goes at the end of :meth:`finishing`."""
        os.replace(self.data, self.output)

    def _lock(self, held: contextlib.ExitStack) -> bool:
        """Waits for the lock of the whole folder; False where another process removes the folder at that moment."""
        try:
            held.enter_context(hold_lock(self.folder / 'lock', wait=True, optional=True))
        except FileNotFoundError:
            return False
        return True

    def _entry_path(self, task: ShardTask) -> Path:
        return self.folder / 'entries' / task.folder / f'{task.name}.json'
