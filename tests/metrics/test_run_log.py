"""Reading what runs leave behind, whole, resumed, killed or absent."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmshearing.metrics.run_log import find_logs, read_run, read_series
from tests.metrics.logs import DOMAINS, eval_loss, pruning_record, write_log, write_run


def test_a_resumed_log_takes_the_last_value_and_skips_half_lines(tmp_path):
    path = tmp_path / 'a_metrics.jsonl'
    path.write_text(
        '{"batch": 0, "x": 1}\n{"batch": 2, "x": 3}\n{"batch": 1, "x": 2}\n{"batch": 2, "x{"batch": 2, "x": 5}\n'
        '{"batch": 2, "x": 4}\n[]\n{"x": 1}\n{"batch": 3, "x": NaN}\n'
    )
    metrics, broken = read_series(path)
    assert broken == 3
    assert metrics['x'][0].tolist() == [0, 1, 2, 3]
    assert metrics['x'][1].tolist()[:3] == [1, 2, 4] and np.isnan(metrics['x'][1][3])


def test_notes_of_an_earlier_start_are_not_the_state_of_this_one(tmp_path):
    """A run of 40 batches with its note and export, then the same run begun anew and now at batch 5."""
    write_run(tmp_path)
    for name in ('prune', 'continue'):
        log = tmp_path / f'{name}_metrics.jsonl'
        log.write_text(log.read_text() + write_log(tmp_path / 'new', name == 'prune', batches=5).read_text())
    after, prune = read_run(tmp_path / 'continue_metrics.jsonl'), read_run(tmp_path / 'prune_metrics.jsonl')
    assert after.batches == 5 and not after.domain_losses()
    assert 'elapsed_share' not in after.state and after.state['source']['parameters'] == 1000000
    assert after.notes[0].startswith('continue_run.json is of batch 40, which the log has gone back on')
    assert prune.batches == 5 and prune.pruning == {}
    assert prune.notes[0].startswith('pruned/pruning.json is of batch 40, which the log has gone back on')


def test_runs_and_what_lies_beside_them(tmp_path):
    write_run(tmp_path)
    logs = find_logs(tmp_path)
    assert {path.name for path in logs} == {'prune_metrics.jsonl', 'continue_metrics.jsonl'}
    prune, after = read_run(tmp_path / 'prune_metrics.jsonl'), read_run(tmp_path / 'continue_metrics.jsonl')
    assert (prune.name, prune.is_pruning, prune.batches) == ('prune', True, 40)
    assert prune.pruning['kept']['hidden'] == list(range(64))
    assert after.pruning == {} and after.state['result']['parameters'] == 400000
    assert after.references == pytest.approx({name: 1.5 + i for i, name in enumerate(DOMAINS)})
    assert after.domain_losses()['law'][1][-1] == eval_loss(40, 2)
    assert after.tokens_at(np.array([0, 10, 40])).tolist() == [0, 10240, 40960]
    # While it runs the last count in the log is that before batch 39; an evaluation after it has seen one batch more.
    running = read_run(write_log(tmp_path / 'running' / 'm.jsonl', pruning=False, ended=False))
    assert running.series('time/token')[1][-1] == 39936 and running.tokens_at(np.array([40])).tolist() == [40960]


def test_references_from_the_gaps_where_there_is_no_file(tmp_path):
    run = read_run(write_log(tmp_path / 'm.jsonl', pruning=False))
    assert run.references == pytest.approx({name: 1.5 + i for i, name in enumerate(DOMAINS)})
    assert run.name == 'm'


def test_several_exports_are_not_guessed_from(tmp_path):
    write_run(tmp_path)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'pruning.json').write_text('{}')
    run = read_run(tmp_path / 'prune_metrics.jsonl')
    assert run.pruning == {} and '2 folders with a pruning.json' in run.notes[0]


@pytest.mark.parametrize('shapes', [{}, {'source_shape': 3, 'target_shape': []}])
def test_an_incomplete_record_is_left_out(tmp_path, shapes):
    write_run(tmp_path)
    (tmp_path / 'pruned' / 'pruning.json').write_text(json.dumps({'axes': [], 'kept': {}, **shapes}))
    run = read_run(tmp_path / 'prune_metrics.jsonl')
    assert run.pruning == {} and run.notes == ('the pruning record lacks source_shape, target_shape and was left out',)


def test_a_record_of_a_newer_release_is_left_out(tmp_path):
    write_run(tmp_path)
    (tmp_path / 'pruned' / 'pruning.json').write_text(json.dumps({**pruning_record(), 'version': 2}))
    run = read_run(tmp_path / 'prune_metrics.jsonl')
    assert run.pruning == {} and 'is of version 2; this release reads version 1. It was left out' in run.notes[0]


def test_files_that_cannot_be_read_are_named(tmp_path):
    log = write_log(tmp_path / 'a_metrics.jsonl', pruning=False)
    (tmp_path / 'reference_losses.json').write_text('{"reference')
    (tmp_path / 'a_run.json').write_text(json.dumps({'version': 99}))
    notes = read_run(log).notes
    assert 'reference_losses.json is not JSON' in notes[1] and 'a_run.json is of version 99' in notes[0]


@pytest.mark.parametrize('references', [[1, 2], {'law': '1.9'}, {'law': True}, 'text', None])
def test_references_that_are_no_numbers_are_left_out_and_named(tmp_path, references):
    log = tmp_path / 'a_metrics.jsonl'
    log.write_text('{"batch": 0, "loss/train/total": 3.5}\n')
    (tmp_path / 'reference_losses.json').write_text(json.dumps({'reference_losses': references}))
    run = read_run(log)
    assert run.references == {}
    assert run.notes[0].startswith('reference_losses.json was left out: expected numbers by domain')


def test_a_state_of_other_kinds_is_left_out_and_named(tmp_path):
    log = write_log(tmp_path / 'a_metrics.jsonl', pruning=False)
    state = {'version': 1, 'batch': 5, 'elapsed_share': 'x', 'source': [1], 'result': None, 'max_duration': '40ba'}
    (tmp_path / 'a_run.json').write_text(json.dumps(state))
    run = read_run(log)
    assert run.state == {'version': 1, 'batch': 5, 'result': None, 'max_duration': '40ba'}
    assert run.notes[0].startswith("a_run.json holds elapsed_share='x', source=[1], which run_report never writes")
    (tmp_path / 'a_run.json').write_text(json.dumps({**state, 'source': {'parameters': 'x'}}))
    assert 'source' not in read_run(log).state


def test_lines_with_numbers_that_are_none_are_skipped(tmp_path):
    path = tmp_path / 'a_metrics.jsonl'
    path.write_text('{"batch": Infinity, "x": 1}\n{"batch": 1, "x": 1' + '0' * 400 + '}\n{"batch": 2, "x": 3}\n')
    metrics, broken = read_series(path)
    assert broken == 2 and metrics['x'][0].tolist() == [2]


@pytest.mark.parametrize(
    'content, words', [(None, 'no such file'), ('', 'no metrics in it'), ('{"batch": 1}\n', 'no metrics in it')]
)
def test_no_metrics(tmp_path, content, words):
    path = tmp_path / 'x_metrics.jsonl'
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_series(path)


def test_no_logs(tmp_path):
    with pytest.raises(ValueError, match='add the logger metrics_file'):
        find_logs(tmp_path)
    with pytest.raises(ValueError, match='no such file or folder'):
        find_logs(tmp_path / 'nothing')
