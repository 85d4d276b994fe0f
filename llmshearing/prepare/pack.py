"""From ids to finished MDS folders.

While a domain is tokenized its ids are appended to one plain file per split, with a journal of how far they go, so
that an interrupted run continues at the last piece. Sample i of a split is then simply words [i * L, (i + 1) * L) of
that file: packing is cutting. Shards are written to a working folder and renamed when complete, because a folder with
an index is a folder that a loader believes.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ['Journal', 'check_writer_options', 'read_journal', 'write_samples']

BLOCK = 1 << 22  # ids in memory at once


def read_journal(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The lines of a :class:`Journal`, in order, without opening it for writing."""
    for entry, _ in _complete_lines(folder / f'{name}.journal'):
        yield entry


def _complete_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Entries and the offsets at which they end, up to a line that was not written whole."""
    if not path.exists():
        return
    end = 0
    with open(path, 'rb') as file:
        for line in file:
            if not line.endswith(b'\n'):
                return
            try:
                entry = json.loads(line)
            except ValueError:  # what a disk may hold after a loss of power
                return
            end += len(line)
            yield entry, end


class Journal:
    """Binary files that grow together and survive an interruption at any point.

    After each append, one line of JSON records the new lengths, the checksums of what was added, and whatever the
    caller wants to remember. Opening again cuts the files back to the last line whose data are there and right.

    Args:
        folder (Path): Where the files are.
        name (str): Begins the names of the files.
        columns (Sequence[str]): One file for each.
    """

    def __init__(self, folder: Path, name: str, columns: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log_path = folder / f'{name}.journal'
        self.paths = [folder / f'{name}.{column}.bin' for column in columns]
        self.lengths, self.count, valid = [0] * len(columns), 0, 0
        for path in self.paths:
            path.touch()
        with ExitStack() as stack:
            files = [stack.enter_context(open(path, 'rb')) for path in self.paths]
            for entry, end in _complete_lines(self._log_path):
                added = [file.read(new - old) for file, new, old in zip(files, entry['lengths'], self.lengths)]
                if [zlib.crc32(data) for data in added] != entry['checksums']:
                    break
                self.lengths, self.count, valid = entry['lengths'], self.count + 1, end
        self._log_path.touch()
        os.truncate(self._log_path, valid)
        for path, length in zip(self.paths, self.lengths):
            os.truncate(path, length)
        self._log = open(self._log_path, 'ab')
        self._files = [open(path, 'ab') for path in self.paths]

    def append(self, arrays: Sequence[np.ndarray], **facts: Any) -> None:
        """Adds one array to each file, and a line with ``facts``."""
        added = [array.tobytes() for array in arrays]
        for file, data in zip(self._files, added, strict=True):
            file.write(data)
            file.flush()
        self.lengths = [length + len(data) for length, data in zip(self.lengths, added)]
        self.count += 1
        entry = {'lengths': self.lengths, 'checksums': [zlib.crc32(data) for data in added], **facts}
        self._log.write(json.dumps(entry).encode() + b'\n')
        self._log.flush()

    def close(self) -> None:
        """Closes the files and keeps them."""
        for file in [self._log, *self._files]:
            file.close()

    def remove(self) -> None:
        """Closes and deletes the files."""
        self.close()
        for path in [self._log_path, *self.paths]:
            path.unlink()


def write_samples(
    ids: Path,
    folder: Path,
    samples: int,
    max_seq_len: int,
    dtype: str,
    *,
    compression: str | None,
    hashes: Sequence[str],
    shard_size: int | str,
) -> None:
    """Cuts a file of ids into samples and writes them as MDS shards.

    Args:
        ids (Path): Ids of type ``dtype``, at least ``samples * max_seq_len``.
        folder (Path): Written afresh; complete only when this function returns.
        samples (int): Number of samples.
        max_seq_len (int): Tokens in each.
        dtype (str): ``uint16`` or ``uint32``, also the type in the shards.
        compression (str | None): As ``streaming.MDSWriter`` takes it.
        hashes (Sequence[str]): Checksums to record per shard.
        shard_size (int | str): Largest shard.
    """
    from streaming import MDSWriter

    shutil.rmtree(folder, ignore_errors=True)
    columns = {'tokens': f'ndarray:{dtype}:{max_seq_len}'}
    # Not used as a context manager: leaving one on an error would write an index over the shards there are.
    writer = MDSWriter(
        columns=columns, out=str(folder), compression=compression, hashes=list(hashes), size_limit=shard_size
    )
    try:
        rows = max(1, BLOCK // max_seq_len)
        with open(ids, 'rb') as file:
            for start in range(0, samples, rows):
                count = min(rows, samples - start)
                for sample in np.fromfile(file, dtype, count * max_seq_len).reshape(count, max_seq_len):
                    writer.write({'tokens': sample})
        writer.finish()
    finally:
        writer.cancel_future_jobs()


def check_writer_options(
    compression: str | None, hashes: Sequence[str], shard_size: int | str, sample_bytes: int
) -> None:
    """Tries the writer's options before hours of work.

    Raises:
        ValueError: If ``streaming.MDSWriter`` would not take them.
    """
    from llmshearing.compat.streaming import bytes_to_int, get_compressions, get_hashes, is_compression, is_hash

    if compression and not is_compression(compression):
        raise ValueError(f'compression is {compression!r}; expected one of {", ".join(sorted(get_compressions()))}')
    for algorithm in hashes:
        if not is_hash(algorithm):
            raise ValueError(f'hashes has {algorithm!r}; expected some of {", ".join(sorted(get_hashes()))}')
    try:
        limit = bytes_to_int(shard_size)
    except (ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"shard_size is {shard_size!r}; expected bytes, such as 67108864 or '64mb'") from error
    if not sample_bytes + (1 << 10) <= limit < 1 << 32:
        raise ValueError(
            f'shard_size is {shard_size!r}; expected less than 4 GB and room for a sample of {sample_bytes} bytes'
        )
