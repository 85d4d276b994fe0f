"""POINTS: measured losses of several models of one family, which a law of the model size is fitted to.

POINTS.json: ``{"models": [{"params": 6738415616, "tokens": 2e12, "name": "7b", "losses": {"cc": 1.75}}]}``; ``tokens``
and ``name`` are optional. POINTS.csv: one row per model, columns ``params``, optional ``tokens`` and ``name``, every
other column a domain. Everything is checked before any fit, so that a fit never has to explain bad data. Unknown fields
are an error; free text goes into ``name`` and ``comment``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmshearing.scaling.fields import check_fields, csv_number, open_csv, positive_number, read_json, refuse_repeated

__all__ = ['Points', 'points_from_models', 'read_points']

MODEL_FIELDS = {'params', 'tokens', 'losses', 'name', 'comment', 'evaluation'}


@dataclass(frozen=True)
class Points:
    """Measured losses of several models of one family.

    Args:
        params (np.ndarray): [models] parameter counts.
        tokens (np.ndarray | None): [models] training tokens, or None where the models do not say.
        losses (dict[str, np.ndarray]): Domain name to [models] mean next-token cross-entropy in nats.
        names (list[str]): [models] what to call each model in messages.
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


def points_from_models(models: object, where: str, domains: Sequence[str] | None = None) -> Points:
    """Checks a list of models as in POINTS.json.

    Args:
        models (object): The list under ``models``.
        where (str): Start of every message, such as the file name.
        domains (Sequence[str] | None): Only these domains; all by default.

    Raises:
        ValueError: No models, a missing, unknown, negative or non-numeric field, models with different domains, or a
            wanted domain that no model has.
    """
    if not isinstance(models, list) or not models:
        raise ValueError(f'{where}: expected a non-empty list under "models", got {models!r}')
    names = []
    for number, model in enumerate(models, 1):
        check_fields(model, MODEL_FIELDS, ('params', 'losses'), f'{where}: model {number}')
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
    needed = known if domains is None else wanted
    for name, model in zip(names, models):
        missing = [domain for domain in needed if domain not in model['losses']]
        if missing:
            raise ValueError(
                f'{where}: {name} has no loss for domain {missing[0]!r}; every model needs one for each '
                f'of {needed}: measure it, or choose the domains they share'
            )
    _check_evaluations(models, names, wanted, where)
    with_tokens = [name for name, model in zip(names, models) if model.get('tokens') is not None]
    if with_tokens and len(with_tokens) < len(models):
        without = next(name for name, model in zip(names, models) if model.get('tokens') is None)
        raise ValueError(
            f'{where}: {without} has no "tokens" but {with_tokens[0]} has; give them for every model, or '
            f'for none where all were trained on the same number'
        )

    def numbers(what: str, values: Iterable[object]) -> np.ndarray:
        return np.array([positive_number(value, f'{where}: {name}: {what}') for name, value in zip(names, values)])

    params = numbers('params', (model['params'] for model in models))
    tokens = numbers('tokens', (model['tokens'] for model in models)) if with_tokens else None
    losses = {
        domain: numbers(f'loss of {domain!r}', (model['losses'][domain] for model in models)) for domain in wanted
    }
    return Points(params, tokens, losses, names)


def _check_evaluations(models: Sequence[dict], names: Sequence[str], domains: Sequence[str], where: str) -> None:
    """Losses on other text cannot be compared; ``measure`` notes how much there was of each domain."""
    for domain in domains:
        noted = {
            name: (model['evaluation'].get(domain) or {}).get('tokens')
            for name, model in zip(names, models)
            if isinstance(model.get('evaluation'), dict)
        }
        sizes: dict[int, str] = {}
        for name, tokens in noted.items():
            if tokens is not None:
                sizes.setdefault(tokens, name)
        if len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise ValueError(
                f'{where}: {first} was measured on {one} tokens of {domain!r} and {second} on {other}; measure all '
                'models on the same data, with the same tokenizer and --max-sequences'
            )


def _models_from_csv(path: Path) -> list[dict]:
    with open_csv(path) as rows:
        columns = list(rows.fieldnames or ())
        if 'params' not in columns or len(set(columns)) < len(columns):
            raise ValueError(
                f'{path}: the first line must name distinct columns: params, optional tokens and name, '
                f'and one per domain; got {columns}'
            )
        models = []
        for number, row in enumerate(rows, 2):
            where = f'{path}, line {number}'
            if None in row or None in row.values():
                raise ValueError(f'{where}: expected {len(columns)} values, one per column of {columns}')
            model = {
                'params': csv_number(row['params'], f'{where}: params'),
                'name': row.get('name') or f'line {number}',
            }
            if 'tokens' in columns and row['tokens'].strip():
                model['tokens'] = csv_number(row['tokens'], f'{where}: tokens')
            model['losses'] = {
                column: csv_number(row[column], f'{where}: loss of {column!r}')
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
