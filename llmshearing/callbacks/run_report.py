"""``run_report``: keeps a page about the run up to date while it trains (see ``llmshearing/reports``).

Two decisions. What the metrics do not say (which units the masks keep, the sizes of source and result, settings, how
much of the run has passed, where the result is) rank 0 notes in a small file beside them. And the page is drawn by a
process of its own, the command ``llmshearing report``: training goes on meanwhile, loads no drawing or fitting library
for it, and cannot fail from whatever is wrong with a picture. What that process complains of is a warning in the log.
The page is made from files alone, so a resumed run goes on with it and nothing of it needs to be in a checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from llmfoundry.callbacks.hf_checkpointer import HuggingFaceCheckpointer

from llmshearing.algorithms.targeted_pruning import TargetedPruning, find_pruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.compat.composer import unwrapped
from llmshearing.masks.record import record_of
from llmshearing.metrics.logger import MetricsFile
from llmshearing.metrics.run_log import STATE_VERSION, report_folder, state_path
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.shapes import ModelShape, shape_of
from llmshearing.models.units import kept_units
from llmshearing.reports.kept import binned
from llmshearing.utils.files import write_atomically

__all__ = ['RunReport']

log = logging.getLogger(__name__)

LAST_SECONDS = 120  # how long the end of a run waits for its last page


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
            ``pruning.json`` in ``pruned``, or no file ``law``.
    """

    def __init__(
        self,
        folder: str | None = None,
        pruned: str | None = None,
        law: str | None = None,
        min_seconds: float = 60.0,
        max_seconds: float = 600.0,
    ):
        if not 0 <= min_seconds <= max_seconds:
            raise ValueError(
                f'min_seconds={min_seconds} and max_seconds={max_seconds} must not be negative, the second not below'
                ' the first.'
            )
        self.folder = None if folder is None else Path(folder)
        self.pruned = None if pruned is None else Path(pruned)
        self.law = None if law is None else Path(law)
        self.min_seconds, self.max_seconds = min_seconds, max_seconds
        self._metrics: Path  # known when the run begins
        self._models: dict[str, Any] = {}
        self._evaluated = False
        self._last = self._began = 0.0
        self._read = -1  # bytes of the metrics file at the last refresh
        self._drawing: subprocess.Popen | None = None
        self._complaints: IO[bytes] | None = None

    def init(self, state: State, logger: Logger) -> None:
        files = [destination for destination in logger.destinations if isinstance(destination, MetricsFile)]
        if not files:
            raise ValueError(
                'run_report reads what the logger metrics_file writes; add `metrics_file: {path: ...}` under `loggers`.'
            )
        if self.pruned is not None and not (self.pruned / 'pruning.json').is_file():
            raise ValueError(
                f'run_report: there is no pruning.json in pruned={str(self.pruned)!r}; give the folder that'
                ' export_pruned wrote.'
            )
        if self.law is not None and not self.law.is_file():
            raise ValueError(f'run_report: there is no file law={str(self.law)!r}; `llmshearing budget fit` writes it.')
        self._metrics = files[0].path.resolve()
        self.folder = self.folder or report_folder(self._metrics)

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            self._models = _models(state, self.pruned)
            self._last, self._began = time.monotonic(), time.time()

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._evaluated = True

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        # Not in eval_after_all: other callbacks may still have something to log there.
        waited = time.monotonic() - self._last
        if waited >= (self.min_seconds if self._evaluated else self.max_seconds):
            self._refresh(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        self._refresh(state)

    def close(self, state: State, logger: Logger) -> None:
        """Makes the last page, with what other callbacks have written and logged at the end."""
        if self._models and self._metrics.is_file():  # not if the run was refused before anything was logged
            self._finish()
            if self._metrics.stat().st_size != self._read:
                self._refresh(state)
                self._finish()

    def _refresh(self, state: State) -> None:
        """Notes the state and starts drawing; if the last page is still being drawn, the next occasion will do."""
        if dist.get_global_rank() != 0 or (self._drawing is not None and self._drawing.poll() is None):
            return
        self._hear()
        self._last, self._evaluated = time.monotonic(), False
        command = [sys.executable, '-m', 'llmshearing.cli', 'report', str(self._metrics)]
        command += ['--out', str(self.folder)]
        command += [] if self.law is None else ['--law', str(self.law)]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        try:
            self._read = self._metrics.stat().st_size
            note = json.dumps(_note(state, self._models, self._began), separators=(',', ':'))
            write_atomically(state_path(self._metrics), note)
            self._complaints = tempfile.TemporaryFile()
            self._drawing = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=self._complaints, env=environment
            )
        except OSError as error:  # a full disk, no memory for a process: training needs neither
            log.warning('run_report could not refresh the page: %s', error)

    def _finish(self) -> None:
        """Waits for the page that is being drawn."""
        if self._drawing is None:
            return
        try:
            self._drawing.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._drawing.kill()
            self._drawing.wait()
            log.warning('run_report gave up drawing the page after %d seconds.', LAST_SECONDS)
        self._hear()

    def _hear(self) -> None:
        """Passes on why the last page could not be drawn, if it could not."""
        if self._drawing is not None and self._drawing.returncode and self._complaints is not None:
            self._complaints.seek(0)
            text = self._complaints.read().decode('utf-8', errors='replace').strip()
            log.warning(
                'run_report could not draw the page; training is not affected. %s',
                text.splitlines()[-1] if text else '',
            )
        if self._complaints is not None:
            self._complaints.close()
        self._drawing = self._complaints = None


def _models(state: State, pruned: Path | None) -> dict[str, Any]:
    """Sizes of the model before (``source``) and after pruning (``result``), each None where that does not apply."""
    model = unwrapped(state)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        shape: ModelShape | None = shape_of(model.model.config)
    except (AttributeError, ValueError):  # not a Hugging Face decoder that we know the shape of
        shape = None
    own = {'parameters': parameters, 'shape': None if shape is None else shape.as_dict()}
    pruning = find_pruning(state)
    if pruning is not None:
        result = None
        if isinstance(pruning.target, ModelShape):
            count = count_parameters(layout_of(model.model.config), pruning.target).total
            result = {'parameters': int(count), 'shape': pruning.target.as_dict()}
        return {'source': own, 'result': result}
    if pruned is None:
        return {'source': None, 'result': own}
    record = json.loads((pruned / 'pruning.json').read_text(encoding='utf-8'))
    count = count_parameters(layout_of(model.model.config), ModelShape(**record['source_shape'])).total
    return {'source': {'parameters': int(count), 'shape': record['source_shape']}, 'result': own}


def _note(state: State, models: dict[str, Any], began: float) -> dict[str, Any]:
    """What the page needs besides the metrics, as plain types; ``began`` is when this process began to train."""
    elapsed, pruning, spent = state.get_elapsed_duration(), find_pruning(state), state.timestamp.total_wct
    return {
        'version': STATE_VERSION,
        'batch': state.timestamp.batch.value,
        'tokens': state.timestamp.token.value,
        'elapsed_share': None if elapsed is None else min(float(elapsed.value), 1.0),
        'max_duration': None if state.max_duration is None else state.max_duration.to_timestring(),
        'seconds': spent.total_seconds() or None,
        'noted': datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC'),
        'settings': _settings(state),
        'exported': _exported(state, began),
        **models,
        'pruning': None if pruning is None else _masks(pruning, state),
    }


def _settings(state: State) -> dict[str, Any]:
    """What a person asks of a run that is not in its numbers."""
    pruning = find_pruning(state)
    rates = [(type(one).__name__, one.param_groups[0]) for one in state.optimizers]
    settings = {
        'ranks': dist.get_world_size(),
        'precision': str(getattr(state.precision, 'value', state.precision)),
        'micro-batch per rank': state.device_train_microbatch_size,
        'seed': state.rank_zero_seed,
        'optimizer': ', '.join(f'{name}, lr {group.get("initial_lr", group["lr"]):g}' for name, group in rates),
        'mask learning': None if pruning is None else pruning.mask_learning,
        'algorithms': ', '.join(type(algorithm).__name__ for algorithm in state.algorithms),
    }
    settings |= {name: version(name) for name in ('torch', 'transformers', 'mosaicml')}
    return {name: value for name, value in settings.items() if value not in (None, '')}


def _exported(state: State, began: float) -> dict[str, str] | None:
    """Where the result is, once this process has written it: that of ``export_pruned``, or of ``hf_checkpointer``."""
    found: list[Path] = []
    for callback in state.callbacks:
        if isinstance(callback, ExportPruned):
            found += [callback.folder / 'config.json']
        elif isinstance(callback, HuggingFaceCheckpointer) and '://' not in callback.save_dir_format_str:
            found += Path(callback.save_dir_format_str).glob('huggingface/*/config.json')
    written = {path: path.stat().st_mtime for path in found if path.is_file()}
    last = max(written, key=written.__getitem__, default=None)
    return None if last is None or written[last] < began else {'folder': str(last.parent)}


def _masks(pruning: TargetedPruning, state: State) -> dict[str, Any]:
    """The pruning record if pruning ended now, and the masks as they are: in the Lagrangian way P(z > 0) of each unit.

    Values have three decimals; of the intermediate dimensions there are the means that a page can show.
    """
    units = kept_units(pruning.final_masks(), pruning.source)
    record = dataclasses.asdict(record_of(pruning, units, state.timestamp.batch.value, state.timestamp.token.value))
    del record['scores'], record['source_name'], record['shape']
    masks = {}
    for axis, kept in pruning.learner.expected_kept().items():
        values = kept.double().numpy()
        if axis == 'intermediate':
            values = binned(values)
        masks[axis] = values.round(3).tolist()
    return {**record, 'mask_values': masks}
