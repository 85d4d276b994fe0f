"""How often each domain is gone through: the plan, checked before training, and the limit, kept during training.

Text that is repeated a few times is nearly as good as new; much more often it is not (arXiv 2305.16264: up to about
four times). So without a limit of the user's, a plan that takes more than ``USUAL_PASSES`` is told, and with
``max_passes`` it is kept: a domain that nears its limit gets no more than what is left of it.
"""

from __future__ import annotations

import logging

import numpy as np
from composer.core import State, TimeUnit

from llmshearing.callbacks.dynamic_batch_loading.limits import bound
from llmshearing.data.dynamic_text import DynamicTextDataset
from llmshearing.data.mixture import UNITS, check_samples

__all__ = ['check_plan', 'check_round_length', 'planned_samples', 'weight_ceiling']

log = logging.getLogger(__name__)

USUAL_PASSES = 4


def planned_samples(dataset: DynamicTextDataset, state: State) -> int | None:
    """Samples of the whole run: those used, of the data as they are now, and what its max_duration leaves.

    None if that is given in a unit that does not say.
    """
    duration, rounds, now = state.max_duration, dataset.rounds, state.timestamp
    samples_per = {
        TimeUnit.BATCH: rounds.global_batch_size,
        TimeUnit.EPOCH: rounds.global_batch_size * rounds.round_batches,
        TimeUnit.SAMPLE: 1,
        TimeUnit.TOKEN: 1 / dataset.max_seq_len,
    }
    if duration is None or duration.unit not in samples_per:
        return None
    left = (duration.value - now.get(duration.unit).value) * samples_per[duration.unit]
    if duration.unit == TimeUnit.EPOCH:
        left -= now.batch_in_epoch.value * rounds.global_batch_size
    return round(sum(rounds.used().values()) + max(left, 0))


def check_plan(dataset: DynamicTextDataset, state: State, fixed: bool) -> None:
    """Compares the planned steps with the samples there are.

    Args:
        dataset (DynamicTextDataset): The training data.
        state (State): Holds max_duration.
        fixed (bool): Whether the weights stay as they are, so that every domain's need is known.

    Raises:
        ValueError: If ``max_passes`` cannot be kept: all domains in use are too small together, or one of fixed weight
            is, or one is used up in the first round already, before there is anything to update.
    """
    samples, rounds, limit = planned_samples(dataset, state), dataset.rounds, dataset.max_passes
    if samples is None:
        return
    if not any(rounds.used().values()):
        first = min(samples, rounds.global_batch_size * rounds.round_batches)
        check_samples(rounds.initial_weights, rounds.sizes, first, limit)
    needed = check_samples(rounds.initial_weights, rounds.sizes, samples, limit if fixed else None)
    there = sum(size for name, size in rounds.sizes.items() if rounds.initial_weights[name] > 0)
    check_samples({'all domains in use': 1.0}, {'all domains in use': there}, samples, limit)
    much = {name: round(count, 1) for name, count in needed.items() if count > (limit or USUAL_PASSES)}
    if much:
        log.warning('%d samples at the initial weights go through these domains so many times: %s.', samples, much)
    log.info('Planned passes at the initial weights: %s', {name: round(count, 3) for name, count in needed.items()})


def check_round_length(dataset: DynamicTextDataset, state: State) -> None:
    """Raises if Composer is to end its epochs before the rounds, which would serve their beginnings again and again.

    Raises:
        ValueError: Naming both lengths.
    """
    length = dataset.rounds.round_batches
    if state.dataloader_len is not None and int(state.dataloader_len) != length:
        raise ValueError(
            f'A mixing round has {length} batches, but an epoch is to have {int(state.dataloader_len)}. '
            f'Set round_batches to that, and leave train_subset_num_batches alone.'
        )


def weight_ceiling(dataset: DynamicTextDataset, ceiling: float) -> np.ndarray:
    """Greatest weight of each domain in the next round, float64 [domains] that sum to at least 1.

    ``max_passes`` is kept to the sample: what a domain is still owed (its carried remainder) counts as used. Where
    ``ceiling`` and ``max_passes`` do not go together, ``ceiling`` gives way, by as little as fills the round. If what
    is left of all domains together does not fill it, that is shared out in proportion. A first weight of 0 stays 0.
    """
    rounds, most = dataset.rounds, dataset.most_samples()
    alive = np.array(list(rounds.initial_weights.values())) > 0
    if most is None:
        return np.where(alive, ceiling, 0.0)
    end, samples = rounds.end(), rounds.global_batch_size * rounds.round_batches
    left = np.maximum(np.array(list(most.values())) - np.array(end.used) - np.array(end.carry) / UNITS, 0) * alive
    # Weights are rounded to parts of UNITS, and one part too many would be one sample too many.
    limit = np.maximum(left / samples - 2 / UNITS, 0)
    if limit.sum() < 1:
        log.warning(
            'max_passes=%s leaves %d samples of all domains, and a round has %d.',
            dataset.max_passes,
            left.sum(),
            samples,
        )
        return (left + 1e-9 * alive) / (left + 1e-9 * alive).sum()
    limit = np.minimum(limit, 1.0)
    if np.minimum(ceiling, limit).sum() >= 1:
        return np.minimum(ceiling, limit)
    # Equal weights up to the limits: no weights have a smaller maximum.
    weights = bound(np.ones(len(limit)), 0.0, limit)
    log.warning(
        'A ceiling of %s leaves no mixture within max_passes=%s: in the next round weights go up to %.4f.',
        ceiling,
        dataset.max_passes,
        weights.max(),
    )
    return weights
