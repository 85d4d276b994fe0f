"""The evaluators of the domains: which is whose, and what is changed so that they measure what a reference loss is."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from composer.core import Evaluator, State, TimeUnit
from composer.utils import dist
from llmfoundry.data.text_data import StreamingTextDataset
from streaming import StreamingDataset

from llmshearing.data.dynamic_text import DynamicTextDataset, count_every_token
from llmshearing.data.rounds import MixtureRounds
from llmshearing.data.shard_checks import fingerprint
from llmshearing.data.streams import stream_folder, stream_places
from llmshearing.utils.ranks import refuse_differences

__all__ = ['match_evaluators', 'prepare_evaluation']

log = logging.getLogger(__name__)


def match_evaluators(dataset: DynamicTextDataset, state: State, metric: str) -> dict[str, str]:
    """The evaluator's label for each domain: its name, or ``eval/`` and its name, as llm-foundry makes of ``label``.

    Raises:
        ValueError: If a domain has no evaluator, or one that lacks the metric, does not run when rounds end, or reads
            the data of another domain.
    """
    by_label = {evaluator.label: evaluator for evaluator in state.evaluators}
    labels, length = {}, dataset.rounds.round_batches
    for name in dataset.rounds.domains:
        found = [label for label in (name, f'eval/{name}') if label in by_label]
        if not found:
            raise ValueError(
                f'Domain {name!r} has no evaluator; there are {sorted(by_label)}. Add one with label: '
                f'{name} to eval_loader.'
            )
        labels[name] = label = found[0]
        if metric not in state.eval_metrics.get(label, {}):
            raise ValueError(
                f'The evaluator of domain {name!r} has no metric {metric!r}, only '
                f'{sorted(state.eval_metrics.get(label, {}))}. Set `metric` of dynamic_batch_loading.'
            )
        # Composer keeps the interval in its scheduler function. Anything else is the user's own function: if it does
        # not run at the end of a round, that is told there.
        schedule = by_label[label].eval_interval
        interval = None if schedule is None else inspect.getclosurevars(schedule).nonlocals.get('time_interval')
        if interval is not None and (interval.unit, interval.value) not in (
            (TimeUnit.BATCH, length),
            (TimeUnit.EPOCH, 1),
        ):
            raise ValueError(
                f'The evaluator of domain {name!r} runs every {interval.to_timestring()}, but a mixing '
                f'round has {length} batches. Set eval_interval to {length}ba, or round_batches to suit.'
            )
        if interval is not None and interval.unit == TimeUnit.BATCH:
            _check_clock(dataset.rounds, state, length)
    _check_folders(dataset, {name: by_label[label] for name, label in labels.items()})
    return labels


def _check_folders(dataset: DynamicTextDataset, evaluators: Mapping[str, Evaluator]) -> None:
    """Refuses an evaluator with the data of another domain, and warns of one with data that is trained on.

    Whose data a folder holds is told by its name, as ``prepare`` writes them: ``eval/python``, or ``python/eval`` where
    a split is named.
    """
    trained = {os.path.realpath(local) for local, _ in stream_places(dataset.streams)}
    read_by: dict[str, str] = {}
    for name, evaluator in evaluators.items():
        data = getattr(evaluator.dataloader.dataloader, 'dataset', None)
        for stream in data.streams if isinstance(data, StreamingDataset) else []:
            place, folder = stream.remote or stream.local, os.path.realpath(stream_folder(stream))
            names = [os.path.basename(part.rstrip('/')) for part in (place, stream.split)]
            others = [part for part in names if part in evaluators]
            if others and name not in names:
                raise ValueError(
                    f'The evaluator of domain {name!r} reads {place}, which is named like domain {others[0]!r}; the '
                    f'mixture would follow losses of other data. Give it the data of {name!r}, or rename the folder.'
                )
            if read_by.setdefault(folder, name) != name:
                raise ValueError(
                    f'The evaluators of the domains {read_by[folder]!r} and {name!r} both read {place}; give each its '
                    'own held-out data.'
                )
            if folder in trained:
                log.warning(
                    'The evaluator of domain %r reads %s, which the run trains on: its loss will fall by what is '
                    'learnt by heart. Give it held-out data, such as the split eval of `llmshearing prepare`.',
                    name,
                    place,
                )


def _check_clock(rounds: MixtureRounds, state: State, interval: int) -> None:
    """Raises if a resumed run ends its rounds at other batches than the multiples of the interval, as long as a round.

    Raises:
        ValueError: With the interval that fits.
    """
    remedy = 'Set eval_interval to 1ep: an epoch is a round, and evaluation comes at its end.'
    batch, done = int(state.timestamp.batch), int(state.timestamp.batch_in_epoch)
    closing = done == rounds.shape[0]
    if closing and rounds.next_weights is None:
        raise ValueError(
            f'The checkpoint was saved at the end of mixing round {rounds.state.round} before the '
            f'evaluation that updates the mixture; at {interval}ba it would not be made again. {remedy}'
        )
    begin = batch if closing else batch - done
    if begin % interval:
        raise ValueError(
            f'Mixing rounds end at batches {begin + interval}, {begin + 2 * interval}, ... of this run, '
            f'as their length was changed, but evaluation every {interval}ba comes at multiples of '
            f'{interval}. {remedy}'
        )


def prepare_evaluation(state: State, domains: Sequence[str], max_sequences: int | None) -> None:
    """Makes the evaluators of the domains measure what a reference loss is: the same tokens, whoever measures.

    They are limited to their first ``max_sequences`` sequences, rounded up to whole batches. Streaming would give each
    node a stretch of the data of its own, and so not the first sequences on several nodes; one canonical node makes it
    serve the data in order over all of them. And every stored token counts, as in training: llm-foundry's collator
    leaves out those equal to the padding token, which many tokenizers use to end each document.

    Must come before the first evaluation, whose workers keep what they were started with. May come again.

    Raises:
        ValueError: If the data of an evaluator is not the same on every rank.
    """
    loaders: list[Any] = [evaluator.dataloader.dataloader for evaluator in state.evaluators]
    found = [getattr(loader, 'dataset', None) for loader in loaders]
    shards = {
        f'shards of the evaluator {evaluator.label} (their hash)': fingerprint(dataset.shards)
        for evaluator, dataset in zip(state.evaluators, found)
        if isinstance(dataset, StreamingDataset)
    }
    refuse_differences(shards, 'every node needs the same evaluation data; copy those of rank 0')
    for evaluator, loader, dataset in zip(state.evaluators, loaders, found):
        batch_size = getattr(loader, 'batch_size', None)
        if evaluator.label.removeprefix('eval/') not in domains or not batch_size:
            continue
        if isinstance(dataset, StreamingDataset) and not dataset.num_canonical_nodes:
            dataset.num_canonical_nodes = 1
        if isinstance(dataset, StreamingTextDataset):
            count_every_token(loader)
        if max_sequences is None:
            continue
        batches = -(-max_sequences // (batch_size * dist.get_world_size()))
        if evaluator.subset_num_batches in (None, -1) or evaluator.subset_num_batches > batches:
            evaluator.subset_num_batches = batches
