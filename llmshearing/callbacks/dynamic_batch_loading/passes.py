"""How often each domain is gone through: the plan, checked before training, and the limit, kept during training.

Text that is repeated a few times is nearly as good as new; much more often it is not (arXiv 2305.16264: up to about
four times). So without a limit of the user's, a plan that takes more than ``USUAL_PASSES`` is told, and with
``max_passes`` it is kept: a domain that nears its limit gets no more than what is left of it.
"""
from __future__ import annotations

import logging

import numpy as np
from composer.core import State, TimeUnit

from llmshearing.data.dynamic_text import DynamicTextDataset
from llmshearing.data.mixture import check_samples

log = logging.getLogger(__name__)

USUAL_PASSES = 4


def planned_samples(dataset: DynamicTextDataset, state: State) -> int | None:
    """Samples of the whole run by its max_duration, or None if that is given in a unit that does not say."""
    duration, rounds = state.max_duration, dataset.rounds
    if duration is None:
        return None
    samples_per = {
        TimeUnit.BATCH: rounds.global_batch_size,
        TimeUnit.EPOCH: rounds.global_batch_size * rounds.round_batches,
        TimeUnit.SAMPLE: 1,
        TimeUnit.TOKEN: 1 / dataset.max_seq_len,
    }
    return round(duration.value * samples_per[duration.unit]) if duration.unit in samples_per else None


def check_plan(dataset: DynamicTextDataset, state: State, fixed: bool) -> None:
    """Compares the planned steps with the samples there are.

    Args:
        dataset: the training data.
        state: holds max_duration.
        fixed: whether the weights stay as they are, so that every domain's need is known.

    Raises:
        ValueError: if ``max_passes`` cannot be kept: all domains together are too small, or one of fixed weight is.
    """
    samples, rounds, limit = planned_samples(dataset, state), dataset.rounds, dataset.max_passes
    if samples is None:
        return
    check_samples({'all domains': 1.0}, {'all domains': sum(rounds.sizes.values())}, samples, limit)
    needed = check_samples(rounds.initial_weights, rounds.sizes, samples, limit if fixed else None)
    much = {name: round(count, 1) for name, count in needed.items() if count > (limit or USUAL_PASSES)}
    if much:
        log.warning('%d samples at the initial weights go through these domains so many times: %s.', samples, much)
    log.info('Planned passes at the initial weights: %s', {name: round(count, 3) for name, count in needed.items()})


def pass_ceiling(dataset: DynamicTextDataset) -> np.ndarray:
    """Greatest weight of each domain in the next round that keeps ``max_passes``, float64 [domains].

    If what is left of all domains together does not fill the round, it is shared out in proportion.
    """
    rounds = dataset.rounds
    if dataset.max_passes is None:
        return np.ones(len(rounds.sizes))
    used = np.array(rounds.end().used)
    left = np.maximum(dataset.max_passes * np.array(list(rounds.sizes.values())) - used, 0)
    ceiling = left / (rounds.global_batch_size * rounds.round_batches)
    if ceiling.sum() < 1:
        log.warning('All domains are nearly used up: max_passes=%s leaves %d samples.', dataset.max_passes, left.sum())
        ceiling = (left + 1e-9) / (left + 1e-9).sum()
    return np.minimum(ceiling, 1.0)
