"""What a report is made from: the files a run leaves behind, read without torch so that a report is there in seconds.

The decision here: a report needs nothing but a metrics file. Everything else (what the ``run_report`` callback notes
beside it, an exported folder's ``pruning.json``, reference losses, the demo's measurements) is looked for near it and
adds to the page; what is not found is named on the page together with what would provide it. A run that was killed
may leave half a line in its metrics, so lines that cannot be read are counted, not fatal; and notes from before a
resume or a fresh start are not taken for the state of the run that goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.metrics.lines import read_points

METRICS_SUFFIX = '_metrics.jsonl'
STATE_SUFFIX = '_run.json'
STATE_VERSION = 1
PROGRESS_KEYS = ('batch', 'tokens', 'elapsed_share', 'pruning')  # of the state; the rest holds for every start
STATE_KINDS: dict[str, tuple[type, ...]] = {
    'batch': (int, float),
    'tokens': (int, float),
    'elapsed_share': (int, float),
    'max_duration': (str,),
    'source': (dict,),
    'result': (dict,),
    'pruning': (dict,),
}
RECORD_KEYS = ('source_shape', 'target_shape', 'axes', 'kept')
EVAL_LOSS = ('metrics/eval/', '/LanguageCrossEntropy')

Series = tuple[np.ndarray, np.ndarray]  # batches and values, float64 [points] each, by increasing batch


@dataclass(frozen=True)
class Run:
    """One stage of training: a metrics file and what lies beside it.

    Args:
        name: What to call it: the file's name without ``_metrics.jsonl``.
        path: The metrics file.
        metrics: Series by metric.
        state: What ``run_report`` noted (:data:`STATE_SUFFIX`); empty without the callback.
        pruning: The pruning record: what was kept, counts per axis, shapes; empty where the run did not prune.
        references: Reference loss by domain; empty where there are none.
        notes: What could not be read, for the reader of the page.
    """

    name: str
    path: Path
    metrics: dict[str, Series]
    state: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)
    references: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
        return any(name.startswith('pruning/') for name in self.metrics)

    def domain_losses(self) -> dict[str, Series]:
        """Evaluation loss in nats per token by evaluator."""
        prefix, suffix = EVAL_LOSS
        return {name: self.metrics[f'{prefix}{name}{suffix}'] for name in self.names(prefix, suffix)}

    def tokens_at(self, batches: np.ndarray) -> np.ndarray | None:
        """Tokens trained on after so many batches, or None where the log does not tell.

        The count before each batch is logged when the batch begins, so that of the last batches is continued from the
        last two entries.
        """
        series = self.metrics.get('time/token')
        if series is None or len(series[0]) < 2:
            return None
        at, tokens = series
        per_batch = (tokens[-1] - tokens[-2]) / (at[-1] - at[-2])
        batches = np.asarray(batches, dtype=np.float64)
        return np.interp(batches, at, tokens) + np.maximum(batches - at[-1], 0) * per_batch


def state_path(metrics_path: Path) -> Path:
    """Where ``run_report`` notes the state of the run with these metrics."""
    return metrics_path.with_name(run_name(metrics_path) + STATE_SUFFIX)


def run_name(metrics_path: Path) -> str:
    """The run's name: the file's, without its ending."""
    name = metrics_path.name
    return (name.removesuffix(METRICS_SUFFIX) if name.endswith(METRICS_SUFFIX) else metrics_path.stem) or 'run'


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that others may be reading: it is either the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f'.{path.name}.{os.getpid()}')
    hidden.write_bytes(content)
    hidden.replace(path)


def read_log(path: Path) -> tuple[dict[str, Series], int]:
    """Reads a file of the ``metrics_file`` logger as series of the run as it stands.

    Returns:
        tuple: Series by metric, and the number of lines that could not be read.

    Raises:
        ValueError: As :func:`~llmshearing.metrics.lines.read_points`.
    """
    values, broken = read_points(path)
    return {
        name: (np.array([*points], dtype=np.float64), np.array([*points.values()], dtype=np.float64))
        for name, points in values.items()
    }, broken


def find_logs(where: str | Path) -> list[Path]:
    """The metrics files of a run, in the order in which they were begun.

    Args:
        where: A metrics file, or a folder with files named ``*_metrics.jsonl`` or ``metrics.jsonl``.

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


def read_run(path: Path) -> Run:
    """Reads a metrics file and what lies beside it. Raises ValueError as :func:`read_log`."""
    metrics, broken = read_log(path)
    notes = []
    if broken:
        notes.append(
            f'{broken} line{"s" * (broken > 1)} of {path.name} could not be read and were left out, as after a '
            'run that was killed while it wrote'
        )
    state = _optional_object(state_path(path), notes)
    if state and state.get('version') != STATE_VERSION:
        notes.append(
            f'{state_path(path).name} is of version {state.get("version")}, this release reads {STATE_VERSION}; '
            'it was left out'
        )
        state = {}
    wrong = [key for key, kinds in STATE_KINDS.items() if not isinstance(state.get(key), (*kinds, type(None)))]
    if wrong:
        listed = ', '.join(f'{key}={state[key]!r}' for key in wrong)
        notes.append(f'{state_path(path).name} holds {listed}, which run_report never writes; left out')
        state = {key: value for key, value in state.items() if key not in wrong}
    run = Run(run_name(path), path, metrics)
    if _ahead(state.get('batch'), run):
        notes.append(
            f'{state_path(path).name} is of batch {state["batch"]}, which the log has gone back on; the progress and '
            'the masks in it were left out'
        )
        state = {key: value for key, value in state.items() if key not in PROGRESS_KEYS}
    pruning = state.get('pruning') or {}
    if run.is_pruning and not pruning:
        pruning = _exported_record(run, notes)
    lacking = [key for key in RECORD_KEYS if pruning and key not in pruning]
    if lacking:
        notes.append(f'the pruning record lacks {", ".join(lacking)} and was left out')
        pruning = {}
    references = _references(path.with_name('reference_losses.json'), notes)
    return Run(run.name, path, metrics, state, pruning, _losses(references, metrics), tuple(notes))


def read_measurements(folder: Path) -> dict[str, Any]:
    """What `llmshearing demo` measured on the finished models (``report/report.json``); empty elsewhere."""
    return _optional_object(folder / 'report' / 'report.json', []).get('results', {})


def _references(path: Path, notes: list[str]) -> dict[str, float]:
    """Reference loss by domain; empty where the file holds none, or something else, which is noted."""
    references = _optional_object(path, notes).get('reference_losses', {})
    if isinstance(references, dict) and all(type(loss) in (int, float) for loss in references.values()):
        return references
    notes.append(
        f'{path.name} was left out: expected numbers by domain under reference_losses, got {references!r:.200}'
    )
    return {}


def _losses(references: Mapping[str, float], metrics: Mapping[str, Series]) -> dict[str, float]:
    """Reference loss by domain: from the file, or what the gaps in the log say the run was steered by."""
    references = dict(references)
    for name in metrics:
        domain = name.removeprefix('mixture/gap/')
        if domain != name and f'mixture/loss/{domain}' in metrics:
            references[domain] = float(metrics[f'mixture/loss/{domain}'][1][-1] - metrics[name][1][-1])
    return references


def _optional_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file, or where it holds something else, which is noted."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        notes.append(f'{path.name} is not JSON ({error}) and was left out')
        return {}
    if isinstance(content, dict):
        return content
    notes.append(f'{path.name} holds no JSON object and was left out')
    return {}


def _ahead(batch: object, run: Run) -> bool:
    """Whether something was noted at a batch that the run has not come to, so by an earlier start of it.

    After a batch the count is one more than at the log's last line of it.
    """
    return isinstance(batch, (int, float)) and batch > run.batches + 1


def _exported_record(run: Run, notes: list[str]) -> dict[str, Any]:
    """``pruning.json`` of the folder that a pruning run exported to, if there is exactly one near its metrics and it is
    not of an earlier start that had come further."""
    folder = run.path.parent
    found = sorted({*folder.glob('pruning.json'), *folder.glob('*/pruning.json')})
    if len(found) > 1:
        notes.append(
            f"{len(found)} folders with a pruning.json are beside the metrics, so none was taken for this run's"
        )
    record = _optional_object(found[0], notes) if len(found) == 1 else {}
    if _ahead(record.get('batches'), run):
        notes.append(
            f'{found[0].relative_to(folder)} is of batch {record["batches"]}, which the log has gone back on; it was '
            'left out'
        )
        return {}
    return record
