"""Times against the length of a run, and what an epoch is."""

import logging
import re

import pytest

from llmshearing.config.times import check_time, check_times, check_warmup, check_within_run, describe_epochs


def run(duration, batches=5):
    return {'max_duration': duration, 'train_loader': {'dataset': {'round_batches': batches}}}


@pytest.mark.parametrize('value', [None, True, 1.5, [], 'soon', '5xx', '1e400ba'])
def test_what_is_no_time(value):
    with pytest.raises(ValueError, match='save_interval: expected a time such as 100ba'):
        check_time('save_interval', value)


def test_more_than_the_whole_run_is_refused():
    check_within_run('x.warmup', '1dur', '10ba')
    with pytest.raises(ValueError, match='x.warmup: 1.01dur is longer than the run'):
        check_within_run('x.warmup', '1.01dur', '10ba')


def test_a_time_after_the_end_of_a_trial_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        check_within_run('x.warmup', '9ba', '10ba')
        check_within_run('x.warmup', '99tok', '10ba')  # another unit: cannot be compared
        assert not caplog.text
        check_within_run('x.warmup', '640ba', '10ba')
    assert 'x.warmup: 640ba does not come, because the run ends after 10ba' in caplog.text


@pytest.mark.parametrize(
    ('settings', 'duration', 'message'),
    [
        (
            {},
            '4608tok',
            r'scheduler.t_warmup: 3ba is in ba, and max_duration: 4608tok, .* in tok; write a time in tok, or',
        ),
        ({}, '288sp', 'write a time in sp, or a part of the run such as 0.1dur'),
        ({'t_max': '9tok'}, '10ba', 't_warmup: 3ba is in ba, and t_max: 9tok, .* write a time in tok'),
        ({'t_warmup': '3tok'}, '2ep', 't_warmup: 3tok is in tok, and max_duration: 2ep, .* write a time in ep'),
        ({}, '2ep', None),
        ({}, '10ba', None),
        ({'t_warmup': '0.1dur'}, '4608tok', None),
        ({'t_max': '9ba'}, '4608tok', None),
        ({'name': 'odd'}, '4608tok', None),
    ],
)
def test_a_warm_up_is_in_the_unit_of_the_end(settings, duration, message):
    scheduler = {'name': 'cosine_with_warmup', 't_warmup': '3ba', **settings}
    if message is None:
        check_warmup(scheduler, duration)
    else:
        with pytest.raises(ValueError, match=message):
            check_warmup(scheduler, duration)


@pytest.mark.parametrize('duration, batches', [('1ep', 5), ('2ep', 10), (10, 50)])
def test_epochs_are_rounds_and_told_in_batches(duration, batches):
    told = describe_epochs(run(duration))
    assert f'{duration} ends after {batches} batches' in told and f'({batches}ba)' in told


def test_other_units_mean_what_they_say():
    assert describe_epochs(run('10ba')) is None and describe_epochs(run('1e9tok')) is None


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'save_interval': '2dur'}, 'save_interval: 2dur is longer than the run'),
        ({'eval_interval': '2dur'}, 'eval_interval: 2dur is longer than the run'),
        ({'save_interval': '0ba', 'save_folder': 'x'}, 'save_interval: expected a time above 0'),
        ({'scheduler': {'t_warmup': '-1ba'}}, "scheduler.t_warmup: expected a time of at least 0, got '-1ba'"),
        (
            {'callbacks': {'generate_callback': {'interval': '0ba'}}},
            'generate_callback.interval: expected a time above 0',
        ),
        ({'callbacks': {'memory_snapshot': {'interval': '0ba'}}}, 'memory_snapshot.interval: expected a time above 0'),
        ({'callbacks': {'hf_checkpointer': {'save_interval': '3dur'}}}, 'save_interval: 3dur is longer than the run'),
        ({'algorithms': {'targeted_pruning': {'warmup': '1.5dur'}}}, 'targeted_pruning.warmup: 1.5dur is longer'),
    ],
)
def test_every_time_lies_within_the_run(settings, message):
    with pytest.raises(ValueError, match=message):
        check_times({'max_duration': '10ba', **settings})


def test_an_interval_after_the_end_is_told(caplog):
    check_times({'max_duration': '10ba', 'save_interval': '10ba', 'eval_interval': 0, 'scheduler': {'t_max': None}})
    assert not caplog.text
    check_times({'max_duration': '10ba', 'save_interval': '11ba', 'save_folder': 'x'})
    assert 'save_interval: 11ba does not come, because the run ends after 10ba' in caplog.text


@pytest.mark.parametrize(
    ('key', 'settings'),
    [
        ('scheduler.t_warmup', {'scheduler': {'t_warmup': '2ep'}}),
        ('save_interval', {'save_interval': 2}),
        ('algorithms.targeted_pruning.warmup', {'algorithms': {'targeted_pruning': {'warmup': '2ep'}}}),
        ('callbacks.early_stopper.patience', {'callbacks': {'early_stopper': {'patience': '2ep'}}}),
    ],
)
def test_epochs_are_rounds_wherever_they_are_written(key, settings, caplog):
    loader = {'name': 'dynamic_text', 'dataset': {'round_batches': 5}}
    check_times({'max_duration': '100ba', 'train_loader': loader, **settings})
    assert re.search(f'{re.escape(key)}: (2ep|2) is 10 batches: an epoch .* Write 10ba', caplog.text)
    caplog.clear()
    check_times(
        {'max_duration': '100ba', 'train_loader': {**loader, 'name': 'text'}, 'eval_interval': '1ep', **settings}
    )
    assert not caplog.text
