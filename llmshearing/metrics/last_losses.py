"""The losses that a model card tells: those of each evaluation set's last evaluation, in nats per token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmshearing.metrics.lines import read_metrics
from llmshearing.metrics.names import EVAL_LOSS_METRIC, label_of

if TYPE_CHECKING:
    from composer.core import State

__all__ = ['last_losses', 'last_logged_losses']


def last_losses(state: State, metrics: Path | None = None) -> tuple[dict[str, float], int | None]:
    """Cross-entropy of each evaluator's last evaluation, and after what batch it was; every rank must ask.

    Args:
        state (State): Of the run.
        metrics (Path | None): What the logger ``metrics_file`` wrote, for a run that was resumed after its last
            evaluation. Default: ``None``, such a run has no losses.
    """
    losses = {}
    for label, evaluated in state.eval_metrics.items():
        metric = evaluated.get(EVAL_LOSS_METRIC)
        if metric is not None and metric.update_called:
            losses[label.removeprefix('eval/')] = float(metric.compute())
    if not losses and metrics is not None and metrics.is_file():
        return last_logged_losses(metrics, state.timestamp.batch.value)
    return losses, state.timestamp.batch.value if losses else None


def last_logged_losses(metrics: Path, batch: int) -> tuple[dict[str, float], int | None]:
    """The same up to a batch, from what the logger ``metrics_file`` wrote."""
    losses, batches = {}, []
    for name, values in read_metrics(metrics).items():
        label, until = label_of(name), [at for at in values if at <= batch]
        if label is not None and until:
            losses[label] = values[until[-1]]
            batches.append(until[-1])
    return losses, min(batches, default=None)
