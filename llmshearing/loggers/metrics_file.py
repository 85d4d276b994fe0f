"""``metrics_file``: every metric of a run in one JSON-lines file, for reports and for anyone with a text editor.

One line for each time something is logged: ``{"batch": 12, "loss/train/total": 3.4, ...}``. A resumed run
appends; readers take the last value of a metric at a batch, so lines that were written again after a resume
replace the older ones.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import torch
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

__all__ = ['MetricsFile', 'read_metrics']


class MetricsFile(LoggerDestination):
    """Writes metrics to a file on rank 0.

    Args:
        path (str): File to append to; its folder is made.
    """

    def __init__(self, path: str):
        self.path = Path(path)

    def init(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def log_metrics(self, metrics: dict[str, Any], step: Optional[int] = None) -> None:
        if dist.get_global_rank() != 0:
            return
        numbers = {
            name: float(value) for name, value in metrics.items() if isinstance(value, (int, float, torch.Tensor))
        }
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps({'batch': step, **numbers}) + '\n')


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """Reads a file of :class:`MetricsFile`.

    Returns:
        dict[str, dict[int, float]]: Value by batch, in order of batches, by metric.
    """
    metrics: dict[str, dict[int, float]] = {}
    for line in Path(path).read_text(encoding='utf-8').splitlines():
        entry = json.loads(line)
        batch = entry.pop('batch')
        for name, value in entry.items():
            metrics.setdefault(name, {})[batch] = value
    return {name: dict(sorted(values.items())) for name, values in metrics.items()}
