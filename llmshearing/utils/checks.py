"""Checks of single values, each with one error that says where, what was expected and what is there."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = [
    'Range',
    'check_integer',
    'check_name',
    'check_number',
    'check_one_of',
    'check_precision',
    'is_integer',
    'is_number',
    'of_another_package',
]


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_integer(value: Any) -> bool:
    """Whether it is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_number(key: str, value: Any, least: float, most: float = math.inf, above: bool = False) -> None:
    """Refuses what is no finite number within the limits.

    Args:
        key (str): Place in the configuration, for the message.
        value (Any): What stands there.
        least (float): Smallest possible value.
        most (float): Largest possible value. Default: none.
        above (bool): ``least`` itself is not possible. Default: ``False``.

    Raises:
        ValueError: Naming the key, the limits and the value.
    """
    if not is_number(value) or value > most or (value <= least if above else value < least):
        low = f'above {least:g}' if above else f'of at least {least:g}'
        high = '' if most == math.inf else f' and at most {most:g}'
        raise ValueError(f'{key}: expected a number {low}{high}, got {value!r}.')


def check_integer(key: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuses what is no whole number within the limits."""
    if not is_integer(value) or value < least or (most is not None and value > most):
        limits = f'of at least {least}' if most is None else f'from {least} to {most}'
        raise ValueError(f'{key}: expected a whole number {limits}, got {value!r}.')


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may have.

    Args:
        least (float): Smallest one.
        most (float): Largest one. Default: none.
        above (bool): ``least`` itself is not possible. Default: ``False``.
        zero (bool): 0 is possible. Default: ``True``.
        whole (bool): Fractions are not possible, where the annotation would let them pass. Default: ``False``.
    """

    least: float = 0.0
    most: float = math.inf
    above: bool = False
    zero: bool = True
    whole: bool = False

    def check(self, key: str, value: Any) -> None:
        """Refuses what is no number of this range."""
        if self.whole:
            check_integer(key, value, int(self.least), None if self.most == math.inf else int(self.most))
        else:
            check_number(key, value, self.least, self.most, self.above)


def check_one_of(key: str, value: Any, possible: Iterable[str], more: str = '') -> None:
    """Refuses what is not among the possible values; ``more`` ends the message."""
    possible = list(possible)
    if value not in possible:
        raise ValueError(f'{key}: expected one of {", ".join(possible)}, got {value!r}.{more}')


def of_another_package(what: str, registry: str) -> str:
    """How a part that another package brings is found, for the end of a message about a name that is not."""
    return (
        f' A {what} of another package is found by every run and command once that package is installed with an entry '
        f'point of the group llmshearing_{registry}; registered in Python, by that process alone.'
    )


def check_precision(precision: str) -> None:
    """Refuses Composer's precision that no part of this package works with, in a YAML or a Trainer."""
    if precision == 'amp_fp16':
        raise ValueError(
            'precision: amp_fp16 scales losses, which gradients of masks, distillation and finite_monitor do not take '
            'into account; use amp_bf16 or fp32.'
        )


def check_name(key: str, value: Any) -> None:
    """Refuses what is no text, or an empty one."""
    if not isinstance(value, str) or not value:
        raise ValueError(f'{key}: expected a name, got {value!r}.')
