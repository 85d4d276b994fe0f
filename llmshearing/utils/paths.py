"""Paths as people write them, and names of files that come out of an index, which stay in the index's folder.

A path in a YAML means what it means in a shell: ``~`` is a home folder and ``$NAME`` an environment variable. Python
opens both as they stand, and so makes folders called ``~``.

An index of MDS shards, safetensors shards or checkpoint pieces is data, often somebody else's. A name in it such as
``../../.ssh/config`` or ``/etc/passwd`` would be read from there, or written there where shards are downloaded first.
No format that is read here puts shards into other folders, so the rule is simple: a plain file name, or nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llmshearing.utils.files import load_json, refuse_unwritable

__all__ = [
    'check_mds_index',
    'check_safetensors_index',
    'expand_path',
    'is_hidden',
    'local_destination',
    'names_a_path',
    'plain_name',
    'refuse_adapter',
    'refuse_existing',
    'refuse_lookalikes',
    'walk_files',
]

INSIDE = ('masks', 'additional_chat_templates')  # folders in a model folder that we write
_VARIABLE = re.compile(r'\$(?:(\w+)|\{([^}]*)\})', re.ASCII)


def walk_files(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """All files below a folder, through links too; a folder that is linked inside itself is entered once."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from walk_files(entry.path, (*above, real))
        else:
            yield entry.path


def is_hidden(parts: Iterable[str]) -> bool:
    """Whether a path below a folder, in its parts, is hidden or lies in a hidden folder."""
    return any(part.startswith('.') for part in parts)


def expand_path(key: str, path: str) -> str:
    """``path`` with ``~``, ``~user``, ``$NAME`` and ``${NAME}`` replaced as a shell does.

    A file that is there by its name, with a ``$`` that is no variable's, is taken as it is.

    Args:
        key (str): Where it was given, for the message.
        path (str): A path on this machine, or a remote address, in which only variables are replaced.

    Raises:
        ValueError: For a variable that is not set, which a shell would leave out of the path, or an unknown user.
    """
    for match in _VARIABLE.finditer(path):
        name = match[1] or match[2]
        if name not in os.environ and os.path.exists(path):
            return path
        if name not in os.environ:
            raise ValueError(
                f'{key}: {path!r} has the environment variable {name!r}, which is not set; set it, or write the path.'
            )
    # The home folder first: a `~` that comes out of a variable stays, as in a shell.
    home = os.path.expanduser(path)
    if home == path and path.startswith('~'):
        raise ValueError(
            f'{key}: {path!r} begins with the home folder of {path.split("/")[0][1:] or "this user"!r}, which is not '
            f'known here; write the path, or ./{path} for a folder of that name.'
        )
    return os.path.expandvars(home)


def plain_name(index: str, name: Any) -> str:
    """``name``, which stands in ``index``, if it is a file name without any folder.

    Raises:
        ValueError: For anything else.
    """
    if not isinstance(name, str) or name in ('', '.', '..') or any(mark in name for mark in ('/', '\\', '\0')):
        raise ValueError(
            f'{index} names the file {name!r}, outside the folder that it stands in; '
            'it was tampered with or is damaged.'
        )
    return name


def local_destination(key: str, path: Any, what: str = 'folder') -> Path:
    """``path`` as a path on this machine.

    Args:
        key (str): Where it was given, for the message.
        path (Any): Path to write to.
        what (str): ``'folder'`` of a model, or ``'file'``.

    Raises:
        ValueError: For a remote address, which would become a folder named ``s3:`` here, and for a place where no such
            thing can be written.
    """
    if '://' in str(path):
        upload = ', or upload it with `llmshearing export --push-to-hub`' if what == 'folder' else ''
        raise ValueError(
            f'{key}: expected a {what} on this machine, got {path!r}; write to a local one and copy it there{upload}.'
        )
    path = Path(path)
    if path.exists() and path.is_dir() != (what == 'folder'):
        kind, other = ('file', 'folder') if path.is_dir() else ('folder', 'file')
        raise ValueError(f'{key}: expected a {kind}, and {path} is a {other}; choose another place.')
    above = next((parent for parent in path.parents if parent.exists()), path)
    if path != above and not above.is_dir():
        raise ValueError(f'{key}: {path} cannot be made, as {above} is no folder; choose another place.')
    if not path.exists() and os.environ.get('RANK', '0') == '0':  # the only one that writes; others may be elsewhere
        refuse_unwritable(key, path)
    return path


def names_a_path(name: str) -> bool:
    """Whether a model's name can only be that of a file or folder; others may be one on the hub."""
    return name.startswith(('/', '.', '~')) or name.count('/') > 1


def refuse_existing(where: str, folder: str | Path, overwrite: bool, needed: Iterable[str | Path | None] = ()) -> None:
    """Refuses a destination that is there already, or that must not be replaced whatever the user says.

    Replacing a folder removes it with all that is in it, so it must look like a model folder: files, a config.json
    among them, and no other folders than we write.

    Args:
        where (str): What writes there, for the message.
        folder (str | Path): Destination of a model folder.
        overwrite (bool): It may be replaced.
        needed (Iterable[str | Path | None]): What is read or kept, which must not be in it. Default: nothing.

    Raises:
        ValueError: If it exists and may not be replaced.
    """
    folder = Path(folder)
    if folder.is_symlink() and not folder.exists():
        raise ValueError(
            f'{where}: {folder} is a link to {os.readlink(folder)}, which is not there; name that instead.'
        )
    if not folder.exists():
        return
    if not overwrite:
        raise ValueError(
            f'{where}: {folder} exists already; choose another folder or allow replacing it (overwrite: true, '
            '--overwrite).'
        )
    inside = sorted(folder.iterdir())
    other = next((entry for entry in inside if entry.is_dir() and entry.name not in INSIDE), None)
    if inside and (other is not None or not (folder / 'config.json').is_file()):
        raise ValueError(
            f'{where}: {folder} is no model folder (it holds {(other or inside[0]).name}), so it is not replaced; '
            'choose another folder.'
        )
    for place in needed:
        if place is not None and folder.resolve() in (Path(place).resolve(), *Path(place).resolve().parents):
            raise ValueError(f'{where}: {folder} is not replaced, as {place} is needed; choose another folder.')


def refuse_adapter(where: str, folder: str | Path) -> None:
    """Raises a ValueError for a folder with an adapter, which some programs read beside weights and others do not."""
    if (Path(folder) / 'adapter_config.json').is_file():
        raise ValueError(
            f'{where} holds an adapter (LoRA), which is not read here; merge it into its base model first, with peft: '
            'AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(OTHER). Weights '
            'that lie beside it are read without it once adapter_config.json is gone.'
        )


def refuse_lookalikes(where: str, folder: str | Path) -> None:
    """Refuses a folder without a model that is taken for a model's, with the way to the model.

    Args:
        where (str): Names the folder, for the message.
        folder (str | Path): It lacks the config or the weights.

    Raises:
        ValueError: For an adapter, for the root of a model in the hub's cache, and for a copy of links alone.
    """
    folder = Path(folder)
    refuse_adapter(where, folder)
    broken = sorted(path for path in folder.glob('*') if path.is_symlink() and not path.exists())
    if broken:
        raise ValueError(
            f"{where}: {broken[0].name} is a link to {os.readlink(broken[0])}, which is not there. The hub's cache "
            'keeps files so; copy them with what they link to: cp -rL SNAPSHOT FOLDER.'
        )
    snapshots = sorted(str(path.parent) for path in folder.glob('snapshots/*/config.json'))
    if snapshots:
        raise ValueError(
            f"{where} is where the Hugging Face Hub's cache keeps a model; name the snapshot in it: "
            f'{" or ".join(snapshots)}.'
        )


def check_safetensors_index(path: Path) -> dict[str, str]:
    """File name by tensor name of a ``model.safetensors.index.json``.

    Raises:
        ValueError: If it is no such index, or names a file elsewhere.
    """
    index = load_json(path)
    weight_map = index.get('weight_map')
    if not isinstance(weight_map, dict):
        raise ValueError(f'{path} holds no mapping "weight_map" from tensor to file.')
    if not isinstance(index.get('metadata'), dict):
        raise ValueError(
            f'{path} holds no mapping "metadata", which transformers reads; write "metadata": {{}} into it.'
        )
    return {name: plain_name(str(path), file) for name, file in weight_map.items()}


def check_mds_index(path: Path) -> list[dict[str, Any]]:
    """The shards that an ``index.json`` of Streaming lists.

    Raises:
        ValueError: If it is no such index, or names a file elsewhere.
    """
    shards = load_json(path).get('shards')
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        raise ValueError(f'{path} holds no list "shards".')
    for shard in shards:
        for key, part in shard.items():
            if key.startswith(('raw_', 'zip_')) and isinstance(part, dict):
                plain_name(str(path), part.get('basename'))
    return shards
