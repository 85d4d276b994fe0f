"""Numbers as people write them: counts such as ``1.3B`` and sizes such as ``2.5GB``. Every part of the package may
import this, and it imports none."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ['parse_count', 'parse_size']

_COUNT = re.compile(r'^([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([kKmMbBtT]?)$')
_UNITS = {'': 1, 'k': 10**3, 'm': 10**6, 'b': 10**9, 't': 10**12}
_SIZE = re.compile(r'^([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*(?:([kmgt])(i?))?b?$', re.IGNORECASE)


def parse_count(text: str) -> float:
    """A count of parameters or tokens: ``6738415616``, ``6.7e9``, ``6.7B``, ``300M``. Raises ValueError otherwise."""
    match = _COUNT.match(text.strip())
    try:
        value = float(match.group(1)) * _UNITS[match.group(2).lower()]
    except (AttributeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f'not a count: {text!r}; expected a positive number such as 1300000000, 1.3e9 or 1.3B')
    return value


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
