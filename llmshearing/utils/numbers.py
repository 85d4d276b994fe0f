"""Numbers as people write them, such as ``1.3B`` and ``2.5GB``, and the multiples that are proposed beside one."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ['multiples_beside', 'parse_count', 'parse_size', 'unit_of', 'with_unit']

_COUNT = re.compile(r'^([0-9_]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmbt]?)$', re.IGNORECASE)
_UNITS = {'': 1, 'k': 10**3, 'm': 10**6, 'b': 10**9, 't': 10**12}
_SIZE = re.compile(r'^([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*(?:([kmgt])(i?))?b?$', re.IGNORECASE)


def parse_count(value: Any) -> float:
    """A count of parameters or tokens: ``6738415616``, ``2_000_000``, ``6.7e9``, ``6.7B``, ``300M``.

    Raises:
        ValueError: For anything else, as for what is not above zero.
    """
    match = None if isinstance(value, bool) else _COUNT.match(str(value).strip())
    count = math.nan
    if match is not None:
        count = float(match[1].replace('_', '')) * _UNITS[match[2].lower()]
    if not (math.isfinite(count) and count > 0):
        raise ValueError(f'not a count: {value!r}; expected a positive number such as 1300000000, 1.3e9 or 1.3B')
    return count


def parse_size(value: Any) -> int:
    """Bytes of ``2.5GB``, ``2.5GiB``, ``500MB`` or a plain number.

    Raises:
        ValueError: For anything else.
    """
    match = None if isinstance(value, bool) else _SIZE.match(str(value).strip())
    size = 0.0
    if match is not None:
        number, unit, binary = match.groups()
        size = float(number) * (1024.0 if binary else 1000.0) ** (' kmgt'.index(unit.lower()) if unit else 0)
    if not (size > 0 and math.isfinite(size)):
        raise ValueError(
            f'not a size: {value!r}; expected bytes, or a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB, as 2.5GB'
        )
    return int(size)


def multiples_beside(value: int, step: int, most: int) -> list[int]:
    """The multiples of ``step`` next below and above a value that is none, of those from 1 to ``most``."""
    return [n for n in (value // step * step, -(-value // step) * step) if 0 < n <= most]


def unit_of(value: float, unit: str, binary: bool = False) -> tuple[float, str]:
    """The unit in which a value has one to four digits before the point: its size, and its name.

    Args:
        value (float): In plain units.
        unit (str): Their name, such as ``B``.
        binary (bool): Steps of 1,024 (KiB, MiB, ...) instead of 1,000 (kB, MB, ...).
    """
    step = 1024.0 if binary else 1000.0
    power = min(int(math.log(value, step) + 1e-9), 4) if value >= 1 else 0
    prefix = ('', 'Ki', 'Mi', 'Gi', 'Ti')[power] if binary else ('', 'k', 'M', 'G', 'T')[power]
    return step**power, prefix + unit


def with_unit(value: float, unit: str, binary: bool = False) -> str:
    """``13476831232, 'B'`` as ``13.48 GB``; arguments as :func:`unit_of`."""
    size, name = unit_of(value, unit, binary)
    return f'{value:,.0f} {name}' if size == 1 else f'{value / size:,.2f} {name}'
