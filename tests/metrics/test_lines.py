"""Which lines of a metrics file count: of a run that was resumed, begun anew, or killed in the middle of a line."""

from __future__ import annotations

import json
import logging

import pytest

from llmshearing.metrics.lines import read_metric_lines, read_metrics
from llmshearing.metrics.logger import MetricsFile


def write(path, *lines):
    with path.open('a', encoding='utf-8') as file:
        file.writelines(json.dumps(line) + '\n' for line in lines)
    return path


def start(path, first, until, value, every=10):
    """Lines of one start: a loss in every batch, an evaluation after every tenth."""
    for batch in range(first, until):
        write(path, {'batch': batch, 'time/batch': batch}, {'batch': batch, 'loss': value})
        if (batch + 1) % every == 0:
            write(path, {'batch': batch + 1, 'eval': value})
    return path


def test_what_a_resumed_run_went_back_on_is_gone(tmp_path):
    path = start(tmp_path / 'm.jsonl', 0, 150, 1.0)
    write(path, {'batch': 140, 'only/before': 3.0})  # a start that logged nothing else
    start(path, 140, 150, 2.0)
    start(path, 100, 105, 5.0)
    metrics, broken = read_metric_lines(path)
    assert list(metrics['loss']) == list(range(105)) and not broken
    assert metrics['loss'][99] == 1.0 and {metrics['loss'][batch] for batch in range(100, 105)} == {5.0}
    # The evaluation before the checkpoint of batch 100 is not made again, and is the last there is.
    assert metrics['eval'] == dict.fromkeys(range(10, 101, 10), 1.0)
    assert 'only/before' not in metrics


def test_a_run_that_begins_anew_has_no_past(tmp_path):
    path = write(tmp_path / 'm.jsonl', {'batch': 0, 'eval': 9.0, 'gone': 1.0})
    start(path, 0, 30, 1.0)
    write(path, {'batch': 0, 'eval': 8.0}, {'batch': 0, 'loss': 4.0}, {'batch': 0})
    assert read_metric_lines(path) == ({'eval': {0: 8.0}, 'loss': {0: 4.0}}, 0)


def test_one_start_keeps_everything_of_a_batch(tmp_path):
    path = write(
        tmp_path / 'm.jsonl', {'batch': 0, 'a': 1}, {'batch': 0, 'b': 2}, {'batch': 1, 'a': 3}, {'batch': 1, 'b': 4}
    )
    assert read_metric_lines(path) == ({'a': {0: 1.0, 1: 3.0}, 'b': {0: 2.0, 1: 4.0}}, 0)


def test_a_torn_line_is_left_out_and_said(tmp_path, caplog):
    path = start(tmp_path / 'm.jsonl', 0, 3, 1.0)
    with path.open('a') as file:
        file.write('{"batch": 3, "lo')
    with caplog.at_level(logging.WARNING):
        assert read_metrics(path)['loss'] == {0: 1.0, 1: 1.0, 2: 1.0}
    assert str(path) in caplog.text and 'were left out: 1' in caplog.text
    with pytest.raises(ValueError, match='none.jsonl: no such file'):
        read_metrics(tmp_path / 'none.jsonl')


@pytest.mark.parametrize('before', ['', '{"batch": 0, "x": 1.0}\n', '{"batch": 0, "x": 1.0}\n{"batch": 1, "x'])
def test_the_first_line_after_a_kill_can_be_read(tmp_path, before):
    path = tmp_path / 'below' / 'm.jsonl'
    if before:
        path.parent.mkdir()
        path.write_text(before)
    logger = MetricsFile(str(path))
    logger.init(None, None)
    assert path.is_file() == bool(before)  # a run that has not logged anything has no log
    logger.log_metrics({'x': 2.0, 'text': 'no number'}, 1)
    metrics, broken = read_metric_lines(path)
    assert metrics['x'] == ({0: 1.0, 1: 2.0} if before else {1: 2.0})
    assert broken == (not before.endswith('\n') and bool(before))
    assert path.read_text().count('\n') == len(path.read_text().splitlines())
