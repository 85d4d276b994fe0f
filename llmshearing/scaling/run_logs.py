"""This suite's own runs as points for the P2 law, so that small runs predict large ones.

A run's metrics file holds the curve: tokens, and the mean evaluation loss over its evaluators. The rest comes from
files that a run leaves anyway: parameters before and after pruning from what the ``run_report`` callback noted beside
the log, or else from the pruned folder's ``pruning.json`` and ``config.json``; the source's loss on the same
evaluation sets from the file of ``llmshearing reference-losses measure``. What cannot be found is asked for by name;
nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.metrics.names import TOTAL_TIME
from llmshearing.metrics.pruning_record import RECORD_NAME, read_content, source_parameters
from llmshearing.metrics.run_log import REFERENCES, RunLog, find_logs, mean_loss, read_run, run_name
from llmshearing.scaling.curves import Curve, parse_curve
from llmshearing.scaling.fields import positive_number, read_json
from llmshearing.utils.suggestions import refuse_unknown

__all__ = ['cost_per_token', 'curve_of_log', 'post_training_log', 'read_all_runs', 'read_runs']

LOG_FIELDS = {'log', 'pruned', 'source_losses', 'params_before', 'pruning_rate', 'source_loss', 'name', 'comment'}


def _curve_points(log: RunLog, where: str) -> list[list[float]]:
    """[[tokens, mean evaluation loss], ...] of a run, from the first evaluation after training began.

    Raises:
        ValueError: No evaluation loss, no token counts, or a loss that is not finite.
    """
    found = mean_loss(log.domain_losses())
    if found is None:
        raise ValueError(
            f'{where}: {log.path} has no batch with metrics/eval/<name>/LanguageCrossEntropy of all its evaluators; '
            'add eval_loaders with that metric to the run'
        )
    batches, losses = found
    tokens = log.tokens_at(batches)
    if tokens is None:
        raise ValueError(
            f'{where}: {log.path} has no time/token, so its curve cannot be placed; is it a log of metrics_file?'
        )
    if not np.isfinite(losses).all():
        raise ValueError(
            f'{where}: {log.path}: the evaluation loss at batch {batches[~np.isfinite(losses)][0]:.0f} is not finite'
        )
    return [[float(count), float(loss)] for count, loss in zip(tokens, losses) if count > 0]


def _parameters(log: RunLog, pruned: Path | None, where: str) -> tuple[float, float]:
    """Parameters before and after pruning."""
    before, after = (log.state.get(key) or {} for key in ('source', 'result'))
    if before.get('parameters') and after.get('parameters'):
        return before['parameters'], after['parameters']
    if pruned is None:
        found = sorted(path.parent for path in log.path.parent.glob(f'*/{RECORD_NAME}'))
        if len(found) != 1:
            raise ValueError(
                f'{where}: how many parameters were there before and after pruning? Nothing beside {log.path} says so '
                f'({len(found)} folders with a {RECORD_NAME}). Add the callback run_report to the run, or give '
                '"pruned" (the exported folder), or "params_before" and "pruning_rate"'
            )
        pruned = found[0]
    record = read_content(pruned)
    read_json(pruned / 'config.json')  # a clear message where it is missing
    # Imported here: only this case needs torch and transformers.
    from llmshearing.models.counting import count_parameters, layout_of
    from llmshearing.models.shapes import ModelShape
    from llmshearing.models.source_config import read_config

    layout = layout_of(read_config(pruned))
    try:
        before, target = source_parameters(record, layout), ModelShape(**record['target_shape'])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{where}: {pruned / RECORD_NAME} does not say how many parameters the source has ({error}); give '
            '"params_before" and "pruning_rate"'
        ) from error
    return float(before), float(count_parameters(layout, target).total)


def _source_loss(given: object, log: RunLog, folder: Path, where: str) -> float:
    """Mean loss of the source over the evaluators of the log."""
    if isinstance(given, Mapping):
        losses, origin = dict(given), where
    else:
        path = folder / given if isinstance(given, str) else log.path.with_name(REFERENCES)
        if not path.is_file():
            raise ValueError(
                f'{where}: the loss of the source is missing: {path} does not exist. Give "source_loss" (a number) or '
                '"source_losses" (the file of `llmshearing reference-losses measure SOURCE --data ...`)'
            )
        content, origin = read_json(path), str(path)
        if 'extrapolation' in content:
            raise ValueError(
                f'{where}: {path} holds losses that were predicted for a target, not those of the source; use the file '
                'of `llmshearing reference-losses measure`'
            )
        losses = content.get('reference_losses')
        if not isinstance(losses, Mapping):
            raise ValueError(f'{where}: {path} holds no mapping "reference_losses" from domain to loss')
    names = list(log.domain_losses())
    missing = [name for name in names if name not in losses]
    if missing:
        raise ValueError(
            f'{where}: {origin} has no loss of the source for {missing[0]!r}, which the run is evaluated on; it has '
            f'{sorted(losses)}. Measure the source on the same evaluation sets'
        )
    values = [positive_number(losses[name], f'{where}: loss of the source for {name!r}') for name in names]
    return float(np.mean(values))


def row_of_log(row: Mapping[str, Any], where: str, folder: Path = Path()) -> dict[str, Any]:
    """A row of RUNS.json that names a log, written out for :func:`~llmshearing.scaling.curves.parse_curve`.

    Args:
        row (Mapping[str, Any]): ``log`` (metrics file), optional ``pruned`` (folder with ``pruning.json``),
            ``source_losses`` (file, or loss by evaluator), ``params_before``, ``pruning_rate``, ``source_loss``,
            ``name``, ``comment``. Paths are relative to ``folder``.
        where (str): Start of every message.
        folder (Path): Of the file with the row.

    Raises:
        ValueError: An unknown field, a log without a curve, or something that is neither given nor found.
    """
    refuse_unknown(f'{where}, beside "log"', row, sorted(LOG_FIELDS))
    if not isinstance(row['log'], str):
        raise ValueError(f'{where}: "log" must be the path of a metrics file, got {row["log"]!r}')
    log = read_run(folder / row['log'])
    if log.is_pruning:
        raise ValueError(f'{where}: {log.path} is a log of pruning; the law is about the training after it')
    curve = _curve_points(log, where)
    before, rate = row.get('params_before'), row.get('pruning_rate')
    if before is None or rate is None:
        counted, after = _parameters(log, folder / row['pruned'] if 'pruned' in row else None, where)
        before = counted if before is None else before
        rate = 1 - after / counted if rate is None else rate
    loss = row.get('source_loss')
    if loss is None:
        loss = _source_loss(row.get('source_losses'), log, folder, where)
    return {
        'name': row.get('name', f'{log.path.resolve().parent.name}/{log.name}'),
        'params_before': before,
        'pruning_rate': rate,
        'source_loss': loss,
        'curve': curve,
    }


def read_entry(row: object, where: str, folder: Path = Path()) -> Curve:
    """One entry of RUNS.json as a curve.

    It is a curve written out (:func:`~llmshearing.scaling.curves.parse_curve`) or one of this suite's runs, named by
    its ``log`` (:func:`row_of_log`).
    """
    if isinstance(row, dict) and 'log' in row:
        written_out = row_of_log(row, where, folder)
        curve = parse_curve(written_out, where, folder, str((folder / row['log']).resolve()))
        return replace(curve, vocabulary=(read_run(folder / row['log']).state.get('tokenizer') or {}).get('vocabulary'))
    return parse_curve(row, where, folder)


def curve_of_log(path: str | Path) -> Curve:
    """The run of one metrics file, with everything found beside it. Raises ValueError as :func:`row_of_log`."""
    return read_entry({'log': str(path)}, str(path))


def read_runs(path: str | Path) -> list[Curve]:
    """Reads RUNS.json. Raises ValueError as :func:`read_entry`, or where the file has no list of runs."""
    path = Path(path)
    content = read_json(path)
    runs = content.get('runs')
    if not isinstance(runs, list) or not runs:
        raise ValueError(
            f'{path}: expected {{"runs": [...]}} with one object per run, which has the fields '
            f'params_before, pruning_rate, source_loss and curve; got the fields {sorted(content)}'
        )
    return [read_entry(row, f'{path}: run {number}', path.parent) for number, row in enumerate(runs, 1)]


def read_all_runs(sources: Sequence[str]) -> list[Curve]:
    """Runs from RUNS.json files, metrics files and folders of runs, in their order.

    Raises:
        ValueError: As :func:`read_entry`, or for runs with different vocabularies.
    """
    runs: list[Curve] = []
    for source in sources:
        if Path(source).is_dir():
            runs.append(curve_of_log(post_training_log(source)))
        elif source.endswith('.jsonl'):
            runs.append(curve_of_log(source))
        else:
            runs += read_runs(source)
    by_vocabulary = {run.vocabulary: run.name for run in reversed(runs) if run.vocabulary}
    if len(by_vocabulary) > 1:
        *_, other, first = by_vocabulary.values()
        raise ValueError(
            f'{first} and {other} have different vocabularies, and losses per token of one are none of the other; fit '
            'a law to those of each'
        )
    return runs


def post_training_log(folder: str | Path) -> Path:
    """The one log in a folder that can be a run after pruning.

    Where the ``run_report`` callback noted what the runs are, those that began from a pruned folder; else those that
    did not prune.

    Raises:
        ValueError: There is none, or more than one.
    """
    runs = [run for run in map(read_run, find_logs(folder)) if not run.is_pruning]
    noted = [run for run in runs if run.state]
    candidates = [run for run in noted if run.state.get('source')] if noted else runs
    if len(candidates) != 1:
        names = ', '.join(run.path.name for run in candidates) or 'none'
        raise ValueError(f'{folder}: expected one log of a run after pruning, found {names}; name the file')
    return candidates[0].path


def cost_per_token(path: str | Path) -> float:
    """Time per token of a run, evaluation included, in the unit of ``speed_monitor`` (hours by default).

    ``time/total`` is logged when a batch has ended and is counted already, so its batches are those that it took.

    Raises:
        ValueError: The log lacks ``time/total`` or the tokens.
    """
    log = read_run(Path(path))
    total = log.series(TOTAL_TIME)
    tokens = None if total is None else log.tokens_at(total[0][-1:])
    if total is None or tokens is None or not (total[1][-1] > 0 and tokens[0] > 0):
        raise ValueError(
            f"{path}: the time per token is not in the log of {run_name(Path(path))}; add Composer's callback "
            'speed_monitor to the run (it logs time/total), or give the costs as numbers'
        )
    return float(total[1][-1] / tokens[0])
