"""Reads sharded checkpoints (folders of ``torch.distributed.checkpoint``) with the same care as single files.

PyTorch's own reader unpickles the folder's ``.metadata`` and every object in it without restriction, so this module has
its own: the metadata goes through an unpickler that knows only the classes PyTorch puts there, objects through
``weights_only``, and a tensor is put together from its pieces when it is asked for. Pieces are whole ``torch.save``
archives inside the ``.distcp`` files.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from llmshearing.checkpoints.lazy_tensors import StoredTensor, reading_numbers
from llmshearing.compat.torch import METADATA_CLASSES
from llmshearing.utils.paths import plain_name

__all__ = ['METADATA_NAME', 'load_stored_shards', 'read_metadata']

METADATA_NAME = '.metadata'
# What damage in a pickle can end in: what the classes of metadata, or the unpickler itself, make of other bytes.
DAMAGE = (
    pickle.UnpicklingError,
    ValueError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    SystemError,
)


class _ForeignClass(Exception):
    """A class that no metadata needs."""


class _MetadataUnpickler(pickle.Unpickler):
    """Builds the classes of a checkpoint's metadata and torch's dtypes, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        module = 'pathlib' if module == 'pathlib._local' else module  # as Python 3.13 calls the place of its paths
        if name in METADATA_CLASSES.get(module, ()) or (
            module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise _ForeignClass(f'it holds {module}.{name}')


def load_stored_shards(folder: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    """The wanted parts of a sharded checkpoint as the nested dictionaries that were saved, tensors not yet read.

    Args:
        folder (Path): Folder with ``.metadata`` and ``.distcp`` files.
        parts (tuple[str, ...]): Which entries of ``state`` to return; the others are not even looked at.

    Raises:
        FileNotFoundError: If the folder has no metadata.
        ValueError: If anything in it could run code, or is kept in a way this reader does not know.
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    places = {
        (index.fqn, None if index.offset is None else tuple(index.offset)): info
        for index, info in (metadata.storage_data or {}).items()
    }

    def piece(name: str, offset: tuple[int, ...] | None) -> Any:
        info = places.get((name, offset))
        if info is None:
            raise ValueError(f'{folder}: a piece of {name} is missing from the checkpoint.')
        return _load_piece(folder, name, info)

    tree: dict[str, Any] = {}
    for name, stored in metadata.state_dict_metadata.items():
        path = (metadata.planner_data or {}).get(name) or (name,)
        if len(path) < 2 or path[0] != 'state' or path[1] not in parts:
            continue
        if isinstance(stored, TensorStorageMetadata):
            value = _stored(name, stored, piece)
        else:
            value = piece(name, None)
        _put(tree, path[1:], value)
    return _with_lists(tree)


def read_metadata(folder: Path) -> Metadata:
    """The metadata of a sharded checkpoint, built from the few classes that PyTorch puts there.

    Raises:
        FileNotFoundError: If the folder has none.
        ValueError: If it holds anything else, is damaged, or names files outside the folder.
    """
    path = folder / METADATA_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f'{folder} is no sharded checkpoint: it has no {METADATA_NAME}. '
            'Give the folder of one batch, e.g. .../ep0-ba100, or a file, e.g. .../latest-rank0.pt.'
        )
    try:
        metadata = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
        is_metadata = isinstance(metadata, Metadata)
        names = _file_names(metadata) if is_metadata else []
    except _ForeignClass as error:
        raise ValueError(
            f'{path} is not read, because loading it could run code: {error}, which metadata does not need.'
        ) from error
    except DAMAGE as error:
        raise ValueError(
            f'{path} cannot be read ({type(error).__name__}: {error}): it was cut off or changed while it was written '
            'or copied; copy the checkpoint again, or take another one.'
        ) from error
    if not is_metadata:
        raise ValueError(f'{path} holds {type(metadata).__name__}, not the metadata of a sharded checkpoint.')
    for name in names:
        plain_name(str(path), name)
    return metadata


def _file_names(metadata: Metadata) -> list[str]:
    """The files that pieces are in.

    Everything this reader will need is used once, since changed bytes may have made anything of it, or left it out;
    what that raises is :data:`DAMAGE`.
    """
    for name, stored in metadata.state_dict_metadata.items():
        tuple((metadata.planner_data or {}).get(name) or ())
        if isinstance(stored, TensorStorageMetadata):
            torch.empty(stored.size, dtype=stored.properties.dtype, device='meta')
            for chunk in stored.chunks:
                torch.Size([*chunk.offsets, *chunk.sizes])
    pieces = (metadata.storage_data or {}).items()
    for index, info in pieces:
        hash((index.fqn, index.offset and tuple(index.offset), info.offset + info.length))
    return [info.relative_path for _, info in pieces]


def _load_piece(folder: Path, name: str, info: Any) -> Any:
    """One tensor piece or object; ``info`` says file, offset and length."""
    if getattr(info, 'transform_descriptors', None):
        raise ValueError(
            f'{folder}: {name} is stored compressed ({info.transform_descriptors}), '
            'which is not supported; save it without.'
        )
    with (folder / info.relative_path).open('rb') as file:
        file.seek(info.offset)
        data = file.read(info.length)
    try:
        with reading_numbers():
            return torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f'{folder}: {name} is not read, because loading it could run code.') from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f'{folder}: {name} cannot be read from {info.relative_path}: {error}') from error


def _stored(
    name: str, stored: TensorStorageMetadata, piece: Callable[[str, tuple[int, ...] | None], Any]
) -> StoredTensor:
    dtype, shape = stored.properties.dtype, tuple(stored.size)

    def read() -> Tensor:
        whole = torch.empty(shape, dtype=dtype)
        covered = 0
        for chunk in stored.chunks:
            offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            part = piece(name, offsets)
            if tuple(part.shape) != sizes or part.dtype != dtype:
                raise ValueError(
                    f'{name}: a piece is {tuple(part.shape)} {part.dtype}, the metadata says {sizes} {dtype}.'
                )
            whole[tuple(slice(start, start + size) for start, size in zip(offsets, sizes))] = part
            covered += part.numel()
        if covered != whole.numel():
            raise ValueError(
                f'{name}: the pieces hold {covered} of {whole.numel()} values; the checkpoint is not complete.'
            )
        return whole

    return StoredTensor(shape, dtype, read)


def _put(tree: dict[Any, Any], path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _with_lists(tree: Any) -> Any:
    """Numbers as keys stood for positions in a list."""
    if not isinstance(tree, dict):
        return tree
    if tree and all(isinstance(key, int) for key in tree):
        return [_with_lists(tree[key]) for key in sorted(tree)]
    return {key: _with_lists(value) for key, value in tree.items()}
