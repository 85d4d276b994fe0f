"""From a round's samples in global order to what each worker of each rank serves: one of Streaming's batching methods.

Streaming asks in the first worker of a node and shares the answer with the others. That is why the mixture enters here:
everything about shards stays Streaming's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmshearing.compat.streaming import World, register_batching

__all__ = ['BATCHING', 'deal']

BATCHING = 'mixture'
"""Name of the batching method."""


def deal(samples: np.ndarray, world: World, batch_size: int) -> np.ndarray:
    """Deals global batches to ranks and workers so that every rank gets its part of each batch, in order.

    Rank r takes the r-th contiguous part of every global batch. A DataLoader takes a batch from each of its workers
    in turn, so worker w of a rank gets batches w, w + workers, w + 2 * workers ...

    Args:
        samples (np.ndarray): int64 [batches, ranks * batch_size].
        world (World): Ranks and workers to deal to.
        batch_size (int): Samples per batch and rank.

    Returns:
        np.ndarray: int64 [nodes, ranks per node, workers per rank, batches per worker, batch_size]; -1, which Streaming
        skips, is all that the workers with one batch less have in the last.
    """
    workers = world.workers_per_rank
    batches = -(-len(samples) // workers)
    dealt = np.full((batches * workers, world.num_ranks, batch_size), -1, np.int64)
    dealt[: len(samples)] = samples.reshape(-1, world.num_ranks, batch_size)
    dealt = dealt.reshape(batches, workers, world.num_ranks, batch_size).transpose(2, 1, 0, 3)
    return dealt.reshape(world.num_nodes, world.ranks_per_node, workers, batches, batch_size)


def _deal_round(dataset: Any, world: World, epoch: int, sample_in_epoch: int) -> np.ndarray:
    """The batching method; where the round is, the data set says, so what Streaming says of it is not used."""
    return deal(dataset.round_samples(), world, dataset.batch_size)


register_batching(BATCHING, _deal_round)
