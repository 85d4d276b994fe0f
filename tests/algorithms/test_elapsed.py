"""The pruning schedule moves with every batch, in whatever unit times and the run's length are given."""

from types import SimpleNamespace

import pytest
from composer.core import DataSpec, Time
from composer.loggers import InMemoryLogger
from torch.utils.data import DataLoader, IterableDataset

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.algorithms.targeted_pruning.elapsed import elapsed_share, reaches_end
from tests.tiny_run import Sequences, sequences_spec, tiny_trainer

TARGET = {'num_hidden_layers': 2, 'hidden_size': 36}


def run(source, max_duration, **times):
    """Ten batches, five an epoch; returns what batch the masks were frozen from and the hidden target by batch."""
    log, pruning = InMemoryLogger(), TargetedPruning(TARGET, mask_learning='progressive', **times)
    frozen_from, training_masks = [], pruning.training_masks

    def recording(state):
        masks = training_masks(state)
        frozen_from.extend([state.timestamp.batch.value] if pruning.frozen_masks is not None else [])
        return masks

    pruning.training_masks = recording
    trainer = tiny_trainer(
        source, [pruning], loggers=[log], max_duration=max_duration, train_dataloader=sequences_spec(20, 4)
    )
    trainer.fit()
    assert trainer.state.timestamp.batch.value == 10
    return frozen_from[:1], [float(value) for _, value in log.data['pruning/hidden/target']]


@pytest.mark.parametrize(
    'max_duration, warmup, freeze',
    [('2ep', '0.4dur', '0.7dur'), ('10ba', '4ba', '7ba'), ('40sp', '0.4dur', '28sp'), ('640tok', '256tok', '0.7dur')],
)
def test_the_same_time_in_any_unit_is_the_same_schedule(source, max_duration, warmup, freeze):
    frozen_from, targets = run(source, max_duration, warmup=warmup, freeze_masks_after=freeze)
    assert frozen_from == [7]
    assert targets == pytest.approx([48 - 12 * min(batch / 4, 1) for batch in range(7)])


@pytest.mark.parametrize('max_duration', ['2ep', '10ba'])
def test_a_time_in_epochs_moves_within_the_epoch(source, max_duration):
    frozen_from, targets = run(source, max_duration, warmup='1ep', freeze_masks_after='1ep')
    assert frozen_from == [5]
    assert targets == pytest.approx([48 - 12 * batch / 5 for batch in range(5)])


def test_shares_are_exact(source):
    """A time is over with the batch that completes it, also where its decimals are no binary fraction."""
    state = tiny_trainer(source, [], max_duration='3ep', train_dataloader=sequences_spec(400, 4)).state
    for percent in range(1, 101):
        epoch, batch = divmod(3 * percent, 100)
        state.timestamp = state.timestamp.copy(epoch=epoch, batch_in_epoch=batch)
        assert elapsed_share(state, Time.from_timestring(f'{percent / 100}dur')) == 1.0, percent
        assert elapsed_share(state, Time.from_timestring('2ep')) == 3 * percent / 200


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from Sequences(4)


@pytest.mark.parametrize('times', [{'warmup': '1ep'}, {'warmup': '1ba', 'freeze_masks_after': '1ep'}])
def test_epochs_of_unknown_length_are_refused_before_the_first_step(source, times):
    """Composer itself refuses a max_duration in such epochs."""
    trainer = tiny_trainer(
        source,
        [TargetedPruning(TARGET, **times)],
        train_dataloader=DataSpec(DataLoader(Endless(), 4)),
        max_duration='3ba',
        schedulers=None,
    )
    with pytest.raises(ValueError, match='1ep with max_duration 3ba needs the number of batches.*give.*batches'):
        trainer.fit()
    assert trainer.state.timestamp.batch.value == 0


@pytest.mark.parametrize(
    ('run', 'time', 'expected'),
    [
        ('8ba', '7ba', True),
        ('8ba', '8ba', False),
        ('8ba', '1dur', False),
        ('8ba', '0.875dur', True),
        ('8ba', '0.9dur', False),
        ('1ba', '0.5dur', False),
        ('640tok', '1dur', False),
        ('640tok', '0.9dur', True),
        ('640tok', '576tok', True),
        ('640tok', '577tok', False),  # the last of 10 batches begins at 576
        ('40sp', '36sp', True),
        ('40sp', '37sp', False),
        ('42sp', '40sp', True),  # and of 11 at 40
        ('42sp', '0.96dur', False),
        ('2ep', '2ep', False),
        ('2ep', '0.9dur', True),
        ('2ep', '0.91dur', False),
        ('30sec', '0.99dur', True),
        ('30sec', '1dur', False),
        ('2ep', '9ba', True),
        ('2ep', '10ba', False),  # which begins after the last batch of two epochs
        ('640tok', '9ba', True),
        ('640tok', '10ba', False),
        ('7tok', '2ba', False),
        ('10ba', '36sp', True),
        ('10ba', '577tok', False),
        ('10ba', '2ep', False),
        ('30sec', '8ba', True),  # nobody knows
    ],
)
def test_the_last_masks_are_those_of_the_last_batch(run, time, expected):
    loader = SimpleNamespace(batch_size=4, dataset=SimpleNamespace(max_seq_len=16))
    state = SimpleNamespace(max_duration=Time.from_timestring(run), dataloader_len=5, train_dataloader=loader)
    assert reaches_end(state, time) is expected


@pytest.mark.parametrize('name', ['warmup', 'freeze_masks_after'])
@pytest.mark.parametrize('value', ['1iter', '30sec', 'soon', '-5ba', 7])
def test_times_that_cannot_be_are_refused_in_the_constructor(name, value):
    with pytest.raises(ValueError, match=f'{name}={value!r} is not possible.*ba, sp, tok, ep, dur'):
        TargetedPruning(TARGET, **{name: value})
    for possible in ('1ba', '4sp', '9tok', '1ep', '0.5dur'):
        TargetedPruning(TARGET, **{name: possible})
