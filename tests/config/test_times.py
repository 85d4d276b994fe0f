"""Times against the length of a run, and what an epoch is."""

import logging

import pytest

from llmshearing.config.times import check_time, check_within_run, describe_epochs


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


@pytest.mark.parametrize('duration, batches', [('1ep', 5), ('2ep', 10), (10, 50)])
def test_epochs_are_rounds_and_told_in_batches(duration, batches):
    told = describe_epochs(run(duration))
    assert f'{duration} ends after {batches} batches' in told and f'({batches}ba)' in told


def test_other_units_mean_what_they_say():
    assert describe_epochs(run('10ba')) is None and describe_epochs(run('1e9tok')) is None
