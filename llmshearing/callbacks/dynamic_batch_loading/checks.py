"""What must fit together before the first step: data set, rounds and the length of the run."""

from __future__ import annotations

from composer.core import State

from llmshearing.data.dynamic_text import DynamicTextDataset

__all__ = ['check_round_length', 'check_total', 'dynamic_dataset']


def check_total(samples: int | None) -> None:
    """Raises if the run's length in samples is not known, which ``dro`` goes by.

    Raises:
        ValueError: Saying which units it may have.
    """
    if samples is None:
        raise ValueError(
            'update: dro goes by how much of the run is done, and max_duration does not say how many samples that is. '
            'Give max_duration in ba, sp, tok or ep, or choose another update.'
        )


def dynamic_dataset(state: State) -> DynamicTextDataset:
    """The training data set of a run.

    Raises:
        ValueError: If it is not a ``dynamic_text`` data set.
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
        ValueError: Naming both lengths.
    """
    length = dataset.rounds.round_batches
    if state.dataloader_len is not None and int(state.dataloader_len) != length:
        raise ValueError(
            f'A mixing round has {length} batches, but an epoch is to have {int(state.dataloader_len)}. '
            f'Set round_batches to that, and leave train_subset_num_batches alone.'
        )
