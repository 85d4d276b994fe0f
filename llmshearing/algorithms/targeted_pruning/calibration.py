"""What units are scored from in a run: samples of its language-modelling evaluators, the same for any number of ranks.

A calibration batch has as many sequences as a training batch has on all ranks together, in the order of the evaluation
set, and every rank takes its share of it. So neither the number of ranks nor ``device_eval_batch_size`` has a say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from composer.core import Evaluator, State, get_precision_context
from composer.utils import dist
from streaming import StreamingDataset
from torch import Tensor

from llmshearing.algorithms.targeted_pruning.agreement import average_over_ranks
from llmshearing.algorithms.targeted_pruning.settings import PruningSettings
from llmshearing.masks.scores import Calibration
from llmshearing.models.sheared_causal_lm import ShearedCausalLM

__all__ = ['calibrate', 'calibration_batches']

# Metrics of the loss that pruning trains on. Tasks of in-context learning have others, and in their batches labels mark
# answers or are missing.
METRICS = ('LanguageCrossEntropy', 'LanguagePerplexity')


@contextmanager
def calibrate(state: State, model: ShearedCausalLM, settings: PruningSettings) -> Iterator[Calibration]:
    """The calibration of a run, with its precision, micro-batches and ranks; the model is in evaluation mode meanwhile.

    Args:
        state (State): Of the run.
        model (ShearedCausalLM): Its model, not wrapped by DDP.
        settings (PruningSettings): Read for the number of batches and the seed.
    """

    def loss(batch: Any) -> Tensor:
        with get_precision_context(state.precision, state.precision_config):
            return model.loss(model(batch), batch)

    was_training = model.training
    model.eval()
    try:
        yield Calibration(
            cutter=model.cutter,
            batches=calibration_batches(state, settings.calibration_batches),
            loss=loss,
            reduce=average_over_ranks,
            seed=settings.seed,
            microbatch_size=math.ceil(state.device_train_microbatch_size or 0) or None,
        )
    finally:
        model.train(was_training)


def calibration_batches(state: State, count: int) -> list[Any]:
    """This rank's share of the first batches of the language-modelling evaluators, one from each in turn.

    Args:
        state (State): Read for its evaluators and their metrics.
        count (int): Batches to take; fewer if there are no more.

    Returns:
        list[Any]: On the device; as many, and of the same sizes, on every rank.

    Raises:
        ValueError: If no evaluator measures language modelling, a data set of one cannot be read sample by sample, has
            fewer samples than there are ranks, or gives batches without input_ids and labels.
    """
    evaluators = [evaluator for evaluator in state.evaluators if measures_language_modelling(evaluator, state)]
    if not evaluators:
        raise ValueError(
            'scores are computed from evaluation batches of language modelling: the run needs an eval_loader whose '
            f'metrics include {" or ".join(METRICS)}; its evaluators are '
            f'{[evaluator.label for evaluator in state.evaluators]}.'
        )
    streams, batches = [_shares(evaluator, state) for evaluator in evaluators], []
    while streams and len(batches) < count:
        for stream in list(streams[: count - len(batches)]):
            batch = next(stream, None)
            if batch is None:
                streams.remove(stream)
            else:
                batches.append(state.device.batch_to_device(batch))
    return batches


def measures_language_modelling(evaluator: Evaluator, state: State) -> bool:
    """Whether the loss that pruning trains on is among an evaluator's metrics."""
    return any(metric in state.eval_metrics.get(evaluator.label, {}) for metric in METRICS)


def _shares(evaluator: Evaluator, state: State) -> Iterator[Any]:
    """This rank's share of one batch after the other. A set that is smaller than a batch is one, in whole shares."""
    loader, ranks = evaluator.dataloader.dataloader, dist.get_world_size()
    data, collate = getattr(loader, 'dataset', None), getattr(loader, 'collate_fn', None)
    if not hasattr(data, '__getitem__') or collate is None:
        raise ValueError(
            f'scores are computed from samples that every rank can pick by number, and those of the evaluator '
            f'{evaluator.label!r} cannot be: give it a DataLoader over a data set with a length and __getitem__.'
        )
    samples = data.size if isinstance(data, StreamingDataset) else len(data)  # its length is that of a rank's share
    share = getattr(state.train_dataloader, 'batch_size', None) or loader.batch_size or 1
    share = min(share, samples // ranks)
    if share == 0:
        raise ValueError(
            f'the evaluator {evaluator.label!r} has {samples} samples, fewer than the {ranks} ranks; scores need at '
            'least one for each: give it more, or leave it out of eval_loader.'
        )
    for start in range(share * dist.get_global_rank(), samples, share * ranks):
        if start // (share * ranks) >= samples // (share * ranks):  # the last batch is not whole
            return
        batch = evaluator.dataloader.batch_transforms(collate([data[index] for index in range(start, start + share)]))
        _check(batch, evaluator.label)
        yield batch


def _check(batch: Any, label: str) -> None:
    missing = [key for key in ('input_ids', 'labels') if not isinstance(batch, Mapping) or key not in batch]
    if missing:
        raise ValueError(
            f'scores are computed from input_ids and labels, and batches of the evaluator {label!r} have no '
            f'{" and no ".join(missing)}; leave it out of eval_loader, or take its '
            f'{" and ".join(METRICS)} away.'
        )
