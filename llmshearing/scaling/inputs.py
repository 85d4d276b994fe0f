"""Reads and checks what the scaling laws are fitted to: POINTS (models of one family) and RUNS (post-training curves).

The decision here: plain JSON or CSV with documented fields, checked completely before any fit, so that a fit never has
to explain bad data. Whatever is refused says what was found, what is expected and what to change. Nothing imports
torch.

POINTS.json: ``{"models": [{"params": 6738415616, "tokens": 2e12, "name": "7b", "losses": {"cc": 1.75}}]}``; ``tokens``
and ``name`` are optional. POINTS.csv: one row per model, columns ``params``, optional ``tokens`` and ``name``, every
other column a domain. RUNS.json: ``{"runs": [{"params_before": N0, "pruning_rate": rho, "source_loss": L0, "name": "a",
"curve": [[tokens, loss]]}]}``; ``curve`` may also be the path of a CSV with columns tokens, loss; or ``log`` names the
metrics file of one of this suite's runs (``run_logs.py``), and what is left out is read from it. Other fields are
ignored only where they are listed as free text (``name``, ``comment``); anything else unknown is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from llmshearing.utils.numbers import parse_count

MODEL_FIELDS = {'params', 'tokens', 'losses', 'name', 'comment', 'evaluation'}
RUN_FIELDS = {'params_before', 'pruning_rate', 'source_loss', 'curve', 'name', 'comment'}


@dataclass(frozen=True)
class Points:
    """Measured losses of several models of one family.

    Args:
        params: [models] parameter counts.
        tokens: [models] training tokens, or None where the models do not say.
        losses: Domain name to [models] mean next-token cross-entropy in nats.
        names: [models] what to call each model in messages.
    """

    params: np.ndarray
    tokens: np.ndarray | None
    losses: dict[str, np.ndarray]
    names: list[str]

    def subset(self, kept: Sequence[int]) -> Points:
        """The same points with only the models at the given indices."""
        return Points(
            self.params[kept],
            None if self.tokens is None else self.tokens[kept],
            {domain: values[kept] for domain, values in self.losses.items()},
            [self.names[i] for i in kept],
        )


@dataclass(frozen=True)
class Run:
    """One post-training run after pruning.

    Args:
        params_before: Parameters before pruning, N0.
        pruning_rate: Fraction of the parameters removed, rho in (0, 1).
        source_loss: Loss of the unpruned model on the same evaluation data, L0, in nats.
        tokens: [points] post-training tokens seen, increasing and positive.
        losses: [points] evaluation loss at these tokens, in nats.
        name: What to call the run in messages.
        origin: The file that the curve is from, or where in a file it is written out; empty if it is from none.
    """

    params_before: float
    pruning_rate: float
    source_loss: float
    tokens: np.ndarray
    losses: np.ndarray
    name: str
    origin: str = ''


def count_argument(text: str) -> float:
    """:func:`~llmshearing.utils.numbers.parse_count` as an argparse type, which keeps its message."""
    try:
        return parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_json(path: str | Path) -> dict:
    """A JSON object from a file. Raises ValueError where the file is missing, not JSON, or not an object."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path}: no such file')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:  # also no text, numbers of thousands of digits, endless nesting
        raise ValueError(f'{path}: not JSON ({error})') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path}: expected a JSON object, got a {type(content).__name__}')
    return content


def write_json(path: str | Path, content: dict) -> None:
    """Writes JSON with a final newline; parent folders are made. Not-a-number is refused, as JSON has no such value."""
    path = Path(path)
    text = json.dumps(content, indent=2, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + '\n', encoding='utf-8')


def positive_number(value: object, what: str) -> float:
    """``value`` as a finite positive float, or a ValueError that names it as ``what``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f'{what} must be a positive number, got {value!r}')
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the largest float
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f'{what} must be finite and positive, got {number}')
    return number


def refuse_repeated(keys: Iterable[Hashable], labels: Iterable[str], what: str) -> None:
    """Refuses what is given twice, since a fit would take it for independent and make its intervals too narrow.

    Args:
        keys: Equal where two are the same.
        labels: What to call each in the message, such as file and name.
        what: What they are: ``model`` or ``run``.

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


def _check_fields(row: object, known: set[str], required: Iterable[str], where: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object with {sorted(required)}, got {row!r}')
    for field in required:
        if field not in row:
            raise ValueError(f'{where}: {field!r} is missing; got the fields {sorted(row)}')
    unknown = sorted(set(row) - known)
    if unknown:
        raise ValueError(f'{where}: unknown field {unknown[0]!r}; known are {sorted(known)}')


def points_from_models(models: object, where: str, domains: Sequence[str] | None = None) -> Points:
    """Checks a list of models as in POINTS.json.

    Args:
        models: The list under ``models``.
        where: Start of every message, such as the file name.
        domains: Only these domains; all by default.

    Raises:
        ValueError: No models, a missing, unknown, negative or non-numeric field, models with different domains, or a
            wanted domain that no model has.
    """
    if not isinstance(models, list) or not models:
        raise ValueError(f'{where}: expected a non-empty list under "models", got {models!r}')
    names = []
    for number, model in enumerate(models, 1):
        _check_fields(model, MODEL_FIELDS, ('params', 'losses'), f'{where}: model {number}')
        names.append(str(model.get('name', f'model {number}')))
        if not isinstance(model['losses'], dict) or not model['losses']:
            raise ValueError(
                f'{where}: {names[-1]}: "losses" must map at least one domain to its loss, got {model["losses"]!r}'
            )
    known = sorted({domain for model in models for domain in model['losses']})
    wanted = list(models[0]['losses']) if domains is None else list(domains)
    for domain in wanted:
        if domain not in known:
            raise ValueError(f'{where}: unknown domain {domain!r}; the models have {known}')
    for name, model in zip(names, models):
        missing = [domain for domain in (known if domains is None else wanted) if domain not in model['losses']]
        if missing:
            raise ValueError(
                f'{where}: {name} has no loss for domain {missing[0]!r}; every model needs one for each '
                f'of {known if domains is None else wanted}: measure it, or choose the domains they share'
            )
    with_tokens = [name for name, model in zip(names, models) if model.get('tokens') is not None]
    if with_tokens and len(with_tokens) < len(models):
        without = next(name for name in names if name not in with_tokens)
        raise ValueError(
            f'{where}: {without} has no "tokens" but {with_tokens[0]} has; give them for every model, or '
            f'for none where all were trained on the same number'
        )
    params = np.array([positive_number(m['params'], f'{where}: {n}: params') for n, m in zip(names, models)])
    tokens = None
    if with_tokens:
        tokens = np.array([positive_number(m['tokens'], f'{where}: {n}: tokens') for n, m in zip(names, models)])
    losses = {
        domain: np.array(
            [positive_number(m['losses'][domain], f'{where}: {n}: loss of {domain!r}') for n, m in zip(names, models)]
        )
        for domain in wanted
    }
    return Points(params, tokens, losses, names)


def _number(text: str, what: str) -> float:
    try:
        return positive_number(float(text), what)
    except ValueError as error:
        raise ValueError(f'{what} must be a positive number, got {text!r}') from error


@contextlib.contextmanager
def _open_csv(path: Path) -> Iterator[TextIO]:
    """The file for the csv module. Raises ValueError where there is none, or it is no text."""
    if not path.is_file():
        raise ValueError(f'{path}: no such file')
    try:
        with path.open(newline='', encoding='utf-8') as file:
            yield file
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'{path}: not a CSV ({error})') from error


def _models_from_csv(path: Path) -> list[dict]:
    with _open_csv(path) as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        columns = [(column or '').strip() for column in rows.fieldnames or []]
        if 'params' not in columns or len(set(columns)) < len(columns):
            raise ValueError(
                f'{path}: the first line must name distinct columns: params, optional tokens and name, '
                f'and one per domain; got {columns}'
            )
        rows.fieldnames = columns
        models = []
        for number, row in enumerate(rows, 2):
            where = f'{path}, line {number}'
            if None in row or None in row.values():
                raise ValueError(f'{where}: expected {len(columns)} values, one per column of {columns}')
            model = {'params': _number(row['params'], f'{where}: params'), 'name': row.get('name') or f'line {number}'}
            if 'tokens' in columns and row['tokens'].strip():
                model['tokens'] = _number(row['tokens'], f'{where}: tokens')
            model['losses'] = {
                column: _number(row[column], f'{where}: loss of {column!r}')
                for column in columns
                if column not in ('params', 'tokens', 'name', 'comment')
            }
            models.append(model)
    return models


def read_points(paths: Sequence[str | Path], domains: Sequence[str] | None = None) -> Points:
    """Reads one or more POINTS files, JSON or CSV by their ending; the models of all files are taken together.

    The REF.json that ``measure`` writes for one model also holds its point and is read in the same way.

    Raises:
        ValueError: As :func:`points_from_models`, a file that cannot be read, or two models with the same parameters,
            tokens and losses.
    """
    models, files = [], []
    for path in map(Path, paths):
        if path.suffix.lower() == '.csv':
            models += _models_from_csv(path)
        else:
            content = read_json(path)
            if not isinstance(content.get('models'), list):
                raise ValueError(
                    f'{path}: expected {{"models": [{{"params": ..., "losses": {{...}}}}, ...]}}, '
                    f'got the fields {sorted(content)}'
                )
            models += content['models']
        files += [path] * (len(models) - len(files))
    points = points_from_models(models, ', '.join(map(str, paths)), domains)
    columns = [points.params, *([] if points.tokens is None else [points.tokens]), *points.losses.values()]
    labels = [f'{file}: {name}' for file, name in zip(files, points.names)]
    refuse_repeated(zip(*(column.tolist() for column in columns)), labels, 'model')
    return points


def read_curve_csv(path: str | Path) -> list[list[float]]:
    """A loss curve from a CSV with the columns ``tokens`` and ``loss`` (others are ignored): [[tokens, loss], ...].

    Rows with an empty loss are left out, because a table of several metrics has them between two evaluations.

    Raises:
        ValueError: No such file or columns, or a value that is not a positive number.
    """
    with _open_csv(Path(path)) as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        rows.fieldnames = [(column or '').strip() for column in rows.fieldnames or []]
        if not {'tokens', 'loss'} <= set(rows.fieldnames):
            raise ValueError(f'{path}: expected columns named tokens and loss, got {rows.fieldnames}')
        return [
            [
                _number(row['tokens'] or '', f'{path}, line {number}: tokens'),
                _number(row['loss'], f'{path}, line {number}: loss'),
            ]
            for number, row in enumerate(rows, 2)
            if (row['loss'] or '').strip()
        ]


def check_run(row: object, where: str, folder: Path = Path()) -> Run:
    """One entry of RUNS.json as a :class:`Run`; paths in it are relative to ``folder``.

    An entry with ``log`` is one of this suite's runs: see :func:`~llmshearing.scaling.run_logs.row_of_log`.

    Raises:
        ValueError: A missing, unknown, negative or non-numeric field, a pruning rate outside (0, 1), or a curve whose
            tokens do not increase.
    """
    origin = where
    if isinstance(row, dict) and 'log' in row:
        from llmshearing.scaling.run_logs import row_of_log  # which builds on this file

        log, row = row['log'], row_of_log(row, where, folder)
        origin = str((folder / log).resolve())
    _check_fields(row, RUN_FIELDS, ('params_before', 'pruning_rate', 'source_loss', 'curve'), where)
    name = str(row.get('name', where.rsplit(': ', 1)[-1]))
    rate = positive_number(row['pruning_rate'], f'{where}: pruning_rate')
    if rate >= 1:
        raise ValueError(
            f'{where}: pruning_rate is the fraction of the parameters removed, between 0 and 1; got {rate}'
            + (f', did you mean {rate / 100:g}?' if 1 < rate < 100 else '')
        )
    curve = row['curve']
    if isinstance(curve, str):
        origin, curve = str((folder / curve).resolve()), read_curve_csv(folder / curve)
    if not isinstance(curve, list) or not curve or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in curve):
        raise ValueError(
            f'{where}: curve must be a non-empty list of [tokens, loss] pairs or the path of a CSV with these columns'
        )
    tokens = np.array(
        [positive_number(point[0], f'{where}: tokens of curve point {i}') for i, point in enumerate(curve, 1)]
    )
    losses = np.array(
        [positive_number(point[1], f'{where}: loss of curve point {i}') for i, point in enumerate(curve, 1)]
    )
    for i in np.flatnonzero(np.diff(tokens) <= 0):
        raise ValueError(
            f'{where}: tokens must increase along the curve, but point {i + 2} has {tokens[i + 1]:g} '
            f'after {tokens[i]:g}: sort the points, and give one curve per run'
        )
    return Run(
        positive_number(row['params_before'], f'{where}: params_before'),
        rate,
        positive_number(row['source_loss'], f'{where}: source_loss'),
        tokens,
        losses,
        name,
        origin,
    )


def read_runs(path: str | Path) -> list[Run]:
    """Reads RUNS.json. Raises ValueError as :func:`check_run`, or where the file has no list of runs."""
    path = Path(path)
    content = read_json(path)
    runs = content.get('runs')
    if not isinstance(runs, list) or not runs:
        raise ValueError(
            f'{path}: expected {{"runs": [...]}} with one object per run, which has the fields '
            f'params_before, pruning_rate, source_loss and curve; got the fields {sorted(content)}'
        )
    return [check_run(row, f'{path}: run {number}', path.parent) for number, row in enumerate(runs, 1)]
