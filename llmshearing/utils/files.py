"""Writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ['write_atomically']


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Writes ``content`` beside ``path`` and renames it into place; makes the folder if it is not there.

    The content is on the disk before the name is. If writing fails, what was there before stays, and nothing else.

    Args:
        path (str | Path): File to write or replace.
        content (str | bytes): Text is written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f'.{path.name}.new')
    try:
        with open(new, 'wb') as file:
            file.write(content.encode('utf-8') if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
