"""Which sample comes where: a mixture of domains as a pure function of a few integers.

The order of samples depends only on the seed, the history of weights and the global sample index, never on ranks,
workers or the process that asks. A *mixing round* is the samples between two changes of the weights; it is made of
global batches of equal size. Decisions:

- **Integers only.** A weight is a number of ``UNITS`` parts; the carried remainder is counted in the same parts. Sums
  are exact, so ten thousand rounds leave no rounding error and the state is the same on every machine.
- **No coin flips.** Every global batch gets its ideal share plus what earlier batches owed (largest remainder, carried
  forward). Where whole samples leave a choice, the domain whose debt comes due first is served first (earliest
  deadline first); going by the largest remainder alone can leave a domain more than a sample behind, as with weights
  30 : 30 : 3 : 1 : 1 and one sample at a time. See ``batch_counts`` for what is guaranteed.
- **A shuffle that needs no list.** Within a pass over a domain its shards are put in a seeded order and cut into
  blocks of whole shards; samples are shuffled within a block. Any stretch of the order is computed from its own blocks
  alone, and a block is all that a cache must hold at a time. The shuffle sorts hashes of the sample number: it depends
  on no library's random generator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

__all__ = [
    'GOLDEN',
    'UNITS',
    'MixtureState',
    'batch_counts',
    'check_samples',
    'domain_samples',
    'finalize64',
    'hash64',
    'initial_state',
    'quantize',
    'round_counts',
    'round_samples',
    'spread',
    'to_fractions',
    'with_weights',
]

UNITS = 1 << 40
"""Parts of a whole: weights are integers that sum to this. Leaves room for global batches of 2**22 samples in int64."""

GOLDEN = 0x9E3779B97F4A7C15
"""The step of SplitMix64."""


@dataclass(frozen=True)
class MixtureState:
    """Everything the order of samples depends on at the start of a mixing round, besides seed and sizes.

    Args:
        round (int): Index of the round that starts here.
        used (tuple[int, ...]): Samples of each domain used in all rounds before.
        carry (tuple[int, ...]): Ideal running total minus ``used`` for each domain, in 1/UNITS of a sample; sums to 0.
        weights (tuple[int, ...]): Mixture weights of this round, in 1/UNITS; sum to UNITS.
    """

    round: int
    used: tuple[int, ...]
    carry: tuple[int, ...]
    weights: tuple[int, ...]


def initial_state(weights: Sequence[float]) -> MixtureState:
    """The state before the first sample, for ``weights`` that need not be normalised."""
    zeros = (0,) * len(weights)
    return MixtureState(round=0, used=zeros, carry=zeros, weights=quantize(weights))


def quantize(weights: Sequence[float]) -> tuple[int, ...]:
    """Turns weights into integer parts that sum to ``UNITS`` exactly (largest remainder).

    Args:
        weights (Sequence[float]): One number per domain, not negative, at least one positive; need not sum to 1.

    Raises:
        ValueError: If a weight is negative or not finite, or none is positive.
    """
    values = [float(weight) for weight in weights]
    total = math.fsum(values)
    if not values or any(not math.isfinite(value) or value < 0 for value in values) or not 0 < total < math.inf:
        raise ValueError(f'Mixture weights must be finite, not negative and not all zero, but got {values}.')
    exact = [value / total * UNITS for value in values]
    parts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    missing = UNITS - sum(parts)
    for i in range(abs(missing)):
        parts[by_remainder[i % len(parts)]] += 1 if missing > 0 else -1
    return tuple(parts)


def to_fractions(weights: Sequence[int]) -> list[float]:
    """Integer weights as floats that sum to 1."""
    return [weight / UNITS for weight in weights]


def batch_counts(carry: np.ndarray, weights: np.ndarray, batch_size: int) -> np.ndarray:
    """How many samples of each domain one global batch gets.

    With q = carry + weights * batch_size, a domain gets floor(q) or ceil(q), never less than 0. The samples left over
    after the floors go to the domains that would otherwise be first to fall a whole sample behind.

    While the weights stay the same, the running total of every domain differs from its ideal by less than one sample
    after every batch, for any weights and batch size. After a change of weights this also holds if every domain is
    worth one sample per batch, and nearly always else; no rule that cannot see the future can promise more (a test
    shows why). A domain is never a whole sample ahead; one that falls behind catches up first.

    Args:
        carry (np.ndarray): int64 [domains], in 1/UNITS of a sample.
        weights (np.ndarray): int64 [domains], in 1/UNITS.
        batch_size (int): Samples in a global batch.

    Returns:
        np.ndarray: int64 [domains], sums to ``batch_size``.
    """
    quota = carry + weights * batch_size
    counts = np.maximum(quota // UNITS, 0)
    left = batch_size - int(counts.sum())
    if left == 0:
        return counts
    fraction = np.where(quota > 0, quota - counts * UNITS, 0)
    income = np.maximum(weights * batch_size, 1)
    if left > 0:
        deadline = -(-(UNITS - fraction) // income)
        order = np.lexsort((-fraction, deadline))
        order = order[fraction[order] > 0]
        counts[order[:left]] += 1
    else:
        # More debt is due than the batch has room for: serve what is owed longest, the others wait.
        counts = np.zeros_like(counts)
        for _ in range(batch_size):
            counts[np.argmax(quota - counts * UNITS)] += 1
    return counts


def round_counts(state: MixtureState, num_batches: int, batch_size: int) -> tuple[np.ndarray, MixtureState]:
    """Counts of every global batch of a round that starts at ``state``, and the state after them.

    Returns:
        tuple[np.ndarray, MixtureState]: int64 [num_batches, domains], and the state at the start of the next round,
        with the weights unchanged.
    """
    weights = np.array(state.weights, np.int64)
    carry = np.array(state.carry, np.int64)
    counts = np.empty((num_batches, len(weights)), np.int64)
    for batch in range(num_batches):
        counts[batch] = batch_counts(carry, weights, batch_size)
        carry = carry + weights * batch_size - counts[batch] * UNITS
    used = np.array(state.used, np.int64) + counts.sum(0)
    after = replace(state, round=state.round + 1, used=tuple(used.tolist()), carry=tuple(carry.tolist()))
    return counts, after


def with_weights(state: MixtureState, weights: Sequence[int]) -> MixtureState:
    """The same state with other (integer) weights for the round that starts there."""
    if len(weights) != len(state.weights) or sum(weights) != UNITS or min(weights) < 0:
        raise ValueError(f'Expected {len(state.weights)} integer weights that sum to {UNITS}, but got {list(weights)}.')
    return replace(state, weights=tuple(int(weight) for weight in weights))


def spread(counts: np.ndarray, first_sample: int, seed: int) -> np.ndarray:
    """Where in each global batch the samples of each domain stand.

    The samples of a domain are spaced evenly over the batch from a random start, so that any contiguous part of a
    batch (a rank, a micro-batch) holds each domain in proportion, to within about one sample.

    Args:
        counts (np.ndarray): int64 [num_batches, domains], rows of equal sum.
        first_sample (int): Global index of the first sample of the first batch.
        seed (int): Seed of the run.

    Returns:
        np.ndarray: int64 [num_batches, batch_size] of domain numbers.
    """
    num_batches, num_domains = counts.shape
    batch_size = int(counts[0].sum())
    flat = counts.ravel()
    cell = np.repeat(np.arange(flat.size), flat)
    position = np.arange(cell.size) - np.repeat(flat.cumsum() - flat, flat)
    batch, domain = np.divmod(cell, num_domains)
    start = hash64((first_sample + batch * batch_size).astype(np.uint64), seed, 1, domain.astype(np.uint64))
    place = (position + (start >> np.uint64(11)) * 2.0**-53) / flat[cell]
    order = np.lexsort((place, batch))
    return domain[order].reshape(num_batches, batch_size)


def domain_samples(shard_sizes: np.ndarray, start: int, stop: int, seed: int, domain: int, block: int) -> np.ndarray:
    """Samples number ``start`` to ``stop`` of a domain, counted over all passes.

    Args:
        shard_sizes (np.ndarray): int64 [shards], samples in each shard of the domain, in the order of its index.
        start (int): First sample wanted, counted since the start of training.
        stop (int): End of the samples wanted.
        seed (int): Seed of the run.
        domain (int): Number of the domain.
        block (int): Samples to shuffle at a time, rounded up to whole shards.

    Returns:
        np.ndarray: int64 [stop - start], sample numbers within the domain. Each pass holds each sample once.
    """
    size = int(shard_sizes.sum())
    parts = []
    while start < stop:
        number, begin = divmod(start, size)
        end = min(begin + stop - start, size)
        parts += _pass_samples(shard_sizes, begin, end, _hash_key(seed, 2, domain, number), block)
        start += end - begin
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _pass_samples(shard_sizes: np.ndarray, begin: int, end: int, key: int, block: int) -> list[np.ndarray]:
    """Positions ``begin`` to ``end`` of one pass, block by block; only the blocks that overlap are shuffled."""
    shards = np.argsort(hash64(np.arange(len(shard_sizes), dtype=np.uint64), key), kind='stable')
    ends = shard_sizes[shards].cumsum()
    offsets = shard_sizes.cumsum() - shard_sizes
    parts, first, done = [], 0, 0
    while done < end:
        last = min(int(np.searchsorted(ends, done + block)) + 1, len(shards))
        stop = int(ends[last - 1])
        if begin < stop:
            chosen: list[int] = shards[first:last].tolist()
            samples = np.concatenate([np.arange(offsets[i], offsets[i] + shard_sizes[i]) for i in chosen])
            samples = samples[np.argsort(hash64(samples.astype(np.uint64), key, 1), kind='stable')]
            parts.append(samples[max(begin - done, 0) : end - done])
        first, done = last, stop
    return parts


def round_samples(
    state: MixtureState, num_batches: int, batch_size: int, shard_sizes: Sequence[np.ndarray], seed: int, block: int
) -> np.ndarray:
    """All samples of a mixing round in global order.

    Args:
        state (MixtureState): State at the start of the round.
        num_batches (int): Global batches in the round.
        batch_size (int): Samples in a global batch.
        shard_sizes (Sequence[np.ndarray]): Per domain, int64 [shards] with the samples in each shard.
        seed (int): Seed of the run.
        block (int): Samples to shuffle at a time, see ``domain_samples``.

    Returns:
        np.ndarray: int64 [num_batches, batch_size] of sample numbers, with the domains' samples numbered one domain
        after the other (domain 0 first).
    """
    counts, after = round_counts(state, num_batches, batch_size)
    domain = spread(counts, sum(state.used), seed).ravel()
    samples = np.empty(domain.size, np.int64)
    offset = 0
    for number, sizes in enumerate(shard_sizes):
        start, stop = state.used[number], after.used[number]
        samples[domain == number] = offset + domain_samples(sizes, start, stop, seed, number, block)
        offset += int(sizes.sum())
    return samples.reshape(num_batches, batch_size)


def check_samples(
    weights: Mapping[str, float], sizes: Mapping[str, int], samples: int, max_passes: float | None = None
) -> dict[str, float]:
    """Passes over each domain that a run of ``samples`` at fixed ``weights`` needs.

    Args:
        weights (Mapping[str, float]): Mixture weight by domain; need not sum to 1.
        sizes (Mapping[str, int]): Samples in each domain.
        samples (int): Samples the run takes in all.
        max_passes (float | None): Most passes allowed over any domain; ``None`` allows any number.

    Returns:
        dict[str, float]: Passes by domain.

    Raises:
        ValueError: If a domain needs more than ``max_passes``.
    """
    total = math.fsum(weights.values())
    needed = {name: samples * weights[name] / total / sizes[name] for name in weights}
    over = {name: round(count, 2) for name, count in needed.items() if max_passes is not None and count > max_passes}
    if over:
        raise ValueError(
            f'{samples} samples at these weights take {over} passes over domains of '
            f'{ {name: sizes[name] for name in over} } samples, but max_passes is {max_passes}. '
            f'Train for fewer steps, lower their weights, prepare more data, or raise max_passes.'
        )
    return needed


def _hash_key(*words: int) -> int:
    """One 64-bit key from several numbers, see ``hash64``."""
    return int(hash64(np.zeros(1, np.uint64), *words)[0])


def hash64(values: np.ndarray, *words: int | np.ndarray) -> np.ndarray:
    """Hashes each of ``values`` together with ``words`` to 64 bits (the finalizer of SplitMix64, once per word).

    Args:
        values (np.ndarray): uint64 array.
        words (int | np.ndarray): Numbers, or uint64 arrays that broadcast with ``values``.

    Returns:
        np.ndarray: uint64 array.
    """
    mixed = values
    for word in (0, *words):
        mixed = mixed ^ (word if isinstance(word, np.ndarray) else np.uint64(word & 0xFFFFFFFFFFFFFFFF))
        mixed = finalize64(mixed + np.uint64(GOLDEN))
    return mixed


def finalize64(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: uint64 to uint64, so that near numbers become far ones."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
