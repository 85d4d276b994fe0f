"""``manifest.json``: what of it others rely on, and telling it from another program's file of that name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmshearing.data.mds import MANIFEST
from llmshearing.prepare.spec import check_folder_name

__all__ = ['MANIFEST', 'folders_of', 'parse_manifest', 'read_manifest']


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a file on this machine; see :func:`parse_manifest`.

    Raises:
        ValueError: If it is something else of that name.
    """
    return parse_manifest(path.read_text(encoding='utf-8', errors='replace'), path)


def parse_manifest(text: str, where: Any) -> dict[str, Any]:
    """Reads a ``manifest.json`` as far as others rely on it: ``key`` and ``domains``, with ``samples`` by split.

    Args:
        text (str): Its content.
        where (Any): Its path or address, for the message.

    Returns:
        dict[str, Any]: The manifest. One with ``unfinished`` holds the place of that of a run which is uploading.

    Raises:
        ValueError: If it is something else of that name.
    """
    try:
        found = _mapping(json.loads(text), 'it')
        if not isinstance(found.get('key'), str):
            raise ValueError('it has no key')
        for domain, entry in _mapping(found.get('domains'), 'domains').items():
            check_folder_name(domain, 'domain')  # names become paths
            for split, facts in _mapping(_mapping(entry, domain).get('splits'), f'splits of {domain}').items():
                check_folder_name(split, 'split')
                samples = _mapping(facts, f'{split} of {domain}').get('samples')
                if not isinstance(samples, int) and not found.get('unfinished'):
                    raise ValueError(f'{split} of {domain} has no number of samples')
    except ValueError as error:  # also what is not JSON
        raise ValueError(
            f'{where} is not a manifest that prepare wrote ({error}); move it away, or name another folder'
        ) from error
    return found


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'{what} is no mapping')
    return value


def folders_of(manifest: dict[str, Any]) -> list[str]:
    """``split/domain`` of everything a manifest lists."""
    return [f'{split}/{name}' for name, entry in manifest['domains'].items() for split in entry['splits']]
