"""Streaming 0.12 and 0.13: all that is used of it beside ``Stream``, ``StreamingDataset`` and ``MDSWriter``.

Names that it does not export are imported here and nowhere else, and attributes that it keeps to itself are read here.
Its two versions do not differ in any of them.
"""

from __future__ import annotations

import atexit
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import streaming.base.dataset
import streaming.base.shared.prefix
from streaming import StreamingDataset
from streaming.base import distributed
from streaming.base.batching import batching_methods
from streaming.base.compression import decompress, get_compressions, is_compression
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, LOCALS, SHM_TO_CLEAN
from streaming.base.format import FileInfo, get_index_basename
from streaming.base.format.base.reader import Reader
from streaming.base.format.mds.reader import MDSReader
from streaming.base.hashing import get_hash, get_hashes, is_hash
from streaming.base.shared import SharedArray, _get_path
from streaming.base.storage.download import CloudDownloader
from streaming.base.storage.upload import UPLOADERS, CloudUploader
from streaming.base.util import bytes_to_int
from streaming.base.world import World

from llmshearing.utils.ranks import is_so_on_any

__all__ = [
    'BARRIER_FILELOCK',
    'CACHE_FILELOCK',
    'LOCALS',
    'SHM_TO_CLEAN',
    'CloudUploader',
    'FileInfo',
    'MDSReader',
    'PlacedByItself',
    'Reader',
    'SharedArray',
    'ToldOfFailures',
    'World',
    'block_name',
    'bytes_to_int',
    'decompress',
    'distributed',
    'get_compressions',
    'get_hash',
    'get_hashes',
    'get_index_basename',
    'guard_numbers',
    'is_compression',
    'is_first_worker',
    'is_hash',
    'parallel_world',
    'rank_world',
    'read_remote_text',
    'register_batching',
    'run_number',
    'writable_schemes',
]

_TRIES = 20


class ToldOfFailures(StreamingDataset):
    """A data set whose round ends in an error where a thread that fetches shards has failed.

    Streaming waits at the end of a round for all threads to say that they have left, and one that failed does not: the
    run would hang there without a word, or end its round early.
    """

    def on_exception(self, future: Future) -> None:
        """Lets a thread that failed count as gone, then tells the others and raises what it raised."""
        if future.exception() is not None:
            self._iterator.on_exit()
        super().on_exception(future)

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        if self._event.is_set():
            raise RuntimeError('A background thread that fetches shards failed; its error is above.')


class PlacedByItself(StreamingDataset):
    """A data set that says itself where to start, and not by what Streaming keeps in shared memory.

    Only the first worker of a node makes the work and uses the answer; others may ask before there is one.
    """

    def find_place(self) -> tuple[int, int]:
        """Epoch, and samples of it that are done; asked in the first worker of a node."""
        raise NotImplementedError

    def _resume(self, world: World, epoch: int) -> tuple[int, int]:
        return self.find_place() if is_first_worker(self) else (0, 0)


def register_batching(name: str, make_work: Callable[[Any, World, int, int], Any]) -> None:
    """Makes a batching method that a data set asks for by ``batching_method``.

    Args:
        name (str): Its name.
        make_work (Callable): From data set, world, epoch and sample in the epoch to sample ids, int64 [nodes, ranks
            per node, workers per rank, batches per worker, batch size]; -1 is skipped.
    """
    batching_methods[name] = make_work  # pyright: ignore[reportArgumentType]  # called by position, whatever the names


def rank_world(dataset: StreamingDataset) -> World:
    """The world of all ranks, as this rank's process sees it."""
    return dataset._unique_rank_world


def parallel_world(dataset: StreamingDataset) -> World:
    """The world of ranks that get samples of their own: ranks that replicate others are one."""
    return dataset._parallel_rank_world


def is_first_worker(dataset: StreamingDataset) -> bool:
    """Whether this worker is the one that makes its node's work."""
    return dataset._unique_worker_world.is_local_leader


def run_number(dataset: StreamingDataset) -> int:
    """The number under which a data set has its shared memory."""
    return dataset._shm_prefix_int


def block_name(number: int, name: str) -> str:
    """Name of a block of shared memory, such as ``000003_locals``."""
    return _get_path(number, name)


def guard_numbers(guard: Callable[[], AbstractContextManager]) -> None:
    """Lets every data set, llm-foundry's too, take a number that is free in fact, inside ``guard()``.

    Streaming looks for a free number and registers it afterwards, so two runs that start together may take the same
    one. And it looks for each kind of block alone: where a run ends between two others, it goes for a number that is
    taken. Where a run is too late nevertheless, because of one that does not wait for ours, all its ranks look again.
    The blocks of others that the look opens are closed again: Streaming keeps them open until the process ends, for
    each data set.
    """
    prefix: Any = streaming.base.shared.prefix
    user: Any = streaming.base.dataset
    find, take = (_original(prefix, '_check_and_find_retrying'), _original(user, 'get_shm_prefix'))

    def find_free(*args: Any, **kwargs: Any) -> int:
        opened, open_block = [], prefix.SharedMemory
        prefix.SharedMemory = lambda *args: opened.append(open_block(*args)) or opened[-1]
        try:
            number = find(*args, **kwargs)
        finally:
            prefix.SharedMemory = open_block
            for block in opened:
                atexit.unregister(block.cleanup)
                block.cleanup()
        while _is_taken(number):
            number += 1
        return number

    def take_guarded(*args: Any, **kwargs: Any) -> tuple[int, Any]:
        problem = None
        for _ in range(_TRIES):
            taken = problem = None
            with guard():
                try:
                    taken = take(*args, **kwargs)
                except FileExistsError as error:  # to the first rank of a node, while the others wait for it
                    problem = error
                    distributed.barrier()
                except RuntimeError as error:  # to another rank, which found other blocks, or another number free
                    problem = error
                failed = is_so_on_any(problem is not None)
            if taken is not None and not failed:
                return taken
            if taken is not None:
                atexit.unregister(taken[1].cleanup)
                taken[1].cleanup()
            time.sleep(random.SystemRandom().uniform(0.01, 0.2))
        raise problem or RuntimeError(
            f'Another rank took no number for its shared memory in {_TRIES} tries; its error says why.'
        )

    find_free.original, take_guarded.original = find, take
    prefix._check_and_find_retrying = find_free
    user.get_shm_prefix = take_guarded


def _original(module: Any, name: str) -> Callable:
    function = getattr(module, name)
    return getattr(function, 'original', function)


def _is_taken(number: int) -> bool:
    blocks = [Path('/dev/shm', block_name(number, name)) for name in SHM_TO_CLEAN]
    locks = [Path(tempfile.gettempdir(), block_name(number, name)) for name in (BARRIER_FILELOCK, CACHE_FILELOCK)]
    return any(path.exists() for path in [*blocks, *locks])


def writable_schemes() -> set[str]:
    """What a remote address may begin with for Streaming to write there: ``s3``, ``gs``, ...; '' is a local folder."""
    return set(UPLOADERS) - {'hf'}  # whose uploader refuses a local folder beside the address


def read_remote_text(address: str) -> str | None:
    """The text of a small file at a remote address, or ``None`` if there is no such file.

    Raises:
        ValueError: If the store does not say whether there is one.
    """
    trouble = None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / 'copy'
        try:
            CloudDownloader.direct_download(address, str(copy))
        except Exception as error:  # each store's library has its own kinds; all but "not there" are passed on
            if _says_missing(error):
                return None
            trouble = error
        if copy.exists() and trouble is None:
            return copy.read_text(encoding='utf-8', errors='replace')
    raise ValueError(
        f'cannot tell whether there is a {address} ({trouble or "nothing was downloaded"}); '
        'correct the address, or allow its credentials to read and list'
    ) from trouble


def _says_missing(error: BaseException) -> bool:
    """Whether an error of a store's library says that there is no such object, which "forbidden" does not."""
    error = error.__cause__ or error  # Streaming makes some, "forbidden" among them, a FileNotFoundError
    response = getattr(error, 'response', None)  # S3: a mapping; Hugging Face: an answer with a status
    code = (
        response.get('Error', {}).get('Code')
        if isinstance(response, Mapping)
        else getattr(response, 'status_code', None)
    )
    codes = [code, *(getattr(error, name, None) for name in ('code', 'status', 'status_code'))]  # Google, OCI, Azure
    codes = [code for code in codes if isinstance(code, (int, str))]
    if codes:
        return any(code in (404, '404', 'NoSuchKey') for code in codes)
    return isinstance(error, FileNotFoundError) or getattr(error, 'error_code', None) == 'NOT_FOUND'  # Databricks
