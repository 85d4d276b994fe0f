"""Runs the cases of a part one by one and keeps each result at once, so that a stopped command goes on where it was.

A case is a name and a function that returns numbers. Whatever goes wrong in it becomes its row: a table hides nothing.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.machine import describe

__all__ = ['Case', 'NotThere', 'markdown', 'run_cases', 'write_table']

Row = dict[str, Any]
HIDDEN = ('traceback', 'took')  # columns of the JSON only
NO_TIME = 'not run: no time left'


class NotThere(Exception):
    """Something that a case needs is not on this machine; its row says so and is no failure."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name (str): As in the table, unique in its part.
        run (Callable): Takes the rows so far by name; returns this one's numbers. Where ``bound`` is among them,
            ``difference`` must not exceed it.
    """

    name: str
    run: Callable[[Mapping[str, Row]], Row]


def run_cases(part: str, cases: Iterable[Case], output: Path, deadline: float, again: bool = False) -> dict[str, Row]:
    """Runs what has no result in ``output`` yet and returns all rows.

    Args:
        part (str): Name of the JSON file.
        cases (Iterable[Case]): In the order to run.
        output (Path): Folder of results.
        deadline (float): Time (as of ``time.time``) after which no case is begun.
        again (bool): Also run again what failed.
    """
    path = output / f'{part}.json'
    record = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    record = {'machine': describe(), 'cases': record.get('cases', {})}
    rows = record['cases']
    for case in cases:
        before = rows.get(case.name, {}).get('result', NO_TIME)
        if before != NO_TIME and not (again and before.startswith('failed')):
            continue
        rows[case.name] = {'result': NO_TIME} if time.time() > deadline else run_case(case, rows)
        _save(path, record)
        sys.stderr.write(f'{part}: {case.name}: {rows[case.name]["result"]}\n')
        if not _device_works():  # an error that stays with the process
            _start_anew()
    return rows


def run_case(case: Case, rows: Mapping[str, Row]) -> Row:
    """The row of one case: its numbers, or why there are none."""
    start = time.perf_counter()
    try:
        numbers = case.run(rows)
        row = {'result': _judge(numbers), **numbers}
    except NotThere as reason:
        row = {'result': f'not there: {reason}'}
    except torch.OutOfMemoryError as error:
        row = {'result': f'does not fit: {_first_line(error)}'}
    except Exception as error:  # whatever it is, it is this case's result
        row = {'result': f'failed: {type(error).__name__}: {_first_line(error)}', 'traceback': traceback.format_exc()}
    except SystemExit as error:
        row = {'result': f'failed: the program ended with {error.code}', 'traceback': traceback.format_exc()}
    row['took'] = round(time.perf_counter() - start, 1)
    _free()
    return row


def _judge(numbers: Row) -> str:
    if 'bound' not in numbers:
        return 'measured'
    if numbers['difference'] <= numbers['bound']:
        return 'passed'
    return f'failed: {numbers["difference"]:.3g} is above {numbers["bound"]:.3g}'


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else 'no message'


def _save(path: Path, record: Mapping[str, Any]) -> None:
    part = path.with_suffix('.part')
    part.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    part.replace(path)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            pass  # `_device_works` finds the same


def _device_works() -> bool:
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        return bool(torch.ones(1, device='cuda').item() == 1)
    except RuntimeError:
        return False


def _start_anew() -> None:
    """Runs the same command in a fresh process: finished cases are kept, the one that broke the device among them."""
    sys.stderr.flush()
    arguments = [argument for argument in sys.argv[1:] if argument != '--again']
    os.execv(sys.executable, [sys.executable, '-m', 'benchmarks.gpu', *arguments])


def markdown(part: str, record: Mapping[str, Any]) -> str:
    """A part's machine and rows as markdown."""
    rows = record['cases']
    shown = [{key: value for key, value in row.items() if key not in HIDDEN} for row in rows.values()]
    columns = list(dict.fromkeys(key for row in shown for key, value in row.items() if not isinstance(value, dict)))
    machine = ', '.join(f'{name} {value}' for name, value in record['machine'].items() if value is not None)
    lines = [f'## {part}', '', machine, '', f'| case | {" | ".join(columns)} |', '|---' * (1 + len(columns)) + '|']
    for name, row in rows.items():
        lines.append(f'| {name} | {" | ".join(_cell(row.get(column)) for column in columns)} |')
    return '\n'.join(lines) + '\n'


def _cell(value: Any) -> str:
    if value is None:
        return ''
    if isinstance(value, float):
        return f'{value:.4g}'
    return str(value).replace('|', '/')


def write_table(output: Path, parts: Iterable[str]) -> str:
    """Writes and returns the tables of all parts that have results in ``output``."""
    paths = [output / f'{part}.json' for part in parts]
    records = [(path.stem, json.loads(path.read_text(encoding='utf-8'))) for path in paths if path.exists()]
    text = '\n'.join(markdown(part, record) for part, record in records)
    (output / 'table.md').write_text(text, encoding='utf-8')
    return text
