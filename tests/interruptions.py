"""Stops what is tested at a call, as a kill or a full disk would."""

from __future__ import annotations

import itertools
from typing import Any


class Stop(Exception):
    """Stands for a kill at this point: nothing after it runs."""


def stop_after(monkeypatch, owner: Any, name: str, calls: int, error: Exception | type[BaseException] = Stop) -> None:
    """A function of a module or class works so many times, and raises from then on."""
    function, done = getattr(owner, name), itertools.count()

    def stopping(*arguments, **options):
        if next(done) >= calls:
            raise error
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, stopping)
