"""The nearest name that is possible, for messages about one that is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ['did_you_mean', 'nearest', 'refuse_unknown']


def nearest(name: Any, possible: Iterable[Any]) -> str | None:
    """The possible name that is written most like ``name``; None if none is alike."""
    found = difflib.get_close_matches(str(name), [str(one) for one in possible], 1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(name: Any, possible: Iterable[Any]) -> str:
    """A sentence with the nearest name, with a space before it; empty if none is alike."""
    near = nearest(name, possible)
    return f' Did you mean {near!r}?' if near else ''


def refuse_unknown(where: str, settings: Mapping[Any, Any], possible: Iterable[str]) -> None:
    """Refuses a key that is not possible at a place in the configuration.

    Raises:
        ValueError: Naming the key and the nearest one that is possible. A key that YAML reads as a number, a date or
            true or false is told so: without quotes, ``no`` is false and ``2023`` a number.
    """
    possible = list(possible)
    for key in settings:
        if key in possible:
            continue
        if not isinstance(key, str):
            raise ValueError(
                f'{where}: the key {key!r} is read by YAML as {type(key).__name__}, not as text; '
                'put it in quotes, as it is written in the file.'
            )
        raise ValueError(f'{where}: unknown key {key!r}.{did_you_mean(key, possible)} Possible: {", ".join(possible)}.')
