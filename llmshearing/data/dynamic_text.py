"""``dynamic_text``: text from several domains in a mixture that changes between rounds, and resumes exactly.

One dataset epoch is one mixing round. The process of each rank holds the mixture's state (``mixture.MixtureState``: a
few integers per domain) and, before a round starts, puts it into shared memory; the workers start the round from there.
So nothing of an old mixture is ever prefetched, persistent workers included, and the order of samples never depends on
who computes it. Everything about shards (download, cache, hashes, read-ahead, dealing samples to ranks and workers)
is Streaming's: the mixture enters as one more of its batching methods.

The state is kept in one place, here: positions, weights of the round, and weights set for the next one. A checkpoint
taken anywhere, also between an update and the round it is for, therefore holds a consistent whole. Composer's epochs
count rounds, so durations are best given in batches (``ba``).
"""
from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from composer.core.data_spec import DataSpec
from llmfoundry import registry
from llmfoundry.data.text_data import StreamingTextDataset
from llmfoundry.utils.registry_utils import construct_from_registry
from streaming.base.batching import batching_methods
from streaming.base.shared import SharedArray, _get_path
from streaming.base.world import World
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llmshearing.data import mixture
from llmshearing.data.domain_streams import (
    DomainConfig,
    build_domain_streams,
    check_tokens,
    first_local_sample,
    resolve_proportions,
)

__all__ = ['DynamicTextDataset', 'DynamicTextLoader', 'build_dynamic_text_dataloader']

log = logging.getLogger(__name__)

STATE_VERSION = 1


class DynamicTextDataset(StreamingTextDataset):
    """Tokens of several domains, mixed by weights that may change after every round.

    Args:
        tokenizer: the model's tokenizer.
        max_seq_len: tokens per sample; data of another length is refused.
        domains: names, or a mapping from name to settings of its ``Stream``; see ``build_domain_streams``.
        round_batches: global batches in a mixing round.
        batch_size: samples per batch and rank.
        local: folder with one folder per domain.
        remote: the same layout at a remote place, if shards are to be fetched from there.
        split: sub-folder of each domain's folder, if any.
        proportions: initial mixture weights, need not sum to 1. Default: by size in samples.
        shuffle_seed: seed of the order of samples.
        shuffle_block_size: samples of a domain that are shuffled together, rounded up to whole shards. Larger mixes
            better, smaller needs fewer shards at a time.
        max_passes: warn when a domain is gone through more often than this.
        **kwargs: Streaming's own settings (``predownload``, ``cache_limit``, ``replication`` ...).

    Raises:
        ValueError: if domains, weights, sequence length or token ids do not fit.
    """

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_seq_len: int,
        domains: DomainConfig,
        round_batches: int,
        batch_size: int,
        local: str | None = None,
        remote: str | None = None,
        split: str | None = None,
        proportions: Mapping[str, float] | None = None,
        shuffle_seed: int = 9176,
        shuffle_block_size: int = 1 << 17,
        max_passes: float | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (('round_batches', round_batches), ('shuffle_block_size', shuffle_block_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'`{name}` must be a positive whole number, but got {value!r}.')
        streams = build_domain_streams(domains, local, remote, split)
        super().__init__(
            tokenizer=tokenizer,
            max_seq_len=max_seq_len,
            streams=list(streams.values()),
            batch_size=batch_size,
            shuffle=True,
            shuffle_seed=shuffle_seed,
            shuffle_block_size=shuffle_block_size,
            **kwargs,
        )
        self.domains = list(streams)
        self.sizes = [int(size) for size in self.samples_per_stream]
        self.round_batches = round_batches
        self.max_passes = max_passes
        self.global_batch_size = batch_size * self._parallel_rank_world.num_ranks
        self.vocab_size = len(tokenizer)
        self.batching_method = 'mixture'
        self.length = round_batches * batch_size
        self.shard_sizes = [
            self.samples_per_shard[begin:begin + count]
            for begin, count in zip(self.shard_offset_per_stream, self.shards_per_stream, strict=True)
        ]
        for number, domain in enumerate(self.domains):
            sample = first_local_sample(self, number)
            if sample is not None and 'tokens' in sample:
                check_tokens(self._read_tokens(sample), domain, max_seq_len, self.vocab_size)

        weights = resolve_proportions(proportions, dict(zip(self.domains, self.sizes, strict=True)))
        # The rank's own view: the state at the start of the current round, batches of it that are done or handed out,
        # whether it has started, and the weights of the next round if they have been set.
        self._state = mixture.initial_state(weights)
        self._batch = 0
        self._started = False
        self._resumed = False
        self._next_weights: tuple[int, ...] | None = None
        # The workers' view: what to serve, written by the first rank of each node before a round starts.
        self._order = SharedArray(2 + 3 * len(self.domains), np.int64, _get_path(self._shm_prefix_int, 'mixture'))
        self._publish()

    # What a callback reads and sets.

    @property
    def round(self) -> int:
        """Index of the current mixing round."""
        return self._state.round

    @property
    def round_finished(self) -> bool:
        """Whether the last batch of the current round has been handed out."""
        return self._batch == self.round_batches

    @property
    def weights(self) -> dict[str, float]:
        """Mixture weight of each domain in the current round."""
        return dict(zip(self.domains, mixture.to_fractions(self._state.weights), strict=True))

    @property
    def next_weights(self) -> dict[str, float] | None:
        """Weights set for the next round, or None if none have been set."""
        if self._next_weights is None:
            return None
        return dict(zip(self.domains, mixture.to_fractions(self._next_weights), strict=True))

    def set_next_weights(self, weights: Mapping[str, float]) -> None:
        """Sets the mixture from the next round that starts on. To be called alike on every rank.

        Args:
            weights: weight of every domain, need not sum to 1.
        """
        sizes = dict(zip(self.domains, self.sizes, strict=True))
        parts = mixture.quantize(resolve_proportions(weights, sizes))
        if self._started or self._batch:
            self._next_weights = parts
        else:
            self._state = mixture.with_weights(self._state, parts)

    def used(self) -> dict[str, int]:
        """Samples of each domain handed out since the start of training, on all ranks."""
        _, after = mixture.round_counts(self._state, self._batch, self.global_batch_size)
        return dict(zip(self.domains, after.used, strict=True))

    def passes(self) -> dict[str, float]:
        """Times each domain has been gone through, with fractions."""
        return {name: count / size for (name, count), size in zip(self.used().items(), self.sizes, strict=True)}

    # Rounds, in the process of the rank.

    def start_round(self) -> int:
        """Moves to the round that is due and tells the workers. Called before the loader is iterated.

        A finished round is followed by the next. A round that was left early is started again, as Composer then skips
        what it has trained on; after a resumption, Composer does not skip and the round continues.

        Returns:
            Batches that are left in the round.
        """
        if self._started and self.round_finished:
            _, after = mixture.round_counts(self._state, self.round_batches, self.global_batch_size)
            self._state = after if self._next_weights is None else mixture.with_weights(after, self._next_weights)
            self._next_weights = None
            self._batch = 0
        elif self._started and not self._resumed:
            self._batch = 0
        self._started = True
        self._warn_of_passes()
        self._publish()
        return self.round_batches - self._batch

    def count_batch(self) -> None:
        """Notes that a batch has been handed to the trainer."""
        self._batch += 1

    def _warn_of_passes(self) -> None:
        if self.max_passes is None:
            return
        _, after = mixture.round_counts(self._state, self.round_batches, self.global_batch_size)
        for name, size, before, now in zip(self.domains, self.sizes, self._state.used, after.used, strict=True):
            if before <= self.max_passes * size < now:
                log.warning('Mixing round %d takes domain %s past max_passes=%s (%d samples of %d).',
                            self._state.round, name, self.max_passes, now, size)

    def _publish(self) -> None:
        if self._unique_rank_world.is_local_leader:
            state = self._state
            self._order[:] = np.array([state.round, self._batch, *state.used, *state.carry, *state.weights], np.int64)

    # Rounds, in the workers.

    def _read_order(self) -> tuple[mixture.MixtureState, int]:
        """The state at the start of the round to serve, and the first batch of it to serve."""
        number, batch, *rest = self._order[:].tolist()
        k = len(self.domains)
        return mixture.MixtureState(number, tuple(rest[:k]), tuple(rest[k:2 * k]), tuple(rest[2 * k:])), batch

    def _resume(self, world: World, epoch: int) -> tuple[int, int]:
        """Streaming asks here, in each worker, where to start: always where the rank's process says."""
        del world, epoch
        state, batch = self._read_order()
        return state.round, batch * self.global_batch_size

    def round_samples(self) -> np.ndarray:
        """Samples still to serve in the round, int64 [batches, global batch], in global order."""
        state, batch = self._read_order()
        samples = mixture.round_samples(state, self.round_batches, self.global_batch_size, self.shard_sizes,
                                        self.shuffle_seed, self.shuffle_block_size)
        return samples[batch:]

    def _read_tokens(self, sample: Mapping[str, Any]) -> np.ndarray:
        tokens = sample['tokens']
        return tokens if isinstance(tokens, np.ndarray) else np.frombuffer(tokens, self.token_encoding_type)

    def _read_binary_tokenized_sample(self, sample: dict[str, Any]) -> torch.Tensor:
        tokens = self._read_tokens(sample)
        if len(tokens) != self.max_seq_len or int(tokens.max()) >= self.vocab_size:
            check_tokens(tokens, '(see the data)', self.max_seq_len, self.vocab_size)
        return torch.from_numpy(tokens.astype(np.int64))

    # Checkpoints. Called by Composer on every rank.

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The state to continue from after ``num_samples`` of the current round.

        Args:
            num_samples: samples trained on in this round, counted over all ranks (as Composer does).
            from_beginning: whether they are counted from the start of the round, else from where this run began in it.

        Returns:
            Plain numbers, strings and lists; always the same keys, a few numbers per domain.
        """
        batch, rest = divmod(num_samples, self.batch_size * self._unique_rank_world.num_ranks)
        if rest:
            raise ValueError(f'Checkpoints are taken between global batches, but {num_samples} samples are not a '
                             f'multiple of {self.batch_size * self._unique_rank_world.num_ranks}.')
        if not from_beginning:
            batch += self._read_order()[1]
        state, next_weights = self._state, self._next_weights
        if batch == 0 and self._started and self.round_finished:
            # The trainer has closed the round (its count is back at 0) and not begun the next.
            _, state = mixture.round_counts(state, self.round_batches, self.global_batch_size)
            state = state if next_weights is None else mixture.with_weights(state, next_weights)
            next_weights = None
        return {
            'version': STATE_VERSION,
            'domains': list(self.domains),
            'sizes': list(self.sizes),
            'shuffle_seed': self.shuffle_seed,
            'shuffle_block_size': self.shuffle_block_size,
            'round': state.round,
            'batch_in_round': batch,
            'round_batches': self.round_batches,
            'global_batch_size': self.global_batch_size,
            'used': list(state.used),
            'carry': list(state.carry),
            'weights': list(state.weights),
            'next_weights': list(next_weights or []),
        }

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Continues from ``state_dict``'s result, with any number of ranks and workers.

        Raises:
            ValueError: if it is not a state of this data set, or the round it is in has another shape.
        """
        if not isinstance(obj, Mapping) or obj.get('version') != STATE_VERSION or 'used' not in obj:
            raise ValueError(f'The checkpoint holds no dynamic_text state of version {STATE_VERSION}, but {obj!r}. To '
                             f'start the data afresh, set load_ignore_keys to ["state/dataset_state"].')
        expected = self.state_dict(0, True)
        fixed = ['domains', 'sizes', 'shuffle_seed', 'shuffle_block_size']
        if 0 < obj['batch_in_round']:
            fixed += ['round_batches', 'global_batch_size']
        for key in fixed:
            if obj[key] != expected[key]:
                raise ValueError(f'The checkpoint was taken with {key}={obj[key]}, but now it is {expected[key]}. Use '
                                 f'the same value to continue exactly, or set load_ignore_keys to '
                                 f'["state/dataset_state"] to start the data afresh.')
        self._state = mixture.MixtureState(obj['round'], tuple(obj['used']), tuple(obj['carry']), tuple(obj['weights']))
        self._batch = obj['batch_in_round']
        self._next_weights = tuple(obj['next_weights']) or None
        self._started = False
        self._resumed = True
        self._publish()


def deal(samples: np.ndarray, world: World, batch_size: int) -> np.ndarray:
    """Deals global batches to ranks and workers so that every rank sees its part of each batch, in order.

    Rank r takes the r-th contiguous part of every global batch. A DataLoader takes a batch from each of its workers
    in turn, so worker w of a rank gets batches w, w + workers, w + 2 * workers ...

    Args:
        samples: int64 [batches, ranks * batch_size].
        world: ranks and workers to deal to.
        batch_size: samples per batch and rank.

    Returns:
        int64 [nodes, ranks per node, workers per rank, batches per worker, batch_size]; -1 fills the last batch of
        the workers that have one less.
    """
    workers = world.workers_per_rank
    batches = -(-len(samples) // workers)
    dealt = np.full((batches * workers, world.num_ranks, batch_size), -1, np.int64)
    dealt[:len(samples)] = samples.reshape(-1, world.num_ranks, batch_size)
    dealt = dealt.reshape(batches, workers, world.num_ranks, batch_size).transpose(2, 1, 0, 3)
    return dealt.reshape(world.num_nodes, world.ranks_per_node, workers, batches, batch_size)


def generate_work_mixture_batching(
    dataset: DynamicTextDataset,
    world: World,
    epoch: int,
    sample_in_epoch: int,
) -> np.ndarray:
    """Streaming's hook for a batching method: the samples of a round, dealt to everyone."""
    del epoch, sample_in_epoch  # both are in the dataset's order
    return deal(dataset.round_samples(), world, dataset.batch_size)


batching_methods['mixture'] = generate_work_mixture_batching


class DynamicTextLoader(DataLoader):
    """A DataLoader that starts a mixing round each time it is iterated, and counts what it hands out."""

    dataset: DynamicTextDataset

    def __iter__(self) -> Iterator[Any]:
        if not self.dataset.start_round():
            return
        for batch in super().__iter__():
            self.dataset.count_batch()
            yield batch


_COLLATOR_KEYS = ('eos_token_id', 'bos_token_id', 'mlm_probability', 'override_eos_token_id_mismatch_error',
                  'override_bos_token_id_mismatch_error', 'seq_parallel_replication')
_REFUSED_KEYS = ('tokenizer', 'streams', 'batch_size', 'epoch_size', 'shuffle_algo', 'sampling_method', 'batching_method',
                 'sampling_granularity', 'partition_algo', 'num_canonical_nodes', 'stream_name', 'stream_config')


def dataset_keys() -> list[str]:
    """The keys that may stand below ``train_loader.dataset`` in a YAML."""
    known = [*inspect.signature(DynamicTextDataset).parameters, *inspect.signature(StreamingTextDataset).parameters]
    return sorted(set(known) - set(_REFUSED_KEYS) - {'kwargs'} | set(_COLLATOR_KEYS))


def build_dynamic_text_dataloader(
    tokenizer: PreTrainedTokenizerBase | None,
    device_batch_size: int | float,
    dataset: dict[str, Any],
    drop_last: bool = True,
    num_workers: int = 0,
    pin_memory: bool = True,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = True,
    timeout: int = 0,
) -> DataSpec:
    """Builds the ``dynamic_text`` loader from the ``train_loader`` section of an llm-foundry YAML.

    Args:
        tokenizer: the model's tokenizer.
        device_batch_size: samples per batch and rank.
        dataset: settings of ``DynamicTextDataset``, and ``eos_token_id``/``bos_token_id`` as in llm-foundry.
        drop_last: has no effect: a round is made of whole global batches.
        num_workers: processes that read for each rank; 0 reads in the rank's own process.
        pin_memory: as in ``DataLoader``.
        prefetch_factor: batches each worker reads ahead.
        persistent_workers: keep the workers from one round to the next.
        timeout: as in ``DataLoader``.

    Returns:
        DataSpec: the loader with llm-foundry's token counting.

    Raises:
        ValueError: for a key that is not known, or whatever does not fit; before training.
    """
    if tokenizer is None:
        raise ValueError('The dynamic_text loader needs a tokenizer, but got None.')
    unknown = sorted(set(dataset) - set(dataset_keys()) - {'shuffle'})
    if unknown:
        raise ValueError(f'Unknown keys {unknown} in train_loader.dataset. Known are: {dataset_keys()}.')
    config = dict(dataset)
    if not config.pop('shuffle', True):
        raise ValueError('dynamic_text always shuffles, but got shuffle=False. Remove it, or use the `text` loader.')
    config['replication'], batch_size = construct_from_registry(
        name='dataset_replication_validator',
        registry=registry.dataset_replication_validators,
        partial_function=False,
        kwargs={'dataset_cfg': config, 'tokenizer': tokenizer, 'device_batch_size': device_batch_size},
    )
    text_dataset = DynamicTextDataset(
        tokenizer=tokenizer,
        batch_size=batch_size,
        **{key: value for key, value in config.items() if key not in _COLLATOR_KEYS},
    )
    collate_fn, loader_batch_size = construct_from_registry(
        name='text_collator',
        registry=registry.collators,
        partial_function=False,
        kwargs={
            'dataloader_cfg': {'name': 'dynamic_text', 'dataset': config},
            'tokenizer': tokenizer,
            'dataset_batch_size': batch_size,
        },
    )
    loader = DynamicTextLoader(
        text_dataset,
        collate_fn=collate_fn,
        batch_size=loader_batch_size,
        drop_last=drop_last,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=persistent_workers and num_workers > 0,
        timeout=timeout,
    )
    return construct_from_registry(
        name='data_spec',
        registry=registry.data_specs,
        partial_function=False,
        kwargs={'dl': loader, 'dataset_cfg': config},
    )
