"""Where training stands in the mixing rounds: the one place that is saved, resumed and updated.

Each rank's process keeps one ``MixtureRounds``; all of them see the same calls and hold the same numbers. It knows the
state at the start of the current round, how many of the round's batches have been handed out, and the weights for the
next round once they are known. Nothing else about the data is ever saved: everything before follows from it.

Two facts about Composer shape it. A checkpoint at the end of a round is written twice, before the round is closed
(counted as the last batch of the old one) and after (counted as sample 0 of the new one); both must continue alike, and
both lie between rounds: the old one keeps its shape until the trainer has closed it, the next has the loader's. And a
round that was left early is either started again (Composer skips what it has trained on) or, after a resumption,
continued (it does not skip).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llmshearing.data import mixture
from llmshearing.data.streams import resolve_proportions

__all__ = ['STATE_VERSION', 'MixtureRounds']

log = logging.getLogger(__name__)

STATE_VERSION = 2  # 2: fingerprints of the domains' shards


class MixtureRounds:
    """The mixture's state through the rounds of a training run.

    Args:
        sizes (Mapping[str, int]): Samples by domain.
        proportions (Mapping[str, float] | None): Initial weights by domain, need not sum to 1; ``None`` takes the
            sizes.
        round_batches (int): Global batches in a round.
        global_batch_size (int): Samples in a global batch.
        shuffle_seed (int): Seed of the order of samples.
        shuffle_block_size (int): Samples shuffled at a time within a domain.
        fingerprints (Mapping[str, str] | None): What tells a domain's shards from others of the same size, by domain;
            see :func:`~llmshearing.data.shard_checks.fingerprint`. Default: nothing.
        restart_on_new_data (bool): Where a checkpoint was trained on other data, start the data afresh instead of
            refusing.

    Attributes:
        shape (tuple[int, int]): global batches in the current round, and samples in each. Differs from what is given
            here only while a resumed run closes a round of another shape.

    Raises:
        ValueError: If the proportions do not fit the domains.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        proportions: Mapping[str, float] | None,
        round_batches: int,
        global_batch_size: int,
        shuffle_seed: int,
        shuffle_block_size: int,
        fingerprints: Mapping[str, str] | None = None,
        restart_on_new_data: bool = False,
    ) -> None:
        self.sizes = dict(sizes)
        self.restart_on_new_data = restart_on_new_data
        self.restarted = False  # from other data; what was learned from numbers of its samples is void
        self.fingerprints = [(fingerprints or {}).get(name, '') for name in self.sizes]
        self.round_batches = round_batches
        self.global_batch_size = global_batch_size
        self.shape = (round_batches, global_batch_size)
        self._order = {'shuffle_seed': shuffle_seed, 'shuffle_block_size': shuffle_block_size}
        self.state = mixture.initial_state(resolve_proportions(proportions, self.sizes))
        self._initial_weights = self.state.weights
        self.first_batch = 0
        self.batch = 0
        self._started = False
        self._resumed = False
        self._next_weights: tuple[int, ...] | None = None

    def identity(self) -> dict[str, Any]:
        """What every rank must have alike, by what it is of; see :mod:`~llmshearing.utils.ranks`."""
        shards, weights = self._named(self.fingerprints), self.initial_weights
        by_domain = {'samples': self.sizes, 'shards (their hash)': shards, 'weight': weights}
        values = {f'{what} of domain {name}': value for what, each in by_domain.items() for name, value in each.items()}
        return {**values, 'domains': self.domains, 'round_batches': self.round_batches, **self._order}

    @property
    def domains(self) -> list[str]:
        """Names of the domains, in the order of all arrays."""
        return list(self.sizes)

    @property
    def finished(self) -> bool:
        """Whether the last batch of the current round has been handed out."""
        return self._started and self.batch == self.shape[0]

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the current round."""
        return self._named(mixture.to_fractions(self.state.weights))

    @property
    def initial_weights(self) -> dict[str, float]:
        """Weights the run began with, also where a resumed run's configuration now gives others."""
        return self._named(mixture.to_fractions(self._initial_weights))

    @property
    def next_weights(self) -> dict[str, float] | None:
        """Weights set for the next round, or None if none have been set."""
        return None if self._next_weights is None else self._named(mixture.to_fractions(self._next_weights))

    def set_next_weights(self, weights: Mapping[str, float]) -> None:
        """Sets the weights from the next round that starts on.

        Args:
            weights (Mapping[str, float]): Weight of every domain, need not sum to 1.

        Raises:
            ValueError: If they do not fit the domains.
        """
        parts = mixture.quantize(resolve_proportions(weights, self.sizes))
        if self._started or self.batch:
            self._next_weights = parts
        else:
            self.state = mixture.with_weights(self.state, parts)
            self._initial_weights = parts if self.state.round == 0 else self._initial_weights

    def used(self) -> dict[str, int]:
        """Samples of each domain handed out since the start of training."""
        return self._named(mixture.round_counts(self.state, self.batch, self.shape[1])[1].used)

    def start(self) -> None:
        """Begins the round that is due: the next one, or what is left of the current one."""
        if self.finished:
            self.state, self._next_weights, self.batch = self._after(), None, 0
            self.shape = (self.round_batches, self.global_batch_size)
        elif self._started and not self._resumed:
            self.batch = 0
        self._started = True
        self.first_batch = self.batch

    def end(self) -> mixture.MixtureState:
        """The state at the end of the current round, before any change of weights."""
        return mixture.round_counts(self.state, *self.shape)[1]

    def _after(self) -> mixture.MixtureState:
        end = self.end()
        return end if self._next_weights is None else mixture.with_weights(end, self._next_weights)

    def state_dict(self, batch: int) -> dict[str, Any]:
        """What is needed to continue after ``batch`` batches of the current round.

        The keys are always the same; every value is a number, a string or a list of one entry per domain.
        """
        state, next_weights, shape = self.state, self._next_weights, self.shape
        if batch == 0 and self.finished:
            state, next_weights, shape = self._after(), None, (self.round_batches, self.global_batch_size)
        return {
            'version': STATE_VERSION,
            'domains': self.domains,
            'sizes': list(self.sizes.values()),
            'fingerprints': list(self.fingerprints),
            **self._order,
            'round_batches': shape[0],
            'global_batch_size': shape[1],
            'round': state.round,
            'batch_in_round': batch,
            'used': list(state.used),
            'carry': list(state.carry),
            'weights': list(state.weights),
            'next_weights': list(next_weights or ()),
            'initial_weights': list(self._initial_weights),
        }

    def load_state_dict(self, obj: Mapping[str, Any]) -> None:
        """Continues from the result of ``state_dict``.

        With ``restart_on_new_data``, other domains, sizes, shards or order of samples begin at their first sample, but
        the round ends where it would have; what the old data served of it counts as used. The weights go on if the
        domains are the same, else they are the initial ones.

        Raises:
            ValueError: If it is no such result, or was taken with other domains, sizes or order of samples, or within
                a round of another shape (between rounds, length and batch size may change).
        """
        if not isinstance(obj, Mapping) or obj.get('version') != STATE_VERSION or 'carry' not in obj:
            raise ValueError(
                f'The checkpoint holds no dynamic_text state of version {STATE_VERSION} but '
                f'{_shorten(obj)}. Resume with the loader and version that wrote it.'
            )
        now = self.state_dict(0) | {'round_batches': self.round_batches, 'global_batch_size': self.global_batch_size}
        shape = (obj['round_batches'], obj['global_batch_size'])
        for key in ('round_batches', 'global_batch_size') if 0 < obj['batch_in_round'] < shape[0] else ():
            if obj[key] != now[key]:
                raise ValueError(
                    f'The checkpoint was taken in the middle of a round, {obj["batch_in_round"]} batches '
                    f'in, with {key}={obj[key]}, but now it is {now[key]}. Set it back, or resume from a '
                    f'checkpoint between rounds.'
                )
        changes = self._describe_changes(obj, now)
        if changes and not self.restart_on_new_data:
            raise ValueError(
                f'{changes} To continue exactly, set it back; to go on with the data as it is now, from its '
                f'first sample, set restart_on_new_data: true in train_loader.dataset.'
            )
        self.first_batch = self.batch = obj['batch_in_round']
        self.shape = shape if self.batch else (self.round_batches, self.global_batch_size)
        self._started, self._resumed = False, True
        if obj['domains'] == self.domains:
            weights, self._initial_weights = tuple(obj['weights']), tuple(obj['initial_weights'])
            self._next_weights = tuple(obj['next_weights']) or None
        else:
            weights = self._initial_weights
            self._next_weights = weights if self.batch == self.shape[0] else None  # that round has been evaluated
        used, carry = obj['used'], obj['carry']
        if changes:
            log.warning('%s The data starts afresh.', changes)
            used = carry = [0] * len(self.sizes)
            self.restarted = True
        self.state = mixture.MixtureState(obj['round'], tuple(used), tuple(carry), weights)

    def _describe_changes(self, obj: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        """A sentence about what the data of a checkpoint has else than this, empty if nothing."""
        for key in ('domains', 'sizes', *self._order):
            if obj[key] != now[key]:
                return f'The checkpoint was taken with {key}={_shorten(obj[key])}, but now it is {_shorten(now[key])}.'
        others = [
            name
            for name, own, saved in zip(self.sizes, self.fingerprints, obj['fingerprints'], strict=True)
            if own != saved
        ]
        return (
            f'The checkpoint was trained on other shards of {", ".join(others)}: as many samples, but not the same.'
            if others
            else ''
        )

    def _named(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.sizes, values, strict=True))


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else text[:200] + ' ...'
