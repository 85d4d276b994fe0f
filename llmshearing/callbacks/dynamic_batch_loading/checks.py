"""What must fit together before the first step: data set, evaluators, their interval, metric and reference losses."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from composer.core import State, TimeUnit
from composer.utils import dist
from llmfoundry.data.text_data import StreamingTextDataset
from streaming import StreamingDataset

from llmshearing.data.dynamic_text import DynamicTextDataset, count_every_token
from llmshearing.data.fingerprint import check_tokenizer, folders_of
from llmshearing.data.rounds import MixtureRounds

__all__ = [
    'check_references',
    'check_round_length',
    'check_total',
    'dynamic_dataset',
    'match_evaluators',
    'prepare_evaluation',
    'read_reference_losses',
    'write_mixture',
]


def read_reference_losses(source: Mapping[str, float] | str | None) -> dict[str, float]:
    """Reference losses by domain, given inline or as a JSON file with a ``reference_losses`` mapping.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON, holds no such mapping, or a loss that is no finite number.
    """
    place = 'reference_losses'
    if isinstance(source, str):
        place = source
        try:
            content = json.loads(Path(source).read_text(encoding='utf-8'))
        except ValueError as error:  # also what is no text
            raise ValueError(
                f'reference_losses: {source} is not JSON ({error}). Give a file that llmshearing '
                f'reference-losses wrote, or a loss for each domain.'
            ) from None
        source = content.get('reference_losses') if isinstance(content, dict) else None
        if not isinstance(source, dict):
            raise ValueError(f'{place} holds no mapping "reference_losses" from domain to loss.')
    bad = {
        name: loss
        for name, loss in (source or {}).items()
        if isinstance(loss, bool) or not isinstance(loss, (int, float)) or not math.isfinite(loss)
    }
    if bad:
        raise ValueError(f'Reference losses must be finite numbers, but {place} gives {bad}.')
    return {name: float(loss) for name, loss in (source or {}).items()}


def check_references(domains: Sequence[str], references: Mapping[str, float]) -> None:
    """Raises if a domain has no reference loss.

    Raises:
        ValueError: naming the domains.
    """
    missing = [name for name in domains if name not in references]
    if missing:
        raise ValueError(
            f'There is no reference loss for domains {missing}, only for {sorted(references)}. Add them '
            f'to `reference_losses`, or choose update: constant.'
        )


def check_total(samples: int | None) -> None:
    """Raises if the run's length in samples is not known, which ``dro`` goes by.

    Raises:
        ValueError: saying which units it may have.
    """
    if samples is None:
        raise ValueError(
            'update: dro goes by how much of the run is done, and max_duration does not say how many samples that is. '
            'Give max_duration in ba, sp, tok or ep, or choose another update.'
        )


def dynamic_dataset(state: State) -> DynamicTextDataset:
    """The training data set of a run.

    Raises:
        ValueError: if it is not a ``dynamic_text`` data set.
    """
    dataset = getattr(state.train_dataloader, 'dataset', None)
    if not isinstance(dataset, DynamicTextDataset):
        raise ValueError(
            f'dynamic_batch_loading needs a train_loader with name: dynamic_text, but the training data '
            f'is {type(dataset).__name__}.'
        )
    return dataset


def check_round_length(dataset: DynamicTextDataset, state: State) -> None:
    """Raises if Composer is to end its epochs before the rounds, which would serve their beginnings again and again.

    Raises:
        ValueError: naming both lengths.
    """
    length = dataset.rounds.round_batches
    if state.dataloader_len is not None and int(state.dataloader_len) != length:
        raise ValueError(
            f'A mixing round has {length} batches, but an epoch is to have {int(state.dataloader_len)}. '
            f'Set round_batches to that, and leave train_subset_num_batches alone.'
        )


def match_evaluators(dataset: DynamicTextDataset, state: State, metric: str) -> dict[str, str]:
    """The evaluator's label for each domain: its name, or ``eval/`` and its name, as llm-foundry makes of ``label``.

    Raises:
        ValueError: if a domain has no evaluator, or one that lacks the metric or does not run when rounds end.
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
    return labels


def _check_clock(rounds: MixtureRounds, state: State, interval: int) -> None:
    """Raises if a resumed run ends its rounds at other batches than the multiples of the interval, as long as a round.

    Raises:
        ValueError: with the interval that fits.
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
        ValueError: if the data of an evaluator was made with another tokenizer.
    """
    loaders: list[Any] = [evaluator.dataloader.dataloader for evaluator in state.evaluators]
    found = [getattr(loader, 'dataset', None) for loader in loaders]
    datasets = [dataset for dataset in found if isinstance(dataset, StreamingTextDataset)]
    if datasets:
        check_tokenizer(datasets[0].tokenizer, [folder for dataset in datasets for folder in folders_of(dataset)])
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


def write_mixture(path: Path, rounds: MixtureRounds, losses: Mapping[str, float]) -> None:
    """Writes the weights that follow the current round, with its losses, as JSON; replaces the file at once."""
    used = rounds.used()
    content = {
        'round': rounds.state.round,
        'proportions': rounds.next_weights,
        'losses': dict(losses),
        'samples': used,
        'passes': {name: used[name] / size for name, size in rounds.sizes.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    partial.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    os.replace(partial, path)
