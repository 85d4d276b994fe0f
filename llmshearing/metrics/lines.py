"""The one reader of what the ``metrics_file`` logger writes; without torch, so that a report is there in seconds.

A file holds every start of a run one after another: a resumed run goes on from a checkpoint that is behind the last
line, and one that begins anew at batch 0 appends as well. Within one start the batches never fall, so a line that is
behind the highest batch so far begins a new start, and what was logged ahead of it belongs to a past that the run went
back on. The decision here: that past is dropped, or a report would show it as the present until the new start has
passed it. What was logged at the very batch of the new start is kept, since the evaluation before a checkpoint is not
repeated after it; but before batch 0 there is nothing, so a start there drops everything.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

__all__ = ['read_metrics', 'read_metric_lines']

log = logging.getLogger(__name__)


def read_metric_lines(path: Path) -> tuple[dict[str, dict[int, float]], int]:
    """Reads a metrics file, whole, resumed, torn by a kill or in the middle of being written.

    Where a batch was logged more than once the last value counts. Values that are not finite stay.

    Returns:
        tuple: Value by batch, in order of batches, by metric; and the number of lines that could not be read.

    Raises:
        ValueError: No such file, or not a single readable value in it.
    """
    if not path.is_file():
        raise ValueError(f'{path}: no such file; expected what the metrics_file logger writes')
    values: dict[str, dict[int, float]] = {}
    broken, highest = 0, 0
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            entry = json.loads(line)
            batch = int(entry['batch'])
            numbers = {name: float(value) for name, value in entry.items() if name != 'batch'}
        except (ValueError, TypeError, KeyError, OverflowError):  # the last: an infinite batch, a number beyond floats
            broken += 1
            continue
        if batch < highest:
            values = _until(values, batch) if batch > 0 else {}
        highest = batch
        for name, value in numbers.items():
            values.setdefault(name, {})[batch] = value
    if not values:
        raise ValueError(
            f'{path}: no metrics in it; expected lines {{"batch": 1, "name": value}} as the metrics_file '
            'logger writes them (has the run finished a batch?)'
        )
    return {name: dict(sorted(points.items())) for name, points in values.items()}, broken


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """Value by batch, by metric, as :func:`read_metric_lines`; lines that could not be read are said in a warning."""
    metrics, broken = read_metric_lines(Path(path))
    if broken:
        log.warning('%s: lines that could not be read, as after a kill, and were left out: %d', path, broken)
    return metrics


def _until(values: dict[str, dict[int, float]], last: int) -> dict[str, dict[int, float]]:
    """What was logged up to a batch; a metric of which nothing is left goes."""
    kept = {name: {batch: value for batch, value in points.items() if batch <= last} for name, points in values.items()}
    return {name: points for name, points in kept.items() if points}
