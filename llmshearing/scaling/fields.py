"""Fields of the files that scaling laws are fitted to, each checked with one message: what was found, what is expected.

Nothing here or in the modules beside it imports torch (but ``measure.py``).
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path

from llmshearing.utils.checks import is_number
from llmshearing.utils.files import dump_json, load_json
from llmshearing.utils.suggestions import refuse_unknown

__all__ = [
    'check_fields',
    'csv_number',
    'open_csv',
    'positive_number',
    'read_json',
    'refuse_repeated',
    'removed_fraction',
    'write_json',
]


def read_json(path: str | Path) -> dict:
    """A JSON object from a file. Raises ValueError where the file is missing, not JSON, or not an object."""
    if not Path(path).is_file():
        raise ValueError(f'{path}: no such file')
    return load_json(path)


def write_json(path: str | Path, content: dict) -> None:
    """Writes JSON with a final newline; parent folders are made. Not-a-number is refused, as JSON has no such value."""
    dump_json(path, content, allow_nan=False)


def positive_number(value: object, what: str) -> float:
    """``value`` as a finite positive float, or a ValueError that names it as ``what``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f'{what} must be a positive number, got {value!r}')
    if not is_number(value) or value <= 0:
        raise ValueError(f'{what} must be finite and positive, got {value}')
    return float(value)


def removed_fraction(value: object, what: str) -> float:
    """``value`` as a pruning rate, between 0 and 1, or a ValueError that names it as ``what``."""
    rate = positive_number(value, what)
    if rate >= 1:
        meant = f', did you mean {rate / 100:g}?' if 1 < rate < 100 else ''
        raise ValueError(f'{what} is the fraction of the parameters removed, between 0 and 1; got {rate:g}{meant}')
    return rate


def refuse_repeated(keys: Iterable[Hashable], labels: Iterable[str], what: str) -> None:
    """Refuses what is given twice, since a fit would take it for independent and make its intervals too narrow.

    Args:
        keys (Iterable[Hashable]): Equal where two are the same.
        labels (Iterable[str]): What to call each in the message, such as file and name.
        what (str): What they are: ``model`` or ``run``.

    Raises:
        ValueError: Names the first two that are the same.
    """
    seen: dict[Hashable, str] = {}
    for key, label in zip(keys, labels):
        if key in seen:
            both = f'{label} is given twice' if seen[key] == label else f'{seen[key]} and {label} are the same {what}'
            raise ValueError(
                f'{both}, which would count as two independent measurements and make the intervals too '
                f'narrow; give each {what} once'
            )
        seen[key] = label


def check_fields(row: object, known: set[str], required: Iterable[str], where: str) -> None:
    """Refuses a row that is no object, lacks a field, or has one that is not known."""
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object with {sorted(required)}, got {row!r}')
    for field in required:
        if field not in row:
            raise ValueError(f'{where}: {field!r} is missing; got the fields {sorted(row)}')
    refuse_unknown(where, row, sorted(known))


def csv_number(text: str, what: str) -> float:
    """A cell of a CSV as a finite positive float. Raises ValueError otherwise."""
    try:
        return positive_number(float(text), what)
    except ValueError as error:
        raise ValueError(f'{what} must be a positive number, got {text!r}') from error


@contextlib.contextmanager
def open_csv(path: Path) -> Iterator[csv.DictReader]:
    """The rows of a CSV by the names in its first line. Raises ValueError where there is none, or it is no text."""
    if not path.is_file():
        raise ValueError(f'{path}: no such file')
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:  # as Excel saves
            rows = csv.DictReader(file, skipinitialspace=True)
            rows.fieldnames = [(column or '').strip() for column in rows.fieldnames or []]
            yield rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'{path}: not a CSV ({error})') from error
