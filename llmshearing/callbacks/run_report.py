"""``run_report``: keeps a page about the run up to date while it trains (see ``llmshearing/reports``).

Two decisions. What the metrics do not say (which units the masks keep, the sizes of source and result, settings, how
much of the run has passed, where the result is) rank 0 notes in a small file beside them (``run_note.py``). And the
page is drawn by a process of its own (``page_process.py``), so training goes on meanwhile and needs nothing that draws.
The page is made from files alone, so a resumed run goes on with it and nothing of it needs to be in a checkpoint.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.callbacks.page_process import PageProcess
from llmshearing.callbacks.run_note import model_sizes, run_note, tokenizer_note
from llmshearing.metrics.logger import metrics_of
from llmshearing.metrics.pruning_record import RECORD_NAME, read_content
from llmshearing.metrics.run_log import report_folder, state_path
from llmshearing.utils.checks import check_number
from llmshearing.utils.files import dump_json

__all__ = ['RunReport']

log = logging.getLogger(__name__)

SILENCE = 1800.0  # seconds without a note, at least, after which a page says that its run may have been killed


class RunReport(Callback):
    """Writes a report page of the run, again and again. Needs the logger ``metrics_file``.

    Args:
        folder (str | None): Where page and pictures go. Default: ``<name>_report`` beside ``<name>_metrics.jsonl``.
        pruned (str | None): Folder with the ``pruning.json`` of the model that this run continues from, for the
            source's sizes. Default: ``None``, this run does not continue from a pruned model.
        law (str | None): LAW.json of ``llmshearing budget fit``, to project the end. Default: the one beside the
            metrics, if any.
        min_seconds (float): The page is made anew after an evaluation, but not sooner than this after the last time.
            Default: ``60``.
        max_seconds (float): It is made anew after this time even without an evaluation. Default: ``600``.

    Raises:
        ValueError: For times out of order here; at the start of the run if there is no ``metrics_file`` logger, no
            ``pruning.json`` of this release in ``pruned``, or no file ``law``.
    """

    def __init__(
        self,
        folder: str | None = None,
        pruned: str | None = None,
        law: str | None = None,
        min_seconds: float = 60.0,
        max_seconds: float = 600.0,
    ):
        check_number('min_seconds', min_seconds, 0)
        check_number('max_seconds', max_seconds, min_seconds)
        self.folder = None if folder is None else Path(folder)
        self.pruned = None if pruned is None else Path(pruned)
        self.law = None if law is None else Path(law)
        self.min_seconds, self.max_seconds = min_seconds, max_seconds
        self._metrics: Path  # known when the run begins
        self._page: PageProcess  # likewise
        self._facts: dict[str, Any] = {}
        self._evaluated = self._is_over = False
        self._last = self._began = 0.0
        self._read = -1  # bytes of the metrics file at the last refresh

    def init(self, state: State, logger: Logger) -> None:
        metrics = metrics_of(logger)
        if metrics is None:
            raise ValueError(
                'run_report reads what the logger metrics_file writes; add `metrics_file: {path: ...}` under `loggers`.'
            )
        if self.pruned is not None and not (self.pruned / RECORD_NAME).is_file():
            raise ValueError(
                f'run_report: there is no pruning.json in pruned={str(self.pruned)!r}; give the folder that'
                ' export_pruned wrote.'
            )
        if self.pruned is not None:
            read_content(self.pruned)
        if self.law is not None and not self.law.is_file():
            raise ValueError(f'run_report: there is no file law={str(self.law)!r}; `llmshearing budget fit` writes it.')
        self._metrics = metrics.resolve()
        self.folder = self.folder or report_folder(self._metrics)
        self._page = PageProcess(self._metrics, self.folder, self.law)

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            self._facts = model_sizes(state, self.pruned) | {'tokenizer': tokenizer_note(state)}
            self._last, self._began = time.monotonic(), time.time()
            try:
                self._note(state, self._due())  # so that what is planned is known of a run that is killed early, too
            except OSError as error:
                log.warning('run_report could not note how the run stands: %s', error)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._evaluated = True

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        # Not in eval_after_all: other callbacks may still have something to log there.
        waited = time.monotonic() - self._last
        if waited >= (self.min_seconds if self._evaluated else self.max_seconds):
            self._refresh(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        self._is_over = True
        self._refresh(state)

    def close(self, state: State, logger: Logger) -> None:
        """Makes the last page, with what other callbacks have written and logged at the end."""
        if self._facts and self._metrics.is_file():  # not if the run was refused before anything was logged
            self._page.finish()
            if self._metrics.stat().st_size != self._read or not self._is_over:
                self._refresh(state, closing=True)
                self._page.finish()

    def _refresh(self, state: State, closing: bool = False) -> None:
        """Notes the state and starts drawing; if the last page is still being drawn, the next occasion will do."""
        if dist.get_global_rank() != 0 or self._page.is_drawing:
            return
        self._page.hear()
        due = None if closing else self._due()
        self._last, self._evaluated = time.monotonic(), False
        try:
            self._read = self._metrics.stat().st_size
            self._note(state, due)
            self._page.draw()
        except OSError as error:  # a full disk, no memory for a process: training needs neither
            log.warning('run_report could not refresh the page: %s', error)

    def _due(self) -> int:
        """Unix time by which the next note will have been written."""
        apart = max(self.max_seconds, time.monotonic() - self._last)
        return round(time.time() + max(SILENCE, 3 * apart))

    def _note(self, state: State, due: int | None) -> None:
        note = run_note(state, self._facts, self._began, due)
        dump_json(state_path(self._metrics), note, indent=None, end='', separators=(',', ':'))
