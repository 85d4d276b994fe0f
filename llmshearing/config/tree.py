"""Every entry of a configuration with its place: for checks and changes that concern keys wherever they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ['Entry', 'walk']


class Entry(NamedTuple):
    """One entry of a mapping or list.

    Attributes:
        parent (Any): The mapping or list that holds it.
        key (Any): Its key or number there.
        place (str): Dotted place, for patterns; entries of a list are under the name of their list.
        shown (str): The same for messages, with the number of entries of a list.
    """

    parent: Any
    key: Any
    place: str
    shown: str

    @property
    def value(self) -> Any:
        """What stands there."""
        return self.parent[self.key]


def walk(tree: Any, place: str = '', shown: str = '') -> Iterator[Entry]:
    """Yields all entries of a tree of mappings and lists, each before those inside it."""
    if isinstance(tree, Mapping):
        dot = '.' if place else ''
        entries = [Entry(tree, key, f'{place}{dot}{key}', f'{shown}{dot}{key}') for key in tree]
    elif isinstance(tree, (list, tuple)):
        entries = [Entry(tree, number, place, f'{shown}[{number}]') for number in range(len(tree))]
    else:
        return
    for entry in entries:
        yield entry
        yield from walk(entry.value, entry.place, entry.shown)
