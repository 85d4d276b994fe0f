"""Which batches scores are computed from: those of the run's language-modelling evaluators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.core import Evaluator, State

__all__ = ['calibration_batches']

# Metrics of the loss that pruning trains on. Tasks of in-context learning have others, and in their batches labels mark
# answers or are missing.
METRICS = ('LanguageCrossEntropy', 'LanguagePerplexity')


def calibration_batches(state: State, count: int) -> list[Any]:
    """The first batches of the evaluators that measure language modelling, one from each in turn, on the device.

    Args:
        state (State): Read for its evaluators and their metrics.
        count (int): Batches to take; fewer if there are no more.

    Raises:
        ValueError: If no evaluator measures language modelling, or a batch of one has no input_ids and labels.
    """
    evaluators = [evaluator for evaluator in state.evaluators if _measures_language_modelling(evaluator, state)]
    if not evaluators:
        raise ValueError(
            'scores are computed from evaluation batches of language modelling: the run needs an eval_loader whose '
            f'metrics include {" or ".join(METRICS)}; its evaluators are '
            f'{[evaluator.label for evaluator in state.evaluators]}.'
        )
    streams = [(evaluator, iter(evaluator.dataloader.dataloader)) for evaluator in evaluators]
    batches: list[Any] = []
    while streams and len(batches) < count:
        for stream in list(streams[: count - len(batches)]):
            evaluator, remaining = stream
            batch = next(remaining, None)
            if batch is None:
                streams.remove(stream)
            else:
                _check(batch, evaluator.label)
                batches.append(state.device.batch_to_device(evaluator.dataloader.batch_transforms(batch)))
    return batches


def _measures_language_modelling(evaluator: Evaluator, state: State) -> bool:
    return any(metric in state.eval_metrics.get(evaluator.label, {}) for metric in METRICS)


def _check(batch: Any, label: str) -> None:
    missing = [key for key in ('input_ids', 'labels') if not isinstance(batch, Mapping) or key not in batch]
    if missing:
        raise ValueError(
            f'scores are computed from input_ids and labels, and batches of the evaluator {label!r} have no '
            f'{" and no ".join(missing)}; leave it out of eval_loader, or take its '
            f'{" and ".join(METRICS)} away.'
        )
