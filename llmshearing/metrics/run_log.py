"""A run as it stands: its metrics file and what lies beside it, read without torch, so that a report takes seconds.

The decision here: nothing but a metrics file is needed. Everything else (what the ``run_report`` callback notes beside
it, an exported folder's ``pruning.json``, reference losses) is looked for near it; what cannot be read is named in the
run's notes. A run that was killed may leave half a line in its metrics, so lines that cannot be read are counted, not
fatal; and notes from before a resume or a fresh start are not taken for the state of the run that goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.metrics import names
from llmshearing.metrics.lines import read_metric_lines
from llmshearing.metrics.pruning_record import RECORD_NAME, read_content
from llmshearing.utils.files import load_json

__all__ = [
    'NATS',
    'STATE_VERSION',
    'RunLog',
    'Series',
    'find_logs',
    'mean_loss',
    'report_folder',
    'read_object',
    'read_run',
    'read_series',
    'run_name',
    'state_path',
]

METRICS_SUFFIX = '_metrics.jsonl'
STATE_SUFFIX = '_run.json'
STATE_VERSION = 1
NATS = 'nats per token'
REFERENCES = 'reference_losses.json'
# The rest holds for every start.
PROGRESS_KEYS = ('batch', 'tokens', 'elapsed_share', 'seconds', 'closed', 'due', 'pruning', 'exported')
NUMBER = (int, float)
STATE_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(('batch', 'tokens', 'elapsed_share', 'seconds', 'due'), NUMBER),
    **dict.fromkeys(('max_duration', 'noted'), (str,)),
    'closed': (bool,),
    **dict.fromkeys(('source', 'result', 'pruning', 'exported', 'settings', 'references', 'tokenizer'), (dict,)),
}
RECORD_KINDS = {'source_shape': dict, 'target_shape': dict, 'axes': list, 'kept': dict}

Series = tuple[np.ndarray, np.ndarray]  # batches and values, float64 [points] each, by increasing batch


@dataclass(frozen=True)
class RunLog:
    """One stage of training: a metrics file and what lies beside it.

    Args:
        name (str): What to call it: the file's name without ``_metrics.jsonl``.
        path (Path): The metrics file.
        metrics (dict[str, Series]): Series by metric.
        state (dict[str, Any]): What ``run_report`` noted (:func:`state_path`); empty without the callback.
        pruning (dict[str, Any]): The pruning record: what was kept, counts per axis, shapes; empty where the run did
            not prune.
        exported (Path | None): Folder with the ``pruning.json`` that the record was read from; None where it was noted
            by the run.
        references (dict[str, float]): Reference loss by domain; empty where there are none.
        source_losses (dict[str, float]): Measured loss of the source by domain; empty where the file of references
            holds predictions.
        notes (tuple[str, ...]): What could not be read, for the reader of the page.
        loss_unit (str): What losses are in: nats per token, as they were logged, unless they were converted.
    """

    name: str
    path: Path
    metrics: dict[str, Series]
    state: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)
    exported: Path | None = None
    references: dict[str, float] = field(default_factory=dict)
    source_losses: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    loss_unit: str = NATS

    def series(self, name: str) -> Series | None:
        """A metric's series, or None where it was not logged."""
        return self.metrics.get(name)

    def last(self, name: str) -> float | None:
        """A metric's last value, or None where it was not logged."""
        return float(self.metrics[name][1][-1]) if name in self.metrics else None

    def names(self, prefix: str, suffix: str = '') -> list[str]:
        """The middle part of every metric's name that starts and ends so, in the order of the log."""
        return [
            name[len(prefix) : len(name) - len(suffix)]
            for name in self.metrics
            if name.startswith(prefix) and name.endswith(suffix) and len(name) > len(prefix) + len(suffix)
        ]

    @property
    def batches(self) -> int:
        """Batches trained so far."""
        return int(max(series[0][-1] for series in self.metrics.values()))

    @property
    def is_pruning(self) -> bool:
        """Whether this run learned masks."""
        return any(name.startswith(names.PRUNING) for name in self.metrics)

    def domain_losses(self) -> dict[str, Series]:
        """Evaluation loss by evaluator."""
        labels = self.names(*names.eval_loss_name('|').split('|'))
        return {label: self.metrics[names.eval_loss_name(label)] for label in labels}

    def tokens_at(self, batches: np.ndarray) -> np.ndarray | None:
        """Tokens trained on after so many batches, or None where the log does not tell.

        The count before each batch is logged when the batch begins, so that of the last batches is continued from the
        last two entries.
        """
        series = self.metrics.get(names.TOKENS)
        if series is None or len(series[0]) < 2:
            return None
        at, tokens = series
        per_batch = (tokens[-1] - tokens[-2]) / (at[-1] - at[-2])
        batches = np.asarray(batches, dtype=np.float64)
        return np.interp(batches, at, tokens) + np.maximum(batches - at[-1], 0) * per_batch


def mean_loss(losses: Mapping[str, Series]) -> Series | None:
    """Mean over the evaluators at every batch at which all were measured, each counting the same; None without any."""
    if not losses:
        return None
    shared = functools.reduce(np.intersect1d, (batches for batches, _ in losses.values()))
    if not len(shared):
        return None
    return shared, np.mean([values[np.isin(batches, shared)] for batches, values in losses.values()], axis=0)


def state_path(metrics_path: Path) -> Path:
    """Where ``run_report`` notes the state of the run with these metrics."""
    return metrics_path.with_name(run_name(metrics_path) + STATE_SUFFIX)


def run_name(metrics_path: Path) -> str:
    """The run's name: the file's, without its ending."""
    name = metrics_path.name
    return (name.removesuffix(METRICS_SUFFIX) if name.endswith(METRICS_SUFFIX) else metrics_path.stem) or 'run'


def report_folder(where: Path) -> Path:
    """Where the report about a metrics file, or a folder with some, goes by default: beside the metrics."""
    return where / 'run_report' if where.is_dir() else where.with_name(f'{run_name(where)}_report')


def read_series(path: Path) -> tuple[dict[str, Series], int]:
    """Reads a file of the ``metrics_file`` logger as series of the run as it stands.

    Returns:
        tuple: Series by metric, and the number of lines that could not be read.

    Raises:
        ValueError: As :func:`~llmshearing.metrics.lines.read_metric_lines`.
    """
    values, broken = read_metric_lines(path)
    return {
        name: (np.array([*points], dtype=np.float64), np.array([*points.values()], dtype=np.float64))
        for name, points in values.items()
    }, broken


def find_logs(where: str | Path) -> list[Path]:
    """The metrics files of a run, in the order in which they were begun.

    Args:
        where (str | Path): A metrics file, or a folder with files named ``*_metrics.jsonl`` or ``metrics.jsonl``.

    Raises:
        ValueError: There is none.
    """
    where = Path(where)
    if where.is_file():
        return [where]
    if not where.is_dir():
        raise ValueError(f'{where}: no such file or folder; give a metrics file or a folder with some')
    found = sorted(
        {*where.glob('*' + METRICS_SUFFIX), *where.glob('metrics.jsonl')},
        key=lambda path: (path.stat().st_mtime, path.name),
    )
    if not found:
        raise ValueError(
            f'{where}: no *{METRICS_SUFFIX} in it; add the logger metrics_file to the run, or name the file'
        )
    return found


def read_run(path: Path) -> RunLog:
    """Reads a metrics file and what lies beside it. Raises ValueError as :func:`read_series`."""
    metrics, broken = read_series(path)
    notes = []
    if broken:
        notes.append(
            f'{broken} line{"s" * (broken > 1)} of {path.name} could not be read and were left out, as after a '
            'run that was killed while it wrote'
        )
    run = RunLog(run_name(path), path, metrics)
    state = _state(run, notes)
    pruning, exported = state.get('pruning') or {}, None
    if run.is_pruning and not pruning:
        pruning, exported = _exported_record(run, notes)
    lacking = [key for key, kind in RECORD_KINDS.items() if pruning and not isinstance(pruning.get(key), kind)]
    if lacking:
        notes.append(f'the pruning record lacks {", ".join(lacking)} and was left out')
        pruning, exported = {}, None
    references, are_measured = _references(path.with_name(REFERENCES), notes)
    source_losses = references if are_measured else {}
    noted = {name: loss for name, loss in (state.get('references') or {}).items() if type(loss) in NUMBER}
    references = {**references, **noted, **_steered_by(metrics)}
    return RunLog(run.name, path, metrics, state, pruning, exported, references, source_losses, tuple(notes))


def _state(run: RunLog, notes: list[str]) -> dict[str, Any]:
    """What ``run_report`` noted of this start of the run."""
    path = state_path(run.path)
    state = read_object(path, notes)
    if state and state.get('version') != STATE_VERSION:
        notes.append(
            f'{path.name} is of version {state.get("version")}, this release reads {STATE_VERSION}; it was left out'
        )
        return {}
    wrong = [key for key, kinds in STATE_KINDS.items() if not isinstance(state.get(key), (*kinds, type(None)))]
    sized = (key for key in ('source', 'result') if isinstance(state.get(key), dict))
    wrong += [key for key in sized if not isinstance(state[key].get('parameters'), (*NUMBER, type(None)))]
    if wrong:
        listed = ', '.join(f'{key}={state[key]!r}' for key in wrong)
        notes.append(f'{path.name} holds {listed}, which run_report never writes; left out')
    left_out = set(wrong)
    if _is_ahead(state.get('batch'), run):
        notes.append(
            f'{path.name} is of batch {state["batch"]}, which the log has gone back on; the progress and '
            'the masks in it were left out'
        )
        left_out |= set(PROGRESS_KEYS)
    return {key: value for key, value in state.items() if key not in left_out}


def _is_ahead(batch: object, run: RunLog) -> bool:
    """Whether something was noted at a batch that the run has not come to, so by an earlier start of it.

    After a batch the count is one more than at the log's last line of it.
    """
    return isinstance(batch, NUMBER) and batch > run.batches + 1


def _exported_record(run: RunLog, notes: list[str]) -> tuple[dict[str, Any], Path | None]:
    """``pruning.json`` of the folder that a pruning run exported to, and the folder.

    None unless there is exactly one near its metrics that is not of an earlier start which had come further.
    """
    folder = run.path.parent
    found = sorted({*folder.glob(RECORD_NAME), *folder.glob(f'*/{RECORD_NAME}')})
    if len(found) > 1:
        notes.append(
            f"{len(found)} folders with a {RECORD_NAME} are beside the metrics, so none was taken for this run's"
        )
    if len(found) != 1:
        return {}, None
    try:
        record = read_content(found[0].parent)
    except ValueError as error:
        notes.append(f'{error} It was left out')
        return {}, None
    if _is_ahead(record.get('batches'), run):
        notes.append(
            f'{found[0].relative_to(folder)} is of batch {record["batches"]}, which the log has gone back on; it was '
            'left out'
        )
        return {}, None
    return record, found[0].parent


def _references(path: Path, notes: list[str]) -> tuple[dict[str, float], bool]:
    """Loss by domain from the file of references, and whether it was measured and not predicted for a size."""
    content = read_object(path, notes)
    references = content.get('reference_losses', {})
    if isinstance(references, dict) and all(type(loss) in NUMBER for loss in references.values()):
        return references, 'extrapolation' not in content
    notes.append(
        f'{path.name} was left out: expected numbers by domain under reference_losses, got {references!r:.200}'
    )
    return {}, False


def _steered_by(metrics: Mapping[str, Series]) -> dict[str, float]:
    """Reference loss by domain that the logged gaps say the run was steered by."""
    prefix, found = names.mixture_name('gap', ''), {}
    for name, (_, gaps) in metrics.items():
        loss = metrics.get(names.mixture_name('loss', name.removeprefix(prefix)))
        if name.startswith(prefix) and loss is not None:
            found[name.removeprefix(prefix)] = float(loss[1][-1] - gaps[-1])
    return found


def read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file, or where it holds something else, which is noted."""
    if not path.is_file():
        return {}
    try:
        return load_json(path)
    except ValueError as error:
        notes.append(f'{error} It was left out')
        return {}
