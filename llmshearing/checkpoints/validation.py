"""Checks a checkpoint before Composer loads it: whole, and of the kind the run asks for.

PyTorch writes checksums into its files and skips them when it reads, so a flipped bit goes into training unseen.
Composer has a hook, the environment variable ``CHECKPOINT_VALIDATION_FUNCTION``: it names a function that sees every
file first, one file at a time and, of sharded checkpoints, the pieces that a rank is about to read.
:func:`validate_checkpoint` goes there; the refusal of code (:mod:`llmshearing.checkpoints.guard`) follows when a
file is whole. A file is read once more than without.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from llmshearing.checkpoints.guard import refuse_code
from llmshearing.checkpoints.shards import METADATA_NAME, read_metadata

__all__ = ['is_whole', 'validate_checkpoint']


def validate_checkpoint(path: Path | str, pieces: Sequence[tuple[int, int]] | None = None) -> bool:
    """Composer's hook: raises for a file that must not be loaded, else returns True.

    Args:
        path (Path | str): A ``.pt`` file, or a file of a sharded checkpoint; links are followed.
        pieces (Sequence[tuple[int, int]] | None): Offset and length of the parts of a ``.distcp`` file that are to be
            read.

    Raises:
        ValueError: If the file is damaged, naming it and the newest whole checkpoint beside it; if it is a folder where
            a single file was to be loaded; if it could run code.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise ValueError(
            f'{path} is a sharded checkpoint, but this run loads single files. Set fsdp_config: '
            '{state_dict_type: sharded} (one process will do), or start from its weights alone: llmshearing export.'
        )
    damage = _damage(path, pieces)
    if damage is not None:
        checkpoint = path.parent if pieces is not None or path.name == METADATA_NAME else path
        raise ValueError(f'Checkpoint {path} is damaged: {damage}. It is not loaded; {_offer(checkpoint)}')
    return refuse_code(path, pieces)


def _damage(path: Path, pieces: Sequence[tuple[int, int]] | None) -> str | None:
    """What is wrong with a file, None if it is whole."""
    if path.name == METADATA_NAME:
        try:
            metadata = read_metadata(path.parent)
            return None if metadata.storage_data and metadata.state_dict_metadata else 'it lists no tensors'
        except ValueError as error:
            return str(error)
    if not path.is_file():
        return 'it is missing'
    with path.open('rb') as file:
        if pieces is None:
            return _archive_damage(file)
        for offset, length in pieces:
            file.seek(offset)
            damage = _archive_damage(io.BytesIO(file.read(length)))
            if damage is not None:
                return damage
    return None


def _archive_damage(file: BinaryIO) -> str | None:
    """``torch.save`` writes zip archives, whose members have checksums and whose end is a table of contents."""
    try:
        with zipfile.ZipFile(file) as archive:
            member = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        return f'{error} (cut off while it was written or copied?)'
    return None if member is None else f'the checksum of {member} is wrong'


def _offer(refused: Path) -> str:
    """A sentence about the newest other checkpoint of the same folder that is whole."""
    others = [
        other
        for other in refused.parent.iterdir()
        if not other.is_symlink() and other != refused and other.suffix == refused.suffix
    ]
    for other in sorted(others, key=lambda entry: entry.stat().st_mtime, reverse=True):
        if is_whole(other):
            return f'{other} is whole: resume with load_path={other} autoresume=false save_overwrite=true.'
    return 'there is no whole checkpoint beside it.'


def is_whole(checkpoint: Path) -> bool:
    """Whether a file, or a folder of pieces, can be read to its end."""
    if checkpoint.is_file():
        return _damage(checkpoint, None) is None
    if not (checkpoint / METADATA_NAME).is_file() or _damage(checkpoint / METADATA_NAME, None) is not None:
        return False
    files: dict[str, list[tuple[int, int]]] = {}
    for place in read_metadata(checkpoint).storage_data.values():
        files.setdefault(place.relative_path, []).append((place.offset, place.length))
    return all(_damage(checkpoint / name, pieces) is None for name, pieces in files.items())
