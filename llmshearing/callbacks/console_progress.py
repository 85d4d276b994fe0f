"""``console_progress``: one line per interval on the console, with what a person looks for.

Composer's console logger writes every metric on a line of its own, some twenty a batch. Here a line has the batch of
the total, the loss, tokens per second, the time left and, while pruning, what is kept against what is to be kept by
now; an evaluation is one line with the losses of all its sets. Other metrics are added by name. All of them are in the
``metrics_file`` anyway.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TextIO, cast

from composer.core import State, TimeUnit
from composer.loggers import ConsoleLogger, Logger
from composer.utils import dist

from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.config.times import check_time
from llmshearing.metrics.names import EVAL_LOSS_METRIC, PRUNING, TRAIN_LOSS, label_of

__all__ = ['ConsoleProgress']


class ConsoleProgress(ConsoleLogger):
    """Writes one line per interval to the standard error stream of rank 0.

    Args:
        interval (str): How often, a time in batches or epochs. Default: ``'10ba'``.
        metrics (Sequence[str] | None): Further metrics at the end of each line, by name. Default: none.

    Raises:
        ValueError: If ``interval`` is no time in batches or epochs.
    """

    def __init__(self, interval: str = '10ba', metrics: Sequence[str] | None = None) -> None:
        check_time('interval', interval, above_zero=True, units=('ep', 'ba'))
        super().__init__(log_interval=interval, stream='stderr')
        self.metrics = list(metrics or ())
        self.hparams_already_logged_to_console = True  # the configuration is printed by log_config
        self._start = self._last = (0.0, 0, 0.0)

    def fit_start(self, state: State, logger: Logger) -> None:
        self._start = self._last = _clock(state)

    def eval_start(self, state: State, logger: Logger) -> None:
        """Nothing: an evaluation is told when it is over."""

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """Nothing, as above."""

    def eval_end(self, state: State, logger: Logger) -> None:
        """Nothing, as above."""

    def eval_after_all(self, state: State, logger: Logger) -> None:
        labels = {name: label_of(name) for name in self.logged_metrics}
        losses = {label: float(self.logged_metrics[name]) for name, label in labels.items() if label is not None}
        if losses:
            self._write(
                f'{_progress(state)}  evaluated: ' + ', '.join(f'{name} {loss:.4f}' for name, loss in losses.items())
            )
        self.logged_metrics = {
            name: value for name, value in self.logged_metrics.items() if EVAL_LOSS_METRIC not in name
        }

    def fit_end(self, state: State, logger: Logger) -> None:
        super().fit_end(state, logger)
        exports = [callback for callback in state.callbacks if isinstance(callback, ExportPruned)]
        for export in exports:
            if export.difference is not None:
                self._write(
                    f'exported {export.folder}: opened by transformers, logits within {export.difference:.2g} of the '
                    'masked model'
                )
        seconds = _clock(state)[0] - self._start[0]
        if not exports:
            self._write(f'{_progress(state)}  done in {_duration(seconds)}')

    def log_to_console(self, data: dict[str, Any], state: State, prefix: str = '', is_train: bool = True) -> None:
        """The line of an interval, from what was logged since the last one; extends Composer's hook."""
        now = _clock(state)
        (began, _, share_began), (before, tokens_before, _) = self._start, self._last
        self._last = now
        parts = [_progress(state)]
        if TRAIN_LOSS in data:
            parts.append(f'loss {float(data[TRAIN_LOSS]):.4f}')
        if now[0] > before and now[1] > tokens_before:
            parts.append(f'{(now[1] - tokens_before) / (now[0] - before):,.0f} tokens/s')
        if now[2] > share_began:
            parts.append(f'{_duration((now[0] - began) * (1 - now[2]) / (now[2] - share_began))} left')
        kept = [
            f'{axis} {float(data[f"{PRUNING}{axis}/expected"]):.4g} ({float(data[f"{PRUNING}{axis}/target"]):.4g})'
            for axis in dict.fromkeys(name.split('/')[1] for name in data if name.startswith(PRUNING))
            if f'{PRUNING}{axis}/expected' in data and f'{PRUNING}{axis}/target' in data
        ]
        if kept:
            parts.append(f'kept (to keep): {", ".join(kept)}')
        parts += [f'{name} {float(data[name]):.5g}' for name in self.metrics if name in data]
        self._write('  '.join(parts))

    def _write(self, line: str) -> None:
        if dist.get_global_rank() == 0:
            stream = cast(TextIO, self.stream)  # the name that was given stands for one since
            stream.write(f'{line}\n')
            stream.flush()


def _clock(state: State) -> tuple[float, int, float]:
    """Seconds, tokens trained on, and the share of the run that is done."""
    elapsed = state.get_elapsed_duration()
    return time.monotonic(), state.timestamp.token.value, 0.0 if elapsed is None else min(float(elapsed.value), 1.0)


def _progress(state: State) -> str:
    """``[ 12/480 batches]``, in the unit of the run's length."""
    unit = TimeUnit.BATCH if state.max_duration is None else state.max_duration.unit
    total = '' if state.max_duration is None else f'/{state.max_duration.value:,}'
    names = {TimeUnit.BATCH: 'batches', TimeUnit.EPOCH: 'epochs', TimeUnit.TOKEN: 'tokens', TimeUnit.SAMPLE: 'samples'}
    if unit not in names:
        return f'[{state.timestamp.batch.value:,} batches]'
    return f'[{state.timestamp.get(unit).value:>{max(len(total) - 1, 1)},}{total} {names[unit]}]'


def _duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
