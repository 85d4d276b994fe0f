"""The data set of ``dynamic_text``: several domains, in a mixture that changes between rounds and resumes exactly.

One dataset epoch is one mixing round. The process of each rank knows where training stands (``MixtureRounds``: a few
numbers per domain) and, before a round starts, writes it into shared memory; the workers serve the round from there.
So nothing of an old mixture is ever prefetched, with persistent workers either, and the order of samples never depends
on who computes it. Everything about shards (download, cache, hashes, read-ahead, threads) is Streaming's: the mixture
enters as one more of its batching methods (:mod:`llmshearing.data.dealing`).

Composer's epochs count rounds, so durations are best given in batches (``ba``).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed
from llmfoundry.data.text_data import StreamingTextDataset
from transformers import PreTrainedTokenizerBase

from llmshearing.compat.streaming import (
    PlacedByItself,
    ToldOfFailures,
    distributed,
    parallel_world,
    rank_world,
    run_number,
)
from llmshearing.data import mixture
from llmshearing.data.dealing import BATCHING
from llmshearing.data.fingerprint import check_tokenizer, vocabulary_size
from llmshearing.data.mds import tokens_of
from llmshearing.data.packing import packed_stream
from llmshearing.data.rounds import MixtureRounds
from llmshearing.data.settings import check_numbers
from llmshearing.data.shard_checks import (
    check_stored,
    check_teacher,
    check_tokens,
    fingerprint,
    name_sample,
    naming_sample,
    verify_shard,
)
from llmshearing.data.shared_order import shared_order, starting
from llmshearing.data.stored_teacher import TeacherNote, check_same_teacher, check_vocabulary, read_column, read_note
from llmshearing.data.streams import DomainConfig, build_domain_streams, read_proportions, stream_folder, stream_places
from llmshearing.utils.ranks import raised_together, refuse_differences

__all__ = ['DynamicTextDataset']

log = logging.getLogger(__name__)


class DynamicTextDataset(ToldOfFailures, PlacedByItself, StreamingTextDataset):
    """Tokens of several domains, mixed by weights that may change after every round.

    Args:
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer.
        max_seq_len (int): Tokens per sample; data of another length is refused.
        domains (DomainConfig): Names, or a mapping from name to settings of its ``Stream``; see
            ``build_domain_streams``.
        round_batches (int): Global batches in a mixing round.
        batch_size (int): Samples per batch and rank.
        local (str | None): Folder with one folder per domain.
        remote (str | None): The same layout at a remote place, if shards are to be fetched from there.
        split (str | None): Sub-folder of each domain's folder, if any.
        proportions (Mapping[str, float] | str | None): Initial mixture weights by domain, need not sum to 1, or the
            path of a JSON file ``{"proportions": {domain: weight}}``. Default: by size in samples.
        shuffle_seed (int): Seed of the order of samples.
        shuffle_block_size (int): Samples of a domain that are shuffled together, rounded up to whole shards. Larger
            mixes better, smaller needs fewer shards at a time.
        max_passes (float | None): Most times any domain is to be gone through, rounded up to whole samples; checked and
            kept by ``dynamic_batch_loading``, a warning without it. Default: no limit.
        restart_on_new_data (bool): Where a checkpoint was trained on other domains, shards or order of samples, go on
            with the data as it is now from its first sample, instead of refusing. Default: false.
        teacher (bool): Serve the column that ``llmshearing teach`` added; ``distillation: {stored: true}`` sets it.
            Default: false.
        **kwargs (Any): Streaming's own settings (``predownload``, ``cache_limit``, ``replication`` ...).

    Attributes:
        rounds (MixtureRounds): where training stands, and the place to set the weights of the next round.
        teacher (TeacherNote | None): what the data say of the teacher whose column is served, if one is.

    Raises:
        ValueError: If domains, weights, sequence length, token ids or the teacher's column do not fit, or are not the
            same on every rank.
    """

    batch_size: int  # Streaming's own may be None
    shuffle_block_size: int

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
        proportions: Mapping[str, float] | str | None = None,
        shuffle_seed: int = 9176,
        shuffle_block_size: int = 1 << 17,
        max_passes: float | None = None,
        restart_on_new_data: bool = False,
        teacher: bool = False,
        **kwargs: Any,
    ) -> None:
        own = {
            'max_seq_len': max_seq_len,
            'round_batches': round_batches,
            'shuffle_seed': shuffle_seed,
            'shuffle_block_size': shuffle_block_size,
        }
        check_numbers(kwargs | own | {'max_passes': max_passes})
        self.vocab_size = vocabulary_size(tokenizer)
        streams = build_domain_streams(domains, local, remote, split)
        check_tokenizer(tokenizer, stream_places(streams.values()))

        started_dist = distributed.maybe_init_dist()
        streams = {name: packed_stream(name, stream, tokenizer, max_seq_len) for name, stream in streams.items()}
        folders = [os.path.abspath(stream_folder(stream)) for stream in streams.values()]
        # The first rank of each node marks the run as alive and has the memory from which that node's workers are told.
        with starting(folders) as self._marker:
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
            if self._marker is not None:
                self._marker.set_number(run_number(self))
                self._order = shared_order(run_number(self), 2 + 3 * len(streams))
        if started_dist:
            torch.distributed.destroy_process_group()

        self.max_passes = max_passes
        with raised_together():  # a node's disk may hold something else
            shards = dict(zip(streams, self._by_domain(self.shards)))
            check_stored(shards, self.read_tokens, max_seq_len, self.vocab_size)
            notes = {name: read_note(stream_folder(stream)) for name, stream in zip(streams, self.streams)}
            self.teacher = self._open_teacher(notes, shards) if teacher else None
            self.rounds = MixtureRounds(
                sizes=dict(zip(streams, self.samples_per_stream.tolist(), strict=True)),
                proportions=read_proportions(proportions),
                round_batches=round_batches,
                global_batch_size=batch_size * parallel_world(self).num_ranks,
                shuffle_seed=shuffle_seed,
                shuffle_block_size=shuffle_block_size,
                fingerprints=self._fingerprints(notes),
                restart_on_new_data=restart_on_new_data,
            )
        refuse_differences(
            self.rounds.identity(), 'every node needs the same folders and the same proportions; copy those of rank 0'
        )
        self.batching_method = BATCHING
        self.length = round_batches * batch_size
        self._visited: set[int] = set()  # shards this process has read from: each is checked when it is first visited

    def _open_teacher(self, notes: Mapping[str, TeacherNote | None], shards: Mapping[str, Any]) -> TeacherNote:
        taught = check_same_teacher(notes)
        note = next(iter(taught.values()))
        check_vocabulary(note, self.tokenizer)
        part, parts = rank_world(self).rank_of_node, rank_world(self).ranks_per_node
        check_teacher(taught, shards, self.read_tokens, self.max_seq_len, part, parts)
        return note

    def _fingerprints(self, notes: Mapping[str, TeacherNote | None]) -> dict[str, str]:
        """Of the tokens alone, which a teacher's column does not change: a run may go over to taught data, and back."""
        return {
            name: fingerprint(shards) if note is None else note.data
            for (name, note), shards in zip(notes.items(), self._by_domain(self.shards))
        }

    def _by_domain(self, values: Any) -> list[Any]:
        """What there is one of for each shard, in parts, one for each domain."""
        return [
            values[begin : begin + count]
            for begin, count in zip(self.shard_offset_per_stream, self.shards_per_stream, strict=True)
        ]

    # In the process of each rank.

    def start_round(self) -> int:
        """Starts the round that is due, see ``MixtureRounds.start``, and tells the workers.

        Returns:
            int: Batches that are left in the round.
        """
        self.rounds.start()
        self._tell_of_passes()
        if self._marker is not None:
            state = self.rounds.state
            self._order[:] = np.array([state.round, self.rounds.batch, *state.used, *state.carry, *state.weights])
        return self.rounds.shape[0] - self.rounds.batch

    def most_samples(self) -> dict[str, int] | None:
        """Samples that may be used of each domain by ``max_passes``, None without that limit."""
        if self.max_passes is None:
            return None
        return {name: math.ceil(self.max_passes * size - 1e-9) for name, size in self.rounds.sizes.items()}

    def _tell_of_passes(self) -> None:
        if not rank_world(self).is_leader:
            return
        now, end, most = self.rounds.state, self.rounds.end(), self.most_samples()
        for (name, size), before, after in zip(self.rounds.sizes.items(), now.used, end.used, strict=True):
            if after // size > before // size:
                level = logging.INFO if before >= size else logging.WARNING  # the first time, text is seen again
                log.log(level, 'Mixing round %d goes over to pass %d of domain %s.', now.round, after // size + 1, name)
            if most is not None and before <= most[name] < after:
                log.warning(
                    'Mixing round %d goes through domain %s more than max_passes=%s times.',
                    now.round,
                    name,
                    self.max_passes,
                )

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """What is needed to continue after ``num_samples`` of the current round. Composer calls this on every rank.

        Args:
            num_samples (int): Samples trained on in this round, summed over all ranks as Composer does.
            from_beginning (bool): Whether they are counted from the start of the round, else from where this run began
                in it.

        Raises:
            ValueError: If that is within a global batch.
        """
        # Composer counts a sample on each of the ranks that share it.
        size = self.rounds.shape[1] * rank_world(self).num_ranks // parallel_world(self).num_ranks
        batch, rest = divmod(num_samples, size)
        if rest:
            raise ValueError(
                f'A checkpoint must lie between global batches of {size} samples, but the round stands at '
                f'{num_samples}.'
            )
        return self.rounds.state_dict(batch if from_beginning else self.rounds.first_batch + batch)

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Continues from ``state_dict``'s result, with any number of ranks and workers.

        Raises:
            ValueError: If it does not fit, see ``MixtureRounds.load_state_dict``.
        """
        configured = self.rounds.initial_weights
        self.rounds.load_state_dict(obj)
        if self.rounds.initial_weights != configured and rank_world(self).is_leader:
            log.warning(
                'The run began with proportions %s and goes on from where its mixture stands, %s; the '
                'proportions given now, %s, are for new runs.',
                self.rounds.initial_weights,
                self.rounds.weights,
                configured,
            )

    # In the workers.

    def _read_order(self) -> tuple[mixture.MixtureState, int]:
        """The state at the start of the round to serve, and the first of its batches to serve."""
        number, batch, *rest = self._order[:].tolist()
        k = len(self.streams)
        if not any(rest[2 * k :]):
            raise RuntimeError('No mixing round has been started: iterate the data set through a DynamicTextLoader.')
        return mixture.MixtureState(number, tuple(rest[:k]), tuple(rest[k : 2 * k]), tuple(rest[2 * k :])), batch

    def find_place(self) -> tuple[int, int]:
        """Where to start: always where the rank's process says."""
        state, batch = self._read_order()
        return state.round, batch * self.rounds.global_batch_size

    def round_samples(self) -> np.ndarray:
        """Samples still to serve in the round, int64 [batches, global batch], in global order."""
        state, batch = self._read_order()
        samples = mixture.round_samples(
            state,
            self.rounds.round_batches,
            self.rounds.global_batch_size,
            self._by_domain(self.samples_per_shard),
            self.shuffle_seed,
            self.shuffle_block_size,
        )
        return samples[batch:]

    def __getitem__(self, idx: int) -> Mapping[str, Any] | torch.Tensor:
        shard, number = self.spanner[idx]
        domain = self.stream_per_shard[shard]
        if shard not in self._visited:
            stream = self.streams[domain]
            if stream.validate_hash and not stream.remote:
                verify_shard(self.shards[shard], stream.validate_hash)
            self._visited.add(shard)
        sample = super(StreamingTextDataset, self).__getitem__(idx)  # llm-foundry's own would cut what is too long
        place = (f'Domain {self.rounds.domains[domain]!r}', self.shards[shard], number)
        with naming_sample(*place):
            tokens = self.read_tokens(sample)
            check_tokens(tokens, self.max_seq_len, self.vocab_size)
        served = torch.from_numpy(tokens.astype(np.int64))
        if self.teacher is None:
            return served
        column = read_column(sample, tokens, self.teacher, partial(name_sample, *place))
        return {'tokens': served, 'teacher': column}

    def read_tokens(self, sample: Mapping[str, Any]) -> np.ndarray:
        """Token ids of a stored sample, whichever way they are stored."""
        return tokens_of(sample, self.token_encoding_type)
