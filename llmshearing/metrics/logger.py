"""``metrics_file``: every metric of a run in one JSON-lines file, for reports and for anyone with a text editor.

One line for each time something is logged: ``{"batch": 12, "loss/train/total": 3.4, ...}``. Every start of a run
appends, resumed or anew: nothing is lost that somebody may still want to look up. Which lines count then is decided in
one place, :mod:`llmshearing.metrics.lines`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from llmshearing.utils.paths import local_destination

__all__ = ['MetricsFile', 'metrics_of']


class MetricsFile(LoggerDestination):
    """Writes metrics to a file on rank 0.

    Args:
        path (str): File to append to; its folder is made. A half line that a kill left at its end is ended first, so
            that the next one can be read.

    Raises:
        ValueError: If ``path`` is a remote address, or no file can be written there.
    """

    def __init__(self, path: str):
        self.path = local_destination('metrics_file.path', path, 'file')

    def init(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file() and self.path.stat().st_size:
                with self.path.open('r+b') as file:
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b'\n':
                        file.write(b'\n')

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if dist.get_global_rank() != 0:
            return
        numbers = {
            name: float(value) for name, value in metrics.items() if isinstance(value, (int, float, torch.Tensor))
        }
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps({'batch': step, **numbers}) + '\n')


def metrics_of(logger: Logger) -> Path | None:
    """The file of a run's metrics, for rank 0 to read; None for a run without ``metrics_file``."""
    files = (destination.path for destination in logger.destinations if isinstance(destination, MetricsFile))
    return next(files, None)
