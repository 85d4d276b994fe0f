"""What units are scored on in a run: samples of its language-modelling evaluators, the same for any number of ranks.

A calibration batch has as many sequences as a training batch has on all ranks together, in the order of the evaluation
set, and every rank takes its share of it. So neither the number of ranks nor ``device_eval_batch_size`` has a say.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from composer.core import Evaluator, State, get_precision_context
from composer.utils import dist
from streaming import StreamingDataset
from torch import Tensor

from llmshearing.algorithms.targeted_pruning.agreement import average_over_ranks
from llmshearing.algorithms.targeted_pruning.settings import PruningSettings
from llmshearing.checkpoints.rotated import has_learned_basis
from llmshearing.compat.torch import reshard
from llmshearing.masks.energies import norm_energies
from llmshearing.masks.in_order import compensate_in_order
from llmshearing.masks.scores import RECOMMENDED, Calibration, score_units
from llmshearing.masks.state import PruningState
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from llmshearing.utils.interleave import interleave
from llmshearing.utils.ranks import from_rank_0

__all__ = ['calibrate', 'calibration_batches', 'compensate_cut']

log = logging.getLogger(__name__)

# Metrics of the loss that pruning trains on. Tasks of in-context learning have others, and in their batches labels mark
# answers or are missing.
METRICS = ('LanguageCrossEntropy', 'LanguagePerplexity')


def calibrate(pruning: PruningState, state: State, model: ShearedCausalLM, settings: PruningSettings) -> None:
    """Scores the units and measures what the gains of norms follow, with the source as it is before any batch.

    Args:
        pruning (PruningState): Gets the start of its learner, and its energies.
        state (State): Of the run.
        model (ShearedCausalLM): The run's, not wrapped by DDP.
        settings (PruningSettings): Say what is scored and how.

    Raises:
        ValueError: As :func:`calibration_batches`, if scores were named or nothing else tells units apart. Otherwise
            the run goes on and says so.
    """
    learned_basis = from_rank_0(lambda: has_learned_basis(model.source))
    methods = settings.scores_by_axis(pruning.plans, learned_basis)
    if not methods and 'hidden' not in pruning.plans:
        return
    try:
        batches = calibration_batches(state, settings.calibration_batches)
    except ValueError as problem:
        if pruning.learner.needs_scores or settings.scores not in (None, RECOMMENDED):
            raise
        if methods:
            log.warning('Units go in random order until gradients tell: %s', problem)
        if 'hidden' in pruning.plans:
            log.warning('Gains of norms will not make up for the hidden dimensions that go: %s', problem)
        return
    calibration = _calibration_on(batches, state, model, settings.seed)
    was_training = model.training
    model.eval()
    if methods:
        pruning.learner.start_from(score_units(methods, calibration))
        log.info('Scored units by %s on %d batches.', methods, len(batches))
    if 'hidden' in pruning.plans:
        pruning.norm_energies = norm_energies(calibration)
    model.train(was_training)


def _calibration_on(batches: Sequence[Any], state: State, model: ShearedCausalLM, seed: int) -> Calibration:
    """The run's model and this rank's share of some batches, as a :class:`~llmshearing.masks.scores.Calibration`."""

    def loss(batch: Any) -> Tensor:
        with get_precision_context(state.precision, state.precision_config):
            return model.loss(model(batch), batch)

    # What `auto` finds to fit is known once a batch has been trained; the size has no say in the result.
    microbatch_size = 1 if state.auto_microbatching else math.ceil(state.device_train_microbatch_size or 0) or None
    return Calibration(model.cutter, batches, loss, average_over_ranks, seed, microbatch_size)


def compensate_cut(
    pruning: PruningState, state: State, model: ShearedCausalLM, masks: Mapping[str, Tensor], seed: int
) -> None:
    """Fits what a cut leaves to the source (:mod:`~llmshearing.masks.in_order`) on the batch that is to be trained.

    Args:
        pruning (PruningState): Knows what the gains of norms follow.
        state (State): Of the run.
        model (ShearedCausalLM): The run's, not wrapped by DDP.
        masks (Mapping[str, Tensor]): Zeros and ones by axis.
        seed (int): Of the run.
    """
    model.cutter.norm_energies = pruning.norm_energies
    precision = partial(get_precision_context, state.precision, state.precision_config)
    was_training = model.training
    model.eval()
    compensate_in_order(
        _calibration_on([state.batch], state, model, seed),
        masks,
        precision,
        entered=partial(reshard, state.model),  # the root's weights are to be changed, not a copy of them
    )
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
    evaluators = [
        evaluator
        for evaluator in state.evaluators
        if any(metric in state.eval_metrics.get(evaluator.label, {}) for metric in METRICS)
    ]
    if not evaluators:
        raise ValueError(
            'units are scored on evaluation batches of language modelling: the run needs an eval_loader whose '
            f'metrics include {" or ".join(METRICS)}; its evaluators are '
            f'{[evaluator.label for evaluator in state.evaluators]}.'
        )
    batches = islice(interleave(_shares(evaluator, state) for evaluator in evaluators), count)
    return [state.device.batch_to_device(batch) for batch in batches]


def _shares(evaluator: Evaluator, state: State) -> Iterator[Any]:
    """This rank's share of one batch after the other. A set that is smaller than a batch is one, in whole shares."""
    loader, ranks = evaluator.dataloader.dataloader, dist.get_world_size()
    data: Any
    data, collate = getattr(loader, 'dataset', None), getattr(loader, 'collate_fn', None)
    if not hasattr(data, '__getitem__') or collate is None:
        raise ValueError(
            f'units are scored on samples that every rank can pick by number, and those of the evaluator '
            f'{evaluator.label!r} cannot be: give it a DataLoader over a data set with a length and __getitem__.'
        )
    samples = data.size if isinstance(data, StreamingDataset) else len(data)  # its length is that of a rank's share
    share = getattr(state.train_dataloader, 'batch_size', None) or getattr(loader, 'batch_size', None) or 1
    share = min(share, samples // ranks)
    if share == 0:
        raise ValueError(
            f'the evaluator {evaluator.label!r} has {samples} samples, fewer than the {ranks} ranks; scoring needs '
            'at least one for each: give it more, or leave it out of eval_loader.'
        )
    for number in range(samples // (share * ranks)):  # whole batches
        start = share * (number * ranks + dist.get_global_rank())
        batch = evaluator.dataloader.batch_transforms(collate([data[index] for index in range(start, start + share)]))
        _check(batch, evaluator.label)
        yield batch


def _check(batch: Any, label: str) -> None:
    missing = [key for key in ('input_ids', 'labels') if not isinstance(batch, Mapping) or key not in batch]
    if missing:
        raise ValueError(
            f'units are scored by input_ids and labels, and batches of the evaluator {label!r} have no '
            f'{" and no ".join(missing)}; leave it out of eval_loader, or take its '
            f'{" and ".join(METRICS)} away.'
        )
