"""What is known of candidates, on disk: a folder that a killed search goes on from and that several processes share.

``search.json`` says which search it is; another one is refused. ``candidates/NAME.json`` is written whole when the
candidate is finished. Whoever works on one holds the lock beside it, which the system releases when a process dies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llmshearing.utils.files import dump_json, load_json, write_atomically
from llmshearing.utils.locks import hold_lock

__all__ = ['SearchFolder', 'refuse_other']


class SearchFolder:
    """The folder of a search, made where it is missing; ``search`` is what decides the result, as plain types.

    Raises:
        ValueError: If the folder holds something else.
    """

    def __init__(self, path: Path, search: Mapping[str, Any]):
        self.path = path
        described = json.dumps(search, indent=1, sort_keys=True)
        record = path / 'search.json'
        refuse_other(path)
        if record.is_file() and record.read_text() != described:
            before = load_json(record)
            differing = sorted(key for key in {*before, *search} if before.get(key) != json.loads(described).get(key))
            raise ValueError(
                f'--output: {path} holds a search that differs in {", ".join(differing)}; choose another folder, or '
                'give what was given before to go on with it.'
            )
        if not record.is_file():
            write_atomically(record, described)  # first, for it says whose folder this is
        (path / 'candidates').mkdir(exist_ok=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """What is known of a candidate; None before it is finished."""
        file = self.path / 'candidates' / f'{name}.json'
        return load_json(file) if file.is_file() else None

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Keeps what is known of a candidate."""
        dump_json(self.path / 'candidates' / f'{name}.json', record, indent=1, end='')

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """Whether this process may work on a candidate: not while another one does."""
        return hold_lock(self.path / 'candidates' / f'{name}.lock')


def refuse_other(path: Path) -> None:
    """Raises a ValueError for a folder that holds something else than a search."""
    if path.exists() and not (path / 'search.json').is_file() and not all(map(_is_beginning, path.iterdir())):
        raise ValueError(f'--output: {path} exists already and holds no search; choose another folder.')


def _is_beginning(path: Path) -> bool:
    """Whether it is what a process begins with: ``search.json`` as it is written, or a trimmed source."""
    return path.name.startswith(('.search.json.', 'trimmed-', '.trimmed-'))
