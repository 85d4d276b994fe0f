"""The losses that a model card tells: those of each evaluation set's last evaluation."""

from __future__ import annotations

from composer.core import State

from llmshearing.metrics.names import EVAL_LOSS_METRIC

__all__ = ['last_losses']


def last_losses(state: State) -> dict[str, float]:
    """Cross-entropy of each evaluator's last evaluation, in nats per token; every rank must ask."""
    losses = {}
    for label, metrics in state.eval_metrics.items():
        metric = metrics.get(EVAL_LOSS_METRIC)
        if metric is not None and metric.update_called:
            losses[label.removeprefix('eval/')] = float(metric.compute())
    return losses
