"""Updates the mixture of a ``dynamic_text`` loader from the evaluation losses, at the end of every mixing round.

Evaluators labelled with the domain names give the losses, at the interval of the rounds: no extra metric and no extra
forward pass. The weights themselves live in the data set's state (``MixtureRounds``), where the positions are; here is
only what a rule needs besides. Both are saved in the same checkpoint, so they always fit together.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.callbacks.dynamic_batch_loading import limits, updates
from llmshearing.callbacks.dynamic_batch_loading.eval_clock import EvalClock
from llmshearing.callbacks.dynamic_batch_loading.evaluators import match_evaluators, prepare_evaluation
from llmshearing.callbacks.dynamic_batch_loading.passes import (
    check_plan,
    check_round_length,
    planned_samples,
    weight_ceiling,
)
from llmshearing.callbacks.dynamic_batch_loading.references import check_references, read_reference_losses
from llmshearing.data.dynamic_text import DynamicTextDataset, DynamicTextLoader
from llmshearing.data.rounds import MixtureRounds
from llmshearing.metrics.names import EVAL_LOSS_METRIC, EVAL_SHARE, mixture_name
from llmshearing.utils.checks import check_integer, check_number
from llmshearing.utils.files import dump_json
from llmshearing.utils.paths import local_destination

__all__ = ['DynamicBatchLoading']

log = logging.getLogger(__name__)

STATE_VERSION = 2  # 2: names of the domains
FAR = 8  # a weight this many times its first, or its first this many times it, is warned of
USED_UP = (
    'max_passes leaves no more of it, or of others whose share it takes: prepare more data, train for fewer steps, or '
    'raise max_passes.'
)


class DynamicBatchLoading(Callback):
    """Re-weights the domains of the training data at the end of every mixing round.

    Args:
        reference_losses (Mapping[str, float] | str | None): Loss by domain to compare with, or the path of a JSON file
            ``{"reference_losses": {domain: loss}}``. Needed for ``sheared`` and ``sheared_unclipped``;
            ``dro`` predicts them where none are given.
        update (str): Name of the rule: ``sheared`` (default), ``sheared_unclipped``, ``constant``, ``ado`` or ``dro``,
            or another that is registered (``updates.py``).
        eta (float): Step size in the exponent of the ``sheared`` rules. Default 1, as in the paper.
        rho (float): How far ``dro`` goes from its base mixture, a chi-square divergence. Default 0.05.
        smoothing (float): Share of the weight spread evenly over the domains after each update. Default 1e-4, as in the
            paper.
        floor (float): Least weight of any domain that does not begin at 0: one that does stays there. Default 0.
        ceiling (float): Greatest weight of any domain; gives way where ``max_passes`` of the data leaves no other.
            Default 1.
        average (bool): Serve the mean of all weights the rule has given so far instead of the last. Default false.
        metric (str): Name of the evaluation metric that holds the loss.
        max_eval_sequences (int | None): Sequences per domain that are evaluated at most, the first ones; ``None``
            evaluates all. Default 500.
        max_eval_share (float): Warn when a round spends more than this share of its time in evaluation. Default 0.25.
        weights_file (str | None): Path of a JSON file to keep up to date with the weights, losses and passes; it can be
            given as ``proportions`` of a later run. Default: none.

    Raises:
        ValueError: If an option is out of range; at the start of ``fit``, if loader, evaluators, intervals, planned
            steps and reference losses do not fit together.
    """

    def __init__(
        self,
        reference_losses: Mapping[str, float] | str | None = None,
        update: str = 'sheared',
        eta: float = 1.0,
        rho: float = 0.05,
        smoothing: float = 1e-4,
        floor: float = 0.0,
        ceiling: float = 1.0,
        average: bool = False,
        metric: str = EVAL_LOSS_METRIC,
        max_eval_sequences: int | None = 500,
        max_eval_share: float = 0.25,
        weights_file: str | None = None,
    ) -> None:
        self._rule = updates.find_rule(update)
        for name, value in (('smoothing', smoothing), ('floor', floor), ('ceiling', ceiling)):
            check_number(name, value, 0, 1)
        check_number('eta', eta, 0)
        check_number('rho', rho, 0)
        check_number('max_eval_share', max_eval_share, 0, 1, above=True)
        if max_eval_sequences is not None:
            check_integer('max_eval_sequences', max_eval_sequences, 1)
        self.reference_losses = read_reference_losses(reference_losses)
        self.update = update
        self.eta = eta
        self.rho = rho
        self.smoothing = smoothing
        self.floor = floor
        self.ceiling = ceiling
        self.average = average
        self.metric = metric
        self.max_eval_sequences = max_eval_sequences
        self.weights_file = None if weights_file is None else local_destination('weights_file', weights_file, 'file')
        self._warn_of_vain_options()
        self._domains: list[str] = []
        self._labels: dict[str, str] = {}
        self._evaluated: set[str] = set()
        self._clock = EvalClock(max_eval_share)
        self._memory: updates.Memory = []
        self._rule_weights: list[float] = []  # the rule's last weights, before averaging; empty: those in use
        self._mean = (0, [])  # number and mean of the rule's weights, for averaging
        self._far: set[str] = set()  # domains whose weight was warned of

    def _warn_of_vain_options(self) -> None:
        known = inspect.signature(DynamicBatchLoading).parameters
        unread = [name for name in ('eta', 'rho', 'smoothing', 'average') if name not in self._rule.reads]
        vain = [name for name in unread if getattr(self, name) != known[name].default]
        if vain:
            log.warning(
                'update: %s does not go by %s; remove it, or choose another update.', self.update, ', '.join(vain)
            )

    def after_load(self, state: State, logger: Logger) -> None:
        if isinstance(state.train_dataloader, DynamicTextLoader):  # there may be an evaluation before ``fit``
            prepare_evaluation(state, state.train_dataloader.dataset.rounds.domains, self.max_eval_sequences)

    def fit_start(self, state: State, logger: Logger) -> None:
        dataset = _dataset_of(state)
        domains = dataset.rounds.domains
        if self._domains and self._domains != domains:
            log.warning(
                'The checkpoint was taken with domains %s, now they are %s; going on from the weights of the data.',
                self._domains,
                domains,
            )
            self._memory, self._rule_weights, self._mean = [], [], (0, [])
        if dataset.rounds.restarted:  # curves of losses over samples, which are counted from 0 again
            self._memory, dataset.rounds.restarted = [], False
        self._domains = domains
        used = [name for name, weight in dataset.rounds.initial_weights.items() if weight > 0]
        limits.bound(np.ones(len(used)), self.floor, self.ceiling)
        if self._rule.needs_references or self.reference_losses and self.update == 'dro':
            check_references(domains, self.reference_losses)
        check_round_length(dataset, state)
        self._labels = match_evaluators(dataset, state, self.metric)
        prepare_evaluation(state, domains, self.max_eval_sequences)
        if self.update == 'dro' and planned_samples(dataset, state) is None:
            raise ValueError(
                'update: dro goes by how much of the run is done, and max_duration does not say how many samples that '
                'is. Give max_duration in ba, sp, tok or ep, or choose another update.'
            )
        check_plan(dataset, state, fixed=self.update == 'constant')
        self._clock.start_round()

    def epoch_start(self, state: State, logger: Logger) -> None:
        rounds = _dataset_of(state).rounds
        if rounds.finished and rounds.next_weights is None:
            raise ValueError(
                f'Mixing round {rounds.state.round} ended without an evaluation of its domains. Set '
                f'eval_interval to 1ep (an epoch is a round), or to {rounds.round_batches}ba if rounds '
                f'end at multiples of that.'
            )

    def eval_before_all(self, state: State, logger: Logger) -> None:
        self._evaluated = set()
        self._clock.start_evaluation()

    def eval_end(self, state: State, logger: Logger) -> None:
        self._evaluated.add(str(state.dataloader_label))

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._clock.end_evaluation()
        dataset = _dataset_of(state)
        rounds, wanted = dataset.rounds, set(self._labels.values())
        if not rounds.finished or rounds.next_weights is not None or not self._evaluated & wanted:
            return
        if wanted - self._evaluated:
            raise ValueError(
                f'Evaluators {sorted(wanted - self._evaluated)} did not run at the end of mixing round '
                f'{rounds.state.round}. Give the evaluators of all domains the interval '
                f'{rounds.round_batches}ba.'
            )
        losses = np.array(
            [float(state.eval_metrics[self._labels[name]][self.metric].compute()) for name in rounds.domains]
        )
        updates.check_losses(rounds.domains, losses)
        rounds.set_next_weights(self._next_weights(dataset, losses, planned_samples(dataset, state) or 0))
        metrics = self._metrics(dataset, losses)
        logger.log_metrics(metrics | {EVAL_SHARE: self._clock.end_round()})
        if self.weights_file is not None and dist.get_global_rank() == 0:
            _write_mixture(self.weights_file, rounds, dict(zip(rounds.domains, losses.tolist(), strict=True)))

    def close(self, state: State, logger: Logger) -> None:
        if isinstance(state.train_dataloader, DynamicTextLoader):
            state.train_dataloader.shut_down()

    def _next_weights(self, dataset: DynamicTextDataset, losses: np.ndarray, total: int) -> dict[str, float]:
        """The weights of the next round, from the losses in the order of the domains; the same on every rank."""
        rounds = dataset.rounds
        now = updates.Round(
            weights=np.array(self._rule_weights or list(rounds.weights.values())),
            prior=np.array(list(rounds.initial_weights.values())),
            losses=losses,
            references=np.array([self.reference_losses.get(name, np.nan) for name in rounds.domains]),
            samples=sum(rounds.used().values()),
            total=total,
        )
        strength = self.rho if 'rho' in self._rule.reads else self.eta
        weights, self._memory = self._rule.function(now, self._memory, strength)
        if not self._rule.keeps_domains_alive:
            weights = limits.smooth(weights, self.smoothing, now.prior)
        if self.average:
            self._rule_weights = weights.tolist()
            number, mean = self._mean[0] + 1, np.array(self._mean[1] or np.zeros(len(weights)))
            weights = mean + (weights - mean) / number
            self._mean = (number, weights.tolist())
        ceiling, in_use = weight_ceiling(dataset, self.ceiling), now.prior > 0
        asked = limits.bound(weights, self.floor * in_use, self.ceiling * in_use)
        weights = limits.bound(weights, np.minimum(self.floor, ceiling), ceiling)
        # Every rank has computed the same, from sums over all ranks; rank 0 decides about the last bit.
        result = [weights.tolist()]
        dist.broadcast_object_list(result)
        served = dict(zip(rounds.domains, result[0], strict=True))
        self._warn_of_far_weights(served, dict(zip(rounds.domains, asked.tolist())), rounds.initial_weights)
        return served

    def _warn_of_far_weights(
        self, served: Mapping[str, float], asked: Mapping[str, float], initial: Mapping[str, float]
    ) -> None:
        """Names each domain once whose weight is far from its first, and what took it there: the rule or max_passes.

        Args:
            served (Mapping[str, float]): Weights of the next round.
            asked (Mapping[str, float]): What they would be without ``max_passes``.
            initial (Mapping[str, float]): Weights that the run began with.
        """
        for name in sorted(set(served) - self._far):
            near = initial[name] / FAR, initial[name] * FAR
            if not near[0] <= served[name] <= near[1]:
                self._far.add(name)
                log.warning(
                    'The weight of domain %s has gone from %.4g to %.4g, more than %d times. %s',
                    name,
                    initial[name],
                    served[name],
                    FAR,
                    USED_UP if near[0] <= asked[name] <= near[1] else self._runaway_advice(),
                )

    def _runaway_advice(self) -> str:
        """What tames the rule, of what it goes by."""
        measure = 'measure its reference again (llmshearing reference-losses), which may not fit its evaluation data'
        advice = [measure] if self.reference_losses else []
        advice += ['set a floor and a ceiling', *(f'lower {key}' for key in ('rho', 'eta') if key in self._rule.reads)]
        advice += ['choose update: dro, which stays near its first mixture'] if self.update != 'dro' else []
        return f'What may help: {"; ".join(advice)}.'

    def _metrics(self, dataset: DynamicTextDataset, losses: np.ndarray) -> dict[str, float]:
        rounds = dataset.rounds
        used, weights = rounds.used(), rounds.next_weights or rounds.weights
        total = sum(used.values())
        metrics = {'mixture/round': float(rounds.state.round)}
        for name, loss in zip(rounds.domains, losses.tolist(), strict=True):
            metrics[mixture_name('weight', name)] = weights[name]
            metrics[mixture_name('loss', name)] = loss
            if name in self.reference_losses:
                metrics[mixture_name('gap', name)] = loss - self.reference_losses[name]
            metrics[mixture_name('share', name)] = used[name] / total
            metrics[mixture_name('passes', name)] = used[name] / rounds.sizes[name]
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            'version': STATE_VERSION,
            'update': self.update,
            'average': self.average,
            'domains': list(self._domains),
            'memory': list(self._memory),
            'rule_weights': list(self._rule_weights),
            'mean_count': self._mean[0],
            'mean': list(self._mean[1]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``'s result.

        Raises:
            ValueError: If it was written by another version. After a change of rule, averaging or domains, starts
                afresh from the weights in use.
        """
        if state.get('version') != STATE_VERSION:
            raise ValueError(
                f'The checkpoint holds a dynamic_batch_loading state of version {state.get("version")}, '
                f'but this is version {STATE_VERSION}. Resume with the version that wrote it.'
            )
        if (state['update'], state['average']) != (self.update, self.average):
            log.warning(
                'The checkpoint was taken with update=%s, average=%s; going on with update=%s, average=%s from '
                'its weights.',
                state['update'],
                state['average'],
                self.update,
                self.average,
            )
            return
        self._domains = list(state['domains'])
        self._memory = list(state['memory'])
        self._rule_weights = list(state['rule_weights'])
        self._mean = (state['mean_count'], list(state['mean']))


def _dataset_of(state: State) -> DynamicTextDataset:
    dataset = getattr(state.train_dataloader, 'dataset', None)
    if not isinstance(dataset, DynamicTextDataset):
        raise ValueError(
            f'dynamic_batch_loading needs a train_loader with name: dynamic_text, but the training data '
            f'is {type(dataset).__name__}.'
        )
    return dataset


def _write_mixture(path: Path, rounds: MixtureRounds, losses: Mapping[str, float]) -> None:
    """Writes the weights that follow the current round, with its losses, as JSON."""
    used = rounds.used()
    content = {
        'round': rounds.state.round,
        'proportions': rounds.next_weights,
        'losses': dict(losses),
        'samples': used,
        'passes': {name: used[name] / size for name, size in rounds.sizes.items()},
    }
    dump_json(path, content)
