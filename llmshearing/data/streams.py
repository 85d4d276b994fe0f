"""From the domains a user names to one Streaming ``Stream`` per domain, with every mistake told before training.

A domain is an MDS folder: below ``local`` (and ``remote``) under the domain's name, or where its own ``local``/
``remote`` say. Downloading, caching and hash checks stay Streaming's; what is checked here is what would otherwise show
up as a crash in the middle of a run: folders that are missing or empty, mixture weights for domains that do not exist.
What the shards hold is checked in :mod:`~llmshearing.data.shard_checks`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from streaming import Stream

from llmshearing.compat.streaming import MDSReader, Reader, World, get_index_basename
from llmshearing.data.mds import read_index
from llmshearing.utils.checks import is_number
from llmshearing.utils.files import load_json
from llmshearing.utils.paths import expand_path, plain_name
from llmshearing.utils.settings import check_keys

__all__ = [
    'DomainConfig',
    'DomainStream',
    'build_domain_streams',
    'check_domain_settings',
    'read_proportions',
    'resolve_proportions',
    'shard_problem',
    'stream_folder',
    'stream_places',
]

DomainConfig = Sequence[str] | Mapping[str, Mapping[str, Any] | None]


class DomainStream(Stream):
    """A ``Stream`` whose index names only files in its own folder."""

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """Streaming's, after the index is checked: before any shard is fetched, unpacked or removed."""
        shards = super().get_shards(world, allow_unsafe_types)
        for shard in shards:
            for info in (part for pair in shard.file_pairs for part in pair if part is not None):
                plain_name(os.path.join(stream_folder(self), get_index_basename()), info.basename)
        return shards


def stream_folder(stream: Stream) -> str:
    """The MDS folder of a stream on this machine."""
    return os.path.join(stream.local, stream.split)


def stream_places(streams: Iterable[Stream]) -> list[tuple[str, str | None]]:
    """The MDS folders of streams, as :func:`~llmshearing.data.fingerprint.check_tokenizer` takes them."""
    return [(stream_folder(stream), stream.remote) for stream in streams]


def check_domain_settings(where: str, domains: Any) -> None:
    """Refuses settings of a domain that its ``Stream`` does not take, or not of that kind.

    Streaming's own ways of mixing (``proportion``, ``repeat``, ``choose``) are not for domains: ``proportions`` is.

    Raises:
        ValueError: Naming the key, and the nearest one that is known.
    """
    for name, own in domains.items() if isinstance(domains, Mapping) else ():
        if own is not None:
            check_keys(f'{where}.{name}', own, Stream, given=('proportion', 'repeat', 'choose'))


def build_domain_streams(
    domains: DomainConfig, local: str | None, remote: str | None, split: str | None = None
) -> dict[str, Stream]:
    """One ``Stream`` per domain, in the order given.

    Args:
        domains (DomainConfig): Names, or a mapping from name to settings of its ``Stream`` (``local``, ``remote``,
            ``split``, ``download_retry``, ``download_timeout``, ``validate_hash``, ``keep_zip``), which override the
            shared ones.
        local (str | None): Folder with one folder per domain.
        remote (str | None): The same layout at a remote place, or ``None`` if all shards are local.
        split (str | None): Sub-folder of every domain's folder to read, if any.

    Raises:
        ValueError: If no domain is given, a name is given twice, a setting is unknown, or a domain's folder or index is
            missing or empty.
    """
    names = list(domains)
    if isinstance(domains, str) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f'`domains` must be a list of names or a mapping from name to settings, but got {domains!r}.')
    if len(set(names)) != len(names):
        raise ValueError(f'Each domain must be named once, but got {names}.')
    check_domain_settings('domains', domains)
    streams, problems = {}, []
    for name in names:
        own = dict(domains[name] or {}) if isinstance(domains, Mapping) else {}
        if 'local' not in own and (name in ('.', '..') or '/' in name or '\\' in name):
            raise ValueError(
                f'Domain {name!r} would lie outside `local`; name a folder in it, or set `domains.NAME.local`.'
            )
        own.setdefault('local', os.path.join(local, name) if local else None)
        own.setdefault('remote', f'{remote.rstrip("/")}/{name}' if remote else None)
        own.setdefault('split', split)
        for key in ('local', 'remote'):
            own[key] = own[key] and expand_path(f'domains.{name}.{key}', own[key])
        if not own['local']:
            raise ValueError(
                f'Domain {name!r} has no local folder: set `local` of the dataset (one folder per domain '
                f'below it) or `domains.{name}.local`.'
            )
        problem = None if own['remote'] else _index_problem(own['local'], own['split'])
        if problem:
            problems.append(f'{name}: {problem}')
        else:
            streams[name] = DomainStream(**own)
    if problems:
        raise ValueError(
            f'Cannot read {len(problems)} of {len(names)} domains ({"; ".join(problems)}). '
            f'{_what_is_there(local)}Prepare the data, correct `domains` or `local`, or set `remote`.'
        )
    return streams


def _index_problem(local: str, split: str | None) -> str | None:
    """What is wrong with a local MDS folder, as far as its index and its files tell, or None."""
    folder = os.path.join(local, split or '')
    path = os.path.join(folder, get_index_basename())
    if not os.path.isfile(path):
        return f'no {path}'
    try:
        readers = read_index(folder)
    except ValueError as error:
        return str(error)
    if not sum(reader.samples for reader in readers):
        return f'{path} lists no samples'
    return shard_problem(folder, readers)


def shard_problem(folder: str, readers: Iterable[MDSReader]) -> str | None:
    """What tells by its size or its head that a local MDS folder has not the shards of its index, or None."""
    path, remedy = os.path.join(folder, get_index_basename()), 'fetch or prepare the folder again'
    for reader in readers:
        there = [info for info in (reader.raw_data, reader.zip_data) if info and Path(folder, info.basename).is_file()]
        if not there:
            return f'shard {reader.raw_data.basename} of {path} is missing; {remedy}'
        file = Path(folder, there[0].basename)
        if file.stat().st_size != there[0].bytes:
            return f'{file} has {file.stat().st_size} bytes where its index says {there[0].bytes}; {remedy}'
        held = np.fromfile(file, np.uint32, 1).item() if there[0] is reader.raw_data else reader.samples
        if held != reader.samples:
            return f'{file} holds {held} samples where its index says {reader.samples}; {remedy}'
        if there[0] is not reader.raw_data and not os.access(folder, os.W_OK):
            return (
                f'its shards are compressed, and {folder} cannot be written to unpack them; name it as its `remote`, '
                'and a folder that can as `local`'
            )
    return None


def _what_is_there(local: str | None) -> str:
    if not local or not os.path.isdir(local):
        return f'There is no folder {local}. ' if local else ''
    found = sorted(name for name in os.listdir(local) if _index_problem(os.path.join(local, name), None) is None)
    return f'Domains found in {local}: {found}. '


def read_proportions(source: Mapping[str, float] | str | None) -> Mapping[str, float] | None:
    """Mixture weights given inline or as a JSON file with a ``proportions`` mapping (``weights_file`` writes one).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no such mapping.
    """
    if not isinstance(source, str):
        return source
    source = expand_path('proportions', source)
    if not Path(source).is_file():
        raise FileNotFoundError(f'`proportions` names the file {source!r}, which does not exist.')
    try:
        proportions = load_json(source).get('proportions')
    except ValueError as error:
        raise ValueError(
            f'`proportions`: {error} Expected {{"proportions": {{domain: weight}}}}, as `weights_file` writes.'
        ) from error
    if not isinstance(proportions, dict):
        raise ValueError(f'{source} holds no mapping "proportions" from domain to weight.')
    odd = {name: weight for name, weight in proportions.items() if not is_number(weight)}
    if odd:
        raise ValueError(f'The "proportions" in {source} must be numbers, but got {odd}.')
    return proportions


def resolve_proportions(proportions: Mapping[str, float] | None, sizes: Mapping[str, int]) -> list[float]:
    """Initial mixture weights in the order of ``sizes``: as given, or by size in samples.

    Args:
        proportions (Mapping[str, float] | None): Weight by domain, need not sum to 1. ``None`` takes the domains'
            sizes.
        sizes (Mapping[str, int]): Samples by domain.

    Raises:
        ValueError: If the names are not exactly the domains, or the weights are negative, not finite or all zero.
    """
    if proportions is None:
        return [float(size) for size in sizes.values()]
    unknown, missing = sorted(set(proportions) - set(sizes)), sorted(set(sizes) - set(proportions))
    if unknown or missing:
        raise ValueError(
            f'`proportions` must name the domains {list(sizes)}, but has unknown names {unknown} and '
            f'lacks {missing}. Give every domain a weight (0 keeps it out).'
        )
    weights = {name: float(proportions[name]) for name in sizes}
    if any(not np.isfinite(weight) or weight < 0 for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f'`proportions` must be finite, not negative and not all zero, but got {weights}.')
    return list(weights.values())
