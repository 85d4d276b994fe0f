"""An attribute that is another one for as long as a block runs, such as a function of a library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ['replaced']


@contextlib.contextmanager
def replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    """Gives an object or module another attribute for the block, and what it had before afterwards."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
