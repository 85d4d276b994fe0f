"""Curves of loss by tokens after pruning, as RUNS.json writes them out, which the P2 law is fitted to.

``{"runs": [{"params_before": N0, "pruning_rate": rho, "source_loss": L0, "name": "a", "curve": [[tokens, loss]]}]}``;
``curve`` may also be the path of a CSV with columns tokens, loss. Entries that name a log of this suite are turned into
such rows by :mod:`llmshearing.scaling.run_logs`, which also reads the whole file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.scaling.fields import check_fields, csv_number, open_csv, positive_number, removed_fraction

__all__ = ['Curve', 'parse_curve', 'read_curve_csv']

CURVE_FIELDS = {'params_before', 'pruning_rate', 'source_loss', 'curve', 'name', 'comment'}


@dataclass(frozen=True)
class Curve:
    """Loss of one run after pruning by the tokens it has seen.

    Args:
        params_before (float): Parameters before pruning, N0.
        pruning_rate (float): Fraction of the parameters removed, rho in (0, 1).
        source_loss (float): Loss of the unpruned model on the same evaluation data, L0, in nats.
        tokens (np.ndarray): [points] post-training tokens seen, increasing and positive.
        losses (np.ndarray): [points] evaluation loss at these tokens, in nats.
        name (str): What to call the run in messages.
        origin (str): The file that the curve is from, or where in a file it is written out; empty if it is from none.
        vocabulary (str | None): Hash of the tokens that losses are per; None where nobody notes it.
    """

    params_before: float
    pruning_rate: float
    source_loss: float
    tokens: np.ndarray
    losses: np.ndarray
    name: str
    origin: str = ''
    vocabulary: str | None = None


def read_curve_csv(path: str | Path) -> list[list[float]]:
    """A loss curve from a CSV with the columns ``tokens`` and ``loss`` (others are ignored): [[tokens, loss], ...].

    Rows with an empty loss are left out, because a table of several metrics has them between two evaluations.

    Raises:
        ValueError: No such file or columns, or a value that is not a positive number.
    """
    with open_csv(Path(path)) as rows:
        if not {'tokens', 'loss'} <= set(rows.fieldnames or ()):
            raise ValueError(f'{path}: expected columns named tokens and loss, got {rows.fieldnames}')
        return [
            [
                csv_number(row['tokens'] or '', f'{path}, line {number}: tokens'),
                csv_number(row['loss'], f'{path}, line {number}: loss'),
            ]
            for number, row in enumerate(rows, 2)
            if (row['loss'] or '').strip()
        ]


def parse_curve(row: Any, where: str, folder: Path = Path(), origin: str = '') -> Curve:
    """One entry of RUNS.json as a :class:`Curve`; paths in it are relative to ``folder``.

    Args:
        row (Any): The entry, with everything written out.
        where (str): Start of every message.
        folder (Path): Of the file with the row.
        origin (str): The file that the curve is from; default: ``where``, or the CSV that the entry names.

    Raises:
        ValueError: A missing, unknown, negative or non-numeric field, a pruning rate outside (0, 1), or a curve whose
            tokens do not increase.
    """
    check_fields(row, CURVE_FIELDS, ('params_before', 'pruning_rate', 'source_loss', 'curve'), where)
    name = str(row.get('name', where.rsplit(': ', 1)[-1]))
    curve = row['curve']
    if isinstance(curve, str):
        origin, curve = str((folder / curve).resolve()), read_curve_csv(folder / curve)
    if not isinstance(curve, list) or not curve or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in curve):
        raise ValueError(
            f'{where}: curve must be a non-empty list of [tokens, loss] pairs or the path of a CSV with these columns'
        )
    tokens, losses = (
        np.array([positive_number(point[i], f'{where}: {what} of curve point {n}') for n, point in enumerate(curve, 1)])
        for i, what in enumerate(('tokens', 'loss'))
    )
    for i in np.flatnonzero(np.diff(tokens) <= 0):
        raise ValueError(
            f'{where}: tokens must increase along the curve, but point {i + 2} has {tokens[i + 1]:g} '
            f'after {tokens[i]:g}: sort the points, and give one curve per run'
        )
    return Curve(
        positive_number(row['params_before'], f'{where}: params_before'),
        removed_fraction(row['pruning_rate'], f'{where}: pruning_rate'),
        positive_number(row['source_loss'], f'{where}: source_loss'),
        tokens,
        losses,
        name,
        origin or where,
    )
