"""Checks of single settings, each with one error that says what is possible."""

from __future__ import annotations

__all__ = ['one_of', 'within']


def one_of(name: str, value: str, possible: tuple[str, ...]) -> str:
    """``value`` if it is among ``possible``.

    Raises:
        ValueError: If not.
    """
    if value not in possible:
        raise ValueError(f'{name}={value!r} is not possible; choose one of {", ".join(possible)}.')
    return value


def within(name: str, value: float, low: float, high: float) -> float:
    """``value`` if it is a number from ``low`` to ``high``.

    Raises:
        ValueError: If not.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f'{name}={value!r} is out of range; it must be a number from {low} to {high}.')
    return value
