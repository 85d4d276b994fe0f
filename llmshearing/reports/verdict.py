"""The first line about a run: whether it is at its target, where the result is, how it was checked, what is next."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from llmshearing.metrics.names import LOGIT_DIFFERENCE, TRAIN_LOSS
from llmshearing.metrics.run_log import RunLog
from llmshearing.reports.blocks import Verdict, duration, number, percent

__all__ = ['batches_of_plan', 'loss_beside_source', 'seconds_left', 'share_done', 'verdict']

STOPPED = 'Stopped before its end.'
TOLERANCE = 0.05  # of targeted_pruning, where a run did not note its own


def verdict(run: RunLog) -> Verdict:
    """How a run stands; everything that is not known is left out."""
    last = [run.last(TRAIN_LOSS), *(losses[-1] for _, losses in run.domain_losses().values())]
    if not all(value is None or math.isfinite(value) for value in last):
        way = 'go on from an earlier checkpoint' if _saves(run) else 'begin it again'
        return Verdict('Diverged.', f'Its last loss is no number. Next: {way}, with a lower learning rate.', 'bad')
    found = _pruning(run) if run.is_pruning else _training(run)
    noted = run.state.get('noted')
    overdue = f'Nothing has been noted since {noted}. If it was killed, {_again(run)}'
    return replace(found, due=None if _is_over(run) else run.state.get('due'), overdue=overdue)


def seconds_left(run: RunLog) -> float | None:
    """Time to the planned end if the rest is as fast as the run so far; None where nothing tells."""
    share, seconds = run.state.get('elapsed_share'), run.state.get('seconds')
    return seconds * (1 / share - 1) if share and seconds and share < 1 and not _is_abandoned(run) else None


def share_done(run: RunLog) -> float | None:
    """Share of the planned duration that the log has come to, from the last note on; None where nothing tells."""
    share, noted, planned = (run.state.get(key) for key in ('elapsed_share', 'batch', 'max_duration'))
    if share is None or noted is None or run.batches <= noted:
        return share
    count = (planned or '').removesuffix('ba')
    if count.isdigit() and int(count):
        return max(share, min(run.batches / int(count), 1.0))
    return min(share * run.batches / noted, 1.0) if noted else None


def batches_of_plan(run: RunLog) -> str:
    """``batch 40 of 80``, or of a duration in another unit."""
    planned = run.state.get('max_duration') or ''
    count = planned.removesuffix('ba')
    planned = f'{int(count):,}' if planned.endswith('ba') and count.isdigit() else planned
    return f'batch {run.batches:,}' + (f' of {planned}' if planned else '')


def loss_beside_source(run: RunLog) -> tuple[float, float] | None:
    """Mean last evaluation loss, and mean loss of the source, over the evaluators that have both; None without any."""
    both = [(losses[-1], run.source_losses.get(name)) for name, (_, losses) in run.domain_losses().items()]
    found = np.array([pair for pair in both if pair[1] is not None], dtype=np.float64)
    if not len(found):
        return None
    last, source = found.mean(axis=0).tolist()
    return last, source


def _pruning(run: RunLog) -> Verdict:
    axes = [axis for axis in run.pruning.get('axes', []) if axis.get('target') is not None]
    tolerance = run.pruning.get('tolerance', TOLERANCE)  # the rule is that of `unconverged` in masks/axis_reports.py
    away = [axis for axis in axes if abs(axis['expected'] - axis['target']) > max(tolerance * axis['target'], 0.5)]
    folder = _folder(run)
    if folder is not None:
        difference = run.last(LOGIT_DIFFERENCE)
        checked = 'opened with transformers and compared with the masked model before it got its name'
        checked += '' if difference is None else f' (largest difference of logits {difference:.2g})'
        first = 'Exported at its target.' if not away else 'Exported, with masks that were not at the target yet.'
        rest = f'The model is in {folder}, {checked}. Next: continue its pre-training from that folder.'
        return Verdict(first, rest, 'open' if away else 'good')
    listed = '; '.join(f'{axis["axis"]} {number(axis["expected"])} of {axis["target"]:,}' for axis in away or axes)
    where = f'Expected units per row against the target: {listed}.' if listed else ''
    if not _is_over(run):
        first = 'At its target, still training.' if axes and not away else 'On the way to its target.'
        first = STOPPED if _is_abandoned(run) else first
        return Verdict(first, f'{where} {_progress(run)}'.strip(), 'open')
    if away:
        return Verdict('Ended away from its target.', f'{where} Next: train longer, or shorten the warm-up.', 'bad')
    return Verdict('At its target, not exported.', _export(run), 'open')


def _training(run: RunLog) -> Verdict:
    losses = loss_beside_source(run)
    beside = ''
    if losses is not None:
        place = 'above' if losses[0] >= losses[1] else 'below'
        beside = (
            f'Mean evaluation loss {losses[0]:.4f}, {abs(losses[0] - losses[1]):.4f} {place} the '
            f"source's {losses[1]:.4f}."
        )
    if not _is_over(run):
        return Verdict(STOPPED if _is_abandoned(run) else 'Training.', f'{beside} {_progress(run)}'.strip(), 'open')
    folder = _folder(run)
    if folder is None:
        return Verdict('Finished, not exported.', f'{beside} {_export(run)}'.strip(), 'open')
    rest = f'{beside} The model is in {folder}, as hf_checkpointer wrote it. Next: evaluate it, or push it to a hub.'
    return Verdict('Finished.', rest.strip(), 'good')


def _folder(run: RunLog) -> str | None:
    """Where the result is, as the run noted it or as it lies beside the metrics."""
    noted = (run.state.get('exported') or {}).get('folder')
    return noted or (None if run.exported is None else str(run.exported))


def _progress(run: RunLog) -> str:
    share, left = share_done(run), seconds_left(run)
    if run.state.get('elapsed_share') is None:
        return f'{run.batches:,} batches so far; the callback run_report would note how many are planned.'
    rest = '' if left is None else f', about {duration(left)} left'
    following = f' Next: {_again(run)}' if _is_abandoned(run) else ''
    done = batches_of_plan(run) if share is None else f'{percent(share)} done ({batches_of_plan(run)})'
    return f'{done[0].upper()}{done[1:]}{rest}.{following}'


def _saves(run: RunLog) -> bool:
    return run.state.get('saves', True)


def _again(run: RunLog) -> str:
    if _saves(run):
        return 'begin it again as before; with autoresume: true it goes on.'
    return 'begin it again: it has no save_folder, so there is no checkpoint to go on from.'


def _export(run: RunLog) -> str:
    if _saves(run):
        return 'Next: llmshearing export CHECKPOINT --out FOLDER.'
    callback = 'export_pruned' if run.is_pruning else 'hf_checkpointer'
    return f'It kept nothing. Next: begin it again, with callbacks.{callback} or a save_folder.'


def _is_over(run: RunLog) -> bool:
    return run.state.get('elapsed_share') == 1


def _is_abandoned(run: RunLog) -> bool:
    """Whether the process that trained has gone before the end, and no other has trained on since."""
    noted = run.state.get('batch')
    return bool(run.state.get('closed')) and not _is_over(run) and run.batches <= (noted or 0)
