"""The first line about a run, and the numbers beside it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from llmshearing.metrics.names import TRAIN_LOSS
from llmshearing.metrics.run_log import RunLog, read_run
from llmshearing.reports.blocks import Section
from llmshearing.reports.page import Chapter, write_page
from llmshearing.reports.verdict import loss_beside_source, seconds_left, verdict
from tests.metrics.logs import DOMAINS, eval_loss, pruning_record, write_log, write_run

HALF = {'elapsed_share': 0.5, 'max_duration': '80ba', 'seconds': 60.0}
LEFT = {**HALF, 'closed': True, 'batch': 40}
UNSAVED = {'elapsed_share': 1.0, 'saves': False}


@pytest.fixture
def prune(tmp_path) -> RunLog:
    return read_run(write_log(tmp_path / 'prune_metrics.jsonl', pruning=True))


def with_state(run, away=0.25, **state):
    """The run with expected counts so far above their targets."""
    record = pruning_record(live=True)
    for axis in record['axes']:
        axis['expected'] = axis['target'] + away
    return dataclasses.replace(run, state=state, pruning=record)


@pytest.mark.parametrize(
    'away, state, first, rest, mood',
    [
        (0.25, HALF, 'At its target, still training.', '50.0 % done (batch 40 of 80), about 1 min 00 s left', 'open'),
        (9, HALF, 'On the way to its target.', 'layer 13 of 4; hidden 73 of 64', 'open'),
        (9, LEFT, 'Stopped before its end.', '50.0 % done (batch 40 of 80). Next: begin it again', 'open'),
        (9, {**LEFT, 'batch': 20}, 'On the way to its target.', 'about 1 min 00 s left', 'open'),  # trains on since
        (9, {'elapsed_share': 1.0}, 'Ended away from its target.', 'Next: train longer', 'bad'),
        (0.25, {'elapsed_share': 1.0}, 'At its target, not exported.', 'llmshearing export CHECKPOINT', 'open'),
        (9, {**LEFT, 'saves': False}, 'Stopped before', 'Next: begin it again: it has no save_folder', 'open'),
        (0.25, UNSAVED, 'At its target, not', 'again, with callbacks.export_pruned or a save_folder.', 'open'),
        (0.25, {'exported': {'folder': 'a/b'}}, 'Exported at its target.', 'in a/b, opened with transformers', 'good'),
        (9, {'exported': {'folder': 'a'}}, 'Exported, with masks that were not at', 'Next: continue', 'open'),
    ],
)
def test_pruning(prune, away, state, first, rest, mood):
    said = verdict(with_state(prune, away, **state))
    assert said.first.startswith(first) and rest in said.rest and said.mood == mood


def test_a_run_is_held_to_its_own_tolerance(prune):
    ended = with_state(prune, 9, elapsed_share=1.0)
    assert verdict(ended).first == 'Ended away from its target.'
    ended.pruning['tolerance'] = 0.9
    assert 'layer' in verdict(ended).rest  # 9 of 4 are too many for any
    for axis in ended.pruning['axes']:
        axis['expected'] = axis['target'] * 1.5
    assert verdict(ended).first == 'At its target, not exported.'


def test_how_it_was_checked_is_a_number_where_it_was_logged(prune):
    with prune.path.open('a') as file:
        file.write(json.dumps({'batch': 40, 'export/logit_difference': 3.1e-7}) + '\n')
    run = with_state(read_run(prune.path), exported={'folder': 'x'}, elapsed_share=1.0)
    assert '(largest difference of logits 3.1e-07)' in verdict(run).rest


def test_training_after_it(tmp_path):
    run = read_run(write_run(tmp_path))
    loss = sum(eval_loss(40, i) for i in range(len(DOMAINS))) / len(DOMAINS)
    assert loss_beside_source(run) == pytest.approx((loss, 2.5))
    said = verdict(run)
    assert said.first == 'Training.' and f"{loss:.4f}, {loss - 2.5:.4f} above the source's" in said.rest
    finished = dataclasses.replace(run, state={'elapsed_share': 1.0, 'exported': {'folder': 'runs/final'}})
    assert verdict(finished).first == 'Finished.' and 'The model is in runs/final' in verdict(finished).rest
    assert verdict(dataclasses.replace(run, state={'elapsed_share': 1.0})).first == 'Finished, not exported.'
    assert 'with callbacks.hf_checkpointer or' in verdict(dataclasses.replace(run, state=UNSAVED)).rest
    assert 'the callback run_report would note' in verdict(dataclasses.replace(run, state={})).rest


@pytest.mark.parametrize(
    'noted, share, planned, words',
    [
        (0, 0.0, '80ba', '50.0 % done (batch 40 of 80)'),
        (20, 0.25, '1ep', '50.0 % done (batch 40 of 1ep)'),
        (0, 0.0, '1ep', 'Batch 40 of 1ep.'),
    ],
)
def test_a_log_that_goes_beyond_its_last_note_says_how_far(tmp_path, noted, share, planned, words):
    write_log(tmp_path / 'x_metrics.jsonl', pruning=False, ended=False)
    note = {'version': 1, 'batch': noted, 'elapsed_share': share, 'max_duration': planned}
    run = dataclasses.replace(read_run(tmp_path / 'x_metrics.jsonl'), state=note)
    assert words in verdict(run).rest


def test_a_killed_run_is_found_out_when_its_page_is_opened_later(tmp_path):
    run = read_run(write_run(tmp_path))
    noted = {**HALF, 'noted': '2026-11-29 12:00 UTC', 'due': 1.5e9}
    said = verdict(dataclasses.replace(run, state=noted))
    assert (said.first, said.due) == ('Training.', 1.5e9)
    assert 'since 2026-11-29 12:00 UTC. If it was killed, begin it again' in said.overdue
    page = write_page(tmp_path / 'page', 'title', 'lead', [Chapter('run', 'run', [Section('now', [said])])])
    assert '<b data-due="1500000000.0" hidden> Nothing has been noted' in page.read_text()
    for state in ({**noted, 'elapsed_share': 1.0}, {**noted, 'due': None, 'closed': True, 'batch': 100}):
        assert verdict(dataclasses.replace(run, state=state)).due is None


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_run_that_diverged_is_not_to_be_exported(prune, value):
    batches, values = prune.metrics[TRAIN_LOSS]
    metrics = {**prune.metrics, TRAIN_LOSS: (batches, np.append(values[:-1], value))}
    said = verdict(dataclasses.replace(with_state(prune, elapsed_share=1.0), metrics=metrics))
    assert (said.first, said.mood) == ('Diverged.', 'bad') and 'an earlier checkpoint' in said.rest
    assert 'Next: begin it again, with' in verdict(dataclasses.replace(prune, metrics=metrics, state=UNSAVED)).rest


def test_predicted_references_are_not_the_sources_losses(tmp_path):
    log = write_run(tmp_path)
    predicted = {'reference_losses': dict.fromkeys(DOMAINS, 1.0), 'extrapolation': {'factor': 1}}
    (tmp_path / 'reference_losses.json').write_text(json.dumps(predicted))
    assert loss_beside_source(read_run(log)) is None and 'source' not in verdict(read_run(log)).rest


@pytest.mark.parametrize(
    'share, seconds, left', [(0.25, 60.0, 180.0), (1.0, 60.0, None), (None, 60.0, None), (0.5, None, None)]
)
def test_time_left(prune, share, seconds, left):
    assert seconds_left(dataclasses.replace(prune, state={'elapsed_share': share, 'seconds': seconds})) == left
