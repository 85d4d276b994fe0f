"""Runs the cases of a part one by one and keeps each result at once, so that a stopped command goes on where it was.

A case is a name and a function that returns numbers. Whatever goes wrong in it becomes its row: a table hides nothing.
One folder holds results of one card, one pair of versions and one mode.
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

__all__ = ['Case', 'NotThere', 'markdown', 'refuse_others', 'run_cases', 'write_table']

Row = dict[str, Any]
HIDDEN = ('traceback', 'took', 'attempts')  # columns of the JSON only
NO_TIME = 'not run: no time left'
STOPPED = 'failed: the command was stopped in this case'
ATTEMPTS = 2  # at a case in which the command is stopped
SAME = ('mode', 'card', 'torch', 'transformers')  # of the machine, for all results of a folder


class NotThere(Exception):
    """Something that a case needs is not on this machine; its row says so and is no failure."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name (str): As in the table, unique in its part.
        run (Callable): Takes the rows so far by name; returns this one's numbers. Where ``bound`` is among them,
            ``difference`` must not exceed it.
        expected (Callable): Takes the rows so far; returns the seconds that it may take, 0 where nothing tells.
        cheap (bool): Is computed from other rows, and so at every call.
    """

    name: str
    run: Callable[[Mapping[str, Row]], Row]
    expected: Callable[[Mapping[str, Row]], float] = lambda rows: 0.0
    cheap: bool = False


def refuse_others(output: Path, parts: Iterable[str], machine: Mapping[str, Any]) -> None:
    """Raises a ValueError where ``output`` has results of another card, mode or version than ``machine`` has."""
    for path in (output / f'{part}.json' for part in parts):
        before = json.loads(path.read_text(encoding='utf-8'))['machine'] if path.exists() else machine
        other = [f'{key} {before.get(key)} (now {machine.get(key)})' for key in SAME if before.get(key) != machine[key]]
        if other:
            raise ValueError(
                f'--output: {path} has results of {", ".join(other)}; one folder holds those of one machine. Name '
                'another folder.'
            )


def run_cases(
    part: str,
    cases: Iterable[Case],
    output: Path,
    deadline: float,
    again: bool = False,
    machine: Mapping[str, Any] | None = None,
) -> dict[str, Row]:
    """Runs what has no result in ``output`` yet, or what was not there, and returns all rows.

    A case in which the command was stopped is run once more. One that is expected to end after the deadline is left to
    the next call, unless this call has run nothing yet.

    Args:
        part (str): Name of the JSON file.
        cases (Iterable[Case]): In the order to run.
        output (Path): Folder of results.
        deadline (float): Time (as of ``time.time``) after which no case is begun.
        again (bool): Also run again what failed.
        machine (Mapping | None): As :func:`~benchmarks.gpu.machine.describe` tells it. Default: ``None``, asked for.
    """
    path, ran = output / f'{part}.json', False
    record = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    record = {'machine': machine or describe(), 'cases': record.get('cases', {})}
    rows = record['cases']
    for case in cases:
        before, others = rows.get(case.name, {}), {name: row for name, row in rows.items() if name != case.name}
        if _has_result(before, again) and not case.cheap:
            continue
        late = time.time() > deadline or (ran and time.time() + case.expected(others) > deadline)
        if late and not case.cheap:
            # An attempt that was stopped stays counted.
            rows[case.name] = {**before, 'result': NO_TIME} if 'attempts' in before else {'result': NO_TIME}
        else:
            attempt = {'result': STOPPED, 'attempts': before.get('attempts', 0) + 1}
            _save(path, {**record, 'cases': {**rows, case.name: attempt}})
            rows[case.name], ran = run_case(case, others), ran or not case.cheap
        _save(path, record)
        sys.stderr.write(f'{part}: {case.name}: {rows[case.name]["result"]}\n')
        if not _device_works():  # an error that stays with the process
            _start_anew(deadline)
    return rows


def _has_result(row: Row, again: bool) -> bool:
    result = row.get('result', NO_TIME)
    if result == STOPPED:
        return row.get('attempts', ATTEMPTS) >= ATTEMPTS and not again
    return not (result == NO_TIME or result.startswith('not there') or (again and result.startswith('failed')))


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


def _start_anew(deadline: float) -> None:
    """Runs the same command in a fresh process: finished cases are kept, the one that broke the device among them.

    It has the minutes that are left, and no ``--again``, which would break the device once more.
    """
    sys.stderr.flush()
    arguments = [argument for argument in sys.argv[1:] if argument != '--again']
    minutes = f'{max((deadline - time.time()) / 60, 0.0):.3f}'
    os.execv(sys.executable, [sys.executable, '-m', 'benchmarks.gpu', *arguments, '--minutes', minutes])


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
