"""Reads PyTorch files without running what is in them, and without reading a tensor before it is asked for.

``torch.load(weights_only=True)`` refuses every class that is not on a list; the list here is exactly what a Composer
checkpoint of plain numbers needs. Under a fake-tensor mode the same call reads no tensor data at all and says where
each storage begins in the file; :class:`StoredTensor` reads it from there into memory of its own. A memory map would do
as well, but its pages count as resident, so that exporting a large model would look, and on a machine with a memory
limit would be, as large as the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from llmshearing.compat.torch import FakeTensor, FakeTensorMode, place_in_file

__all__ = ['SAFE_GLOBALS', 'StoredTensor', 'foreign_globals', 'load_stored', 'read_all', 'reading_numbers']

_RECONSTRUCT = numpy.empty(0).__reduce__()[0]  # wherever this numpy keeps it
# Timestamps, torch's version and the random states of numpy, under the names of numpy 2 and numpy 1.
SAFE_GLOBALS = [
    datetime.timedelta,
    TorchVersion,
    numpy.ndarray,
    numpy.dtype,
    type(numpy.dtype('uint32')),
    (_RECONSTRUCT, 'numpy._core.multiarray._reconstruct'),
    (_RECONSTRUCT, 'numpy.core.multiarray._reconstruct'),
]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file.

    Attributes:
        shape (tuple[int, ...]): Its shape.
        dtype (torch.dtype): Its type.
        read (Callable): Reads it; every call gives new memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor] = dataclasses.field(repr=False, compare=False)


@contextlib.contextmanager
def reading_numbers() -> Iterator[None]:
    """Lets ``torch.load`` under ``weights_only`` take :data:`SAFE_GLOBALS`, too, and leaves the list as it was.

    torch's own ``safe_globals`` takes them away at its end even if they were there before: a run that looked into a
    checkpoint could load none any more.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def load_stored(path: Path) -> Any:
    """What a ``torch.save`` file holds, with a :class:`StoredTensor` in place of every tensor.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no PyTorch archive, is damaged, or holds classes that could run code.
    """
    path = _archive(path)
    try:
        with reading_numbers(), FakeTensorMode():
            content = torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'{path} is not read, because loading it could run code: it holds '
            f'{", ".join(foreign_globals(path)) or "pickled objects"}, which a checkpoint of numbers does not need. '
            'Leave out the callback or algorithm that saved them (Composer: save_ignore_keys) and save again.'
        ) from error
    except RuntimeError as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    return _replaced(content, lambda value: isinstance(value, FakeTensor), lambda fake: _stored(path, fake))


def foreign_globals(path: Path) -> list[str]:
    """Names of classes and functions in a ``torch.save`` file that numbers do not need; nothing is unpickled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no PyTorch archive, or is damaged.
    """
    path = _archive(path)
    allowed = {
        entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}' for entry in SAFE_GLOBALS
    }
    try:
        return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - allowed)
    except RuntimeError as error:
        raise ValueError(f'{path} cannot be read: {error}') from error


def _archive(path: Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist.')
    with path.open('rb') as file:
        if file.read(4) != b'PK\x03\x04':
            raise ValueError(
                f'{path} is no PyTorch archive as torch.save writes it since version 1.6; '
                'unpack it if it is compressed, or save it again with a newer PyTorch.'
            )
    return path


def read_all(tree: Any) -> Any:
    """A copy of a tree of mappings, lists and tuples with all its stored tensors read."""
    return _replaced(tree, lambda value: isinstance(value, StoredTensor), lambda stored: stored.read())


def _replaced(tree: Any, matches: Callable[[Any], bool], replace: Callable[[Any], Any]) -> Any:
    if matches(tree):
        return replace(tree)
    if isinstance(tree, dict):
        return {key: _replaced(value, matches, replace) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_replaced(value, matches, replace) for value in tree)
    return tree


def _stored(path: Path, fake: FakeTensor) -> StoredTensor:
    shape, stride, dtype = tuple(fake.shape), fake.stride(), fake.dtype
    start = place_in_file(fake) + int(fake.storage_offset()) * dtype.itemsize
    length = 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride))

    def read() -> Tensor:
        data = torch.empty(length, dtype=dtype)
        raw = data.view(torch.uint8).numpy().data if length else memoryview(b'')
        with path.open('rb') as file:
            file.seek(start)
            done = 0
            while done < len(raw):  # one call may stop at 2 GiB
                got = file.readinto(raw[done:])
                if not got:
                    raise ValueError(
                        f'{path} ends in the middle of a tensor; it was cut off while it was written or copied.'
                    )
                done += got
        return data.as_strided(shape, stride)

    return StoredTensor(shape, dtype, read)
