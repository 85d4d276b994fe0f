"""Whether all ranks begin with the same source model: nodes with disks of their own may hold two of the same shape.

Under FSDP2 each rank may load its own copy and keep a part of it, so that the result would be half of one and half of
the other. Looked at are the config, names and sizes of the files, and about a megabyte of what is in them: a fraction
of a second for a model of any size. A name of the hub is told by the commit that the cache has of it, whose files the
hub's own hashes vouch for.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from llmshearing.checkpoints.weight_files import WEIGHT_FILES, find_weights, weights_folder
from llmshearing.utils.ranks import raised_together, refuse_differences

__all__ = ['refuse_other_sources', 'source_identity']

BLOCKS, BLOCK = 256, 4096  # of all files together, and bytes of each


def source_identity(name: str, weights: bool = True) -> dict[str, str]:
    """What tells a model from others, by what it is of.

    Args:
        name (str): Folder, or name of the hub.
        weights (bool): They count as well as the config, where there are any. Default: ``True``.
    """
    folder = weights_folder(name)
    if folder is None:
        return {}
    identity = {f'config.json of {name} (its hash)': _short(hashlib.sha256((folder / 'config.json').read_bytes()))}
    if folder != Path(name):
        return {**identity, f'commit of {name} in the cache of the hub': folder.name}
    has_weights = any((folder / file).exists() for file in WEIGHT_FILES)
    files = find_weights(folder) if weights and has_weights else []
    return identity | {
        f'{file} (its size and a hash of parts)': _sample(file, -(-BLOCKS // len(files))) for file in files
    }


def refuse_other_sources(name: str, weights: bool = True) -> None:
    """Raises a ValueError on every rank if one has another model under a name than rank 0. A collective."""
    with raised_together():
        identity = source_identity(name, weights)
    refuse_differences(identity, 'every node needs the same model; copy that of rank 0')


def _sample(path: Path, blocks: int) -> str:
    size, seen = path.stat().st_size, hashlib.sha256()
    # At places that follow no layer's size, the same for the same size, with the header among them.
    draw = random.Random(size).random
    places = [int(draw() * size) for _ in range(blocks)]
    with path.open('rb') as file:
        for place in sorted({0, *(place // BLOCK * BLOCK for place in places)}):
            file.seek(place)
            seen.update(file.read(BLOCK))
    return f'{size:,} B, {_short(seen)}'


def _short(hashed: hashlib._Hash) -> str:
    return hashed.hexdigest()[:16]
