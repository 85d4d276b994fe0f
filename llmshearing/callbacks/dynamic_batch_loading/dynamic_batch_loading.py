"""Updates the mixture of a ``dynamic_text`` loader from the evaluation losses, at the end of every mixing round.

Evaluators labelled with the domain names give the losses, at the interval of the rounds; no extra metric, no extra
forward pass. The mixture itself lives in the data set's state; what is kept here is only what a rule needs besides.
"""
from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from composer.core import Callback, Evaluator, State, TimeUnit
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.callbacks.dynamic_batch_loading import updates
from llmshearing.data.dynamic_text import DynamicTextDataset

log = logging.getLogger(__name__)

STATE_VERSION = 1


def read_reference_losses(source: Mapping[str, float] | str | None) -> dict[str, float]:
    """Reference losses by domain, given inline or as a JSON file with a ``reference_losses`` mapping.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no such mapping.
    """
    if source is None:
        return {}
    if isinstance(source, str):
        content = json.loads(Path(source).read_text(encoding='utf-8'))
        if not isinstance(content, dict) or not isinstance(content.get('reference_losses'), dict):
            raise ValueError(f'{source} holds no mapping "reference_losses" from domain to loss.')
        source = content['reference_losses']
    return {name: float(loss) for name, loss in source.items()}


class DynamicBatchLoading(Callback):
    """Re-weights the domains of the training data at the end of every mixing round.

    Args:
        reference_losses: loss by domain to compare with, or the path of a JSON file
            ``{"reference_losses": {domain: loss}}``. Not needed for ``constant``.
        update: name of the rule: ``sheared`` (default), ``sheared_unclipped`` or ``constant``.
        eta: step size in the exponent. Default 1, as in the paper.
        smoothing: share of the weight spread evenly over the domains after each update. Default 1e-4, as in the paper.
        floor: least weight of any domain. Default 0.
        ceiling: greatest weight of any domain. Default 1.
        metric: evaluation metric that holds the loss.
        max_eval_share: warn when a round spends more than this share of its time in evaluation.

    Raises:
        ValueError: if an option is out of range; at the start of ``fit``, if loader, evaluators, intervals and
            reference losses do not fit together.
    """

    def __init__(
        self,
        reference_losses: Mapping[str, float] | str | None = None,
        update: str = 'sheared',
        eta: float = 1.0,
        smoothing: float = 1e-4,
        floor: float = 0.0,
        ceiling: float = 1.0,
        metric: str = 'LanguageCrossEntropy',
        max_eval_share: float = 0.25,
    ) -> None:
        if update not in updates.RULES:
            raise ValueError(f'`update` must be one of {sorted(updates.RULES)}, but got {update!r}.')
        for name, value in (('smoothing', smoothing), ('floor', floor), ('ceiling', ceiling)):
            if not 0 <= value <= 1:
                raise ValueError(f'`{name}` must be between 0 and 1, but got {value}.')
        self.reference_losses = read_reference_losses(reference_losses)
        self.update = update
        self.eta = eta
        self.smoothing = smoothing
        self.floor = floor
        self.ceiling = ceiling
        self.metric = metric
        self.max_eval_share = max_eval_share
        self._labels: dict[str, str] = {}
        self._evaluated: set[str] = set()
        self._round_began = time.monotonic()
        self._eval_began = 0.0
        self._eval_seconds = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        del logger
        dataset = _dataset(state)
        self._labels = match_evaluators(dataset, state.evaluators)
        missing = [name for name in dataset.domains if name not in self.reference_losses]
        if missing and self.update != 'constant':
            raise ValueError(f'No reference loss for domains {missing}; there are some for '
                             f'{sorted(self.reference_losses)}. Add them to `reference_losses`, or set update: constant.')
        for name, label in self._labels.items():
            if self.metric not in state.eval_metrics.get(label, {}):
                raise ValueError(f'The evaluator of domain {name!r} ({label}) has no metric {self.metric}; it has '
                                 f'{sorted(state.eval_metrics.get(label, {}))}.')
        self._round_began = time.monotonic()

    def epoch_start(self, state: State, logger: Logger) -> None:
        del logger
        dataset = _dataset(state)
        if dataset.round_finished and dataset.next_weights is None:
            raise ValueError(f'Mixing round {dataset.round} has ended without an evaluation of its domains. Set '
                             f'eval_interval to {dataset.round_batches}ba, the length of a round.')

    def eval_before_all(self, state: State, logger: Logger) -> None:
        del state, logger
        self._evaluated = set()
        self._eval_began = time.monotonic()

    def eval_end(self, state: State, logger: Logger) -> None:
        del logger
        self._evaluated.add(str(state.dataloader_label))

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._eval_seconds += time.monotonic() - self._eval_began
        dataset = _dataset(state)
        if not dataset.round_finished or dataset.next_weights is not None:
            return
        if not self._evaluated & set(self._labels.values()):
            return
        missing = sorted(set(self._labels.values()) - self._evaluated)
        if missing:
            raise ValueError(f'Evaluators {missing} did not run at the end of mixing round {dataset.round}. Give the '
                             f'evaluators of all domains the interval {dataset.round_batches}ba.')
        losses = np.array([float(state.eval_metrics[self._labels[name]][self.metric].compute())
                           for name in dataset.domains])
        updates.check_losses(dataset.domains, losses)
        # Every rank computes the same, but the weights of rank 0 are what counts, to the last bit.
        weights = [self.next_weights(dataset, losses)]
        dist.broadcast_object_list(weights)
        dataset.set_next_weights(weights[0])
        logger.log_metrics(self._metrics(dataset, losses) | self._time_metrics())

    def next_weights(self, dataset: DynamicTextDataset, losses: np.ndarray) -> dict[str, float]:
        """The weights of the next round, from the losses in the order of the domains."""
        references = np.array([self.reference_losses.get(name, np.nan) for name in dataset.domains])
        weights = np.array(list(dataset.weights.values()))
        if self.update != 'constant':
            weights = updates.RULES[self.update](weights, losses, references, self.eta)
            weights = updates.smooth(weights, self.smoothing)
        weights = updates.bound(weights, self.floor, self.ceiling)
        return dict(zip(dataset.domains, weights.tolist(), strict=True))

    def _metrics(self, dataset: DynamicTextDataset, losses: np.ndarray) -> dict[str, float]:
        used, passes, weights = dataset.used(), dataset.passes(), dataset.next_weights or dataset.weights
        total = sum(used.values())
        metrics = {'mixture/round': float(dataset.round)}
        for name, loss in zip(dataset.domains, losses.tolist(), strict=True):
            metrics[f'mixture/weight/{name}'] = weights[name]
            metrics[f'mixture/loss/{name}'] = loss
            if name in self.reference_losses:
                metrics[f'mixture/gap/{name}'] = loss - self.reference_losses[name]
            metrics[f'mixture/share/{name}'] = used[name] / total
            metrics[f'mixture/passes/{name}'] = passes[name]
        return metrics

    def _time_metrics(self) -> dict[str, float]:
        now = time.monotonic()
        share = self._eval_seconds / max(now - self._round_began, 1e-9)
        self._round_began, self._eval_seconds = now, 0.0
        if share > self.max_eval_share:
            log.warning('Evaluation took %.0f %% of the time of the last mixing round (max_eval_share is %.0f %%). '
                        'Evaluate fewer sequences per domain or make rounds longer.', 100 * share,
                        100 * self.max_eval_share)
        return {'mixture/eval_share': share}


def _dataset(state: State) -> DynamicTextDataset:
    dataset = getattr(state.train_dataloader, 'dataset', None)
    if not isinstance(dataset, DynamicTextDataset):
        raise ValueError(f'dynamic_batch_loading needs a train_loader with name: dynamic_text, but the training data is '
                         f'{type(dataset).__name__}.')
    return dataset


def match_evaluators(dataset: DynamicTextDataset, evaluators: list[Evaluator]) -> dict[str, str]:
    """The evaluator's label of each domain; llm-foundry writes ``eval/`` before the label in the YAML.

    Raises:
        ValueError: if a domain has no evaluator, or one that does not run at the end of every round.
    """
    by_label = {evaluator.label: evaluator for evaluator in evaluators}
    labels = {}
    for name in dataset.domains:
        found = [label for label in (name, f'eval/{name}') if label in by_label]
        if not found:
            raise ValueError(f'Domain {name!r} has no evaluator; there are {sorted(by_label)}. Add an entry with label: '
                             f'{name} to eval_loader.')
        labels[name] = found[0]
        interval = inspect.getclosurevars(by_label[found[0]].eval_interval).nonlocals.get('time_interval')
        if interval is None:
            continue  # a function of the user's own: told at the end of the first round if it does not run
        if (interval.unit, interval.value) not in ((TimeUnit.BATCH, dataset.round_batches), (TimeUnit.EPOCH, 1)):
            raise ValueError(f'The evaluator of domain {name!r} runs every {interval.to_timestring()}, but a mixing round '
                             f'has {dataset.round_batches} batches. Set eval_interval to {dataset.round_batches}ba.')
    return labels
