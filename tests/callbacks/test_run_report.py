"""run_report in real (tiny) runs: the page is there, says what the masks say, and nothing that is wrong with it stops
a run."""

from __future__ import annotations

import gc
import json
import logging
import time
from types import SimpleNamespace

import numpy as np
import pytest
from composer.core import Callback, Evaluator
from llmfoundry.models.hf import ComposerHFCausalLM

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.callbacks.run_report import RunReport
from llmshearing.metrics.logger import MetricsFile
from llmshearing.metrics.run_log import read_run
from llmshearing.reports.kept import kept_matrix
from tests.tiny_run import sequences_spec, tiny_source, tiny_tokenizer, tiny_trainer

TARGET = {'num_hidden_layers': 2, 'intermediate_size': 24}


@pytest.fixture
def source(tmp_path):
    return tiny_source(tmp_path / 'source')


def train(
    tmp_path, source, callback, batches=4, name='prune', evaluate=True, close=True, pruning=True, more=(), **settings
):
    """A tiny run with the callback; returns its trainer, closed."""
    evaluator = Evaluator(
        label='held_out', dataloader=sequences_spec(8, 4, seed=1), metric_names=['LanguageCrossEntropy']
    )
    trainer = tiny_trainer(
        source,
        [TargetedPruning(TARGET, mask_learning='progressive', warmup='2ba')] if pruning else [],
        batches=batches,
        callbacks=[callback, *more],
        loggers=[MetricsFile(str(tmp_path / f'{name}_metrics.jsonl'))],
        **({'eval_dataloader': evaluator, 'eval_interval': '2ba'} if evaluate else {}),
        **settings,
    )
    trainer.fit()
    if close:
        trainer.close()
    return trainer


def test_the_page_and_the_masks_are_there(tmp_path, source, caplog):
    with caplog.at_level(logging.WARNING, 'llmshearing'):
        export, checkpoints = ExportPruned(str(tmp_path / 'pruned')), str(tmp_path / 'checkpoints')
        trainer = train(tmp_path, source, RunReport(min_seconds=0), more=[export], save_folder=checkpoints)
    assert not [record for record in caplog.records if record.name.startswith('llmshearing')]
    page = (tmp_path / 'prune_report' / 'report.html').read_text()
    assert 'Masks, and what is kept' in page and 'Target, expected and hard counts' in page
    assert (tmp_path / 'prune_report' / 'prune_masks_layers.svg').read_text().startswith('<svg ')
    run = read_run(tmp_path / 'prune_metrics.jsonl')
    # What is noted during the run is what the export cut.
    exported = json.loads((tmp_path / 'pruned' / 'pruning.json').read_text())
    assert run.pruning['kept'] == exported['kept'] and run.pruning['axes'] == exported['axes']
    assert run.pruning['tolerance'] == 0.05
    pruning = trainer.state.algorithms[0]
    probability = np.array(run.pruning['mask_values']['layer'])
    assert probability == pytest.approx(pruning.learner.expected_kept()['layer'].numpy(), abs=5e-4)
    assert kept_matrix(run.pruning, 'intermediate').sum() == 2 * 24
    assert run.state['exported'] == {'folder': str(tmp_path / 'pruned')} and run.state['saves'] is True
    assert run.state['seconds'] > 0
    assert run.state['settings']['precision'] == 'fp32' and run.state['settings']['mask learning'] == 'progressive'
    assert 'Exported at its target.' in page and 'largest difference of logits' in page
    model = trainer.state.model
    assert run.state['source']['parameters'] == sum(p.numel() for p in model.parameters())
    assert (run.state['elapsed_share'], run.state['max_duration'], run.state['batch']) == (1.0, '4ba', 4)
    # The planned size of the result is that of the folder it became.
    continued = ComposerHFCausalLM(tokenizer=tiny_tokenizer(), pretrained_model_name_or_path=str(tmp_path / 'pruned'))
    assert run.state['result']['parameters'] == sum(p.numel() for p in continued.parameters())
    # A run that continues from it knows both sizes as well.
    train(
        tmp_path,
        source,
        RunReport(pruned=str(tmp_path / 'pruned')),
        name='continue',
        pruning=False,
        model=continued,
        evaluate=False,
    )
    later = read_run(tmp_path / 'continue_metrics.jsonl')
    assert later.state['source']['parameters'] == run.state['source']['parameters']
    assert later.state['result'] == run.state['result'] and not later.pruning


def test_a_resumed_run_goes_on_with_the_same_page(tmp_path, source, monkeypatch):
    saved = dict(save_folder=str(tmp_path / 'checkpoints'), save_interval='2ba', save_overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(RunReport, '_refresh', lambda self, state: None)  # this one's page is not looked at
        train(tmp_path, source, RunReport(), evaluate=False, **saved)
    before = read_run(tmp_path / 'prune_metrics.jsonl')
    with (tmp_path / 'prune_metrics.jsonl').open('a') as file:
        file.write('{"batch": 4, "loss/tr')  # as after a kill in the middle of a line
    train(
        tmp_path,
        source,
        RunReport(),
        evaluate=False,
        load_path=str(tmp_path / 'checkpoints' / 'ep0-ba2-rank0.pt'),
        **saved,
    )
    after = read_run(tmp_path / 'prune_metrics.jsonl')
    assert after.series('loss/train/total')[0].tolist() == [0, 1, 2, 3]
    assert after.series('loss/train/total')[1] == pytest.approx(before.series('loss/train/total')[1], rel=1e-5)
    assert after.state['batch'] == 4 and 'could not be read' in after.notes[0]
    assert after.notes[0].split('.')[0] in (tmp_path / 'prune_report' / 'report.html').read_text()


@pytest.mark.parametrize('trouble', ['no folder', 'no process', 'bad law'])
def test_no_trouble_with_the_page_stops_a_run(tmp_path, source, trouble, caplog, monkeypatch):
    callback = RunReport()
    if trouble == 'no folder':
        (tmp_path / 'file').write_text('')
        callback = RunReport(folder=str(tmp_path / 'file' / 'below'))
    elif trouble == 'no process':
        monkeypatch.setattr('sys.executable', str(tmp_path / 'no-python'))
    else:
        (tmp_path / 'law.json').write_text('{"law": "p2", "version": 99}')
        callback = RunReport(law=str(tmp_path / 'law.json'))
    with caplog.at_level(logging.WARNING, 'llmshearing'):
        trainer = train(
            tmp_path, source, callback, batches=2, pruning=trouble != 'bad law', evaluate=trouble == 'bad law'
        )
    assert trainer.state.timestamp.batch == 2
    if trouble == 'bad law':  # the page is made, and says so
        assert 'No projection of prune' in (tmp_path / 'prune_report' / 'report.html').read_text()
    else:
        assert any('run_report could not' in record.getMessage() for record in caplog.records)


def test_how_often(tmp_path, source, monkeypatch):
    seen = []
    monkeypatch.setattr(
        RunReport,
        '_refresh',
        lambda self, state, closing=False: (
            seen.append(state.timestamp.batch.value) or setattr(self, '_evaluated', False)
        ),
    )
    train(tmp_path, source, RunReport(min_seconds=0, max_seconds=1e6), name='often')
    assert seen == [2, 4, 4, 4]  # after both evaluations, at the end of training, at the very end (nothing was read)
    seen.clear()
    train(tmp_path, source, RunReport(min_seconds=1e6, max_seconds=1e6), name='rarely')
    assert seen == [4, 4]
    seen.clear()
    train(tmp_path, source, RunReport(min_seconds=0, max_seconds=0), name='always', evaluate=False)
    assert seen == [1, 2, 3, 4, 4, 4]


def test_a_run_that_breaks_off_is_not_said_to_train(tmp_path, source):
    class Fail(Callback):
        def batch_start(self, state, logger):
            if state.timestamp.batch == 3:
                note.update(json.loads((tmp_path / 'broken_run.json').read_text()))
                raise ValueError('no')

    note = {}
    with pytest.raises(ValueError, match='no'):
        train(tmp_path, source, RunReport(min_seconds=0), batches=8, name='broken', more=[Fail()])
    assert not note['closed'] and note['due'] > time.time() + 1700  # a page older than that says so
    gc.collect()  # Composer closes the callbacks when the trainer goes
    page = (tmp_path / 'broken_report' / 'report.html').read_text()
    assert 'Stopped before its end.' in page and 'time left' not in page


def test_what_is_planned_is_noted_before_the_first_batch(tmp_path, source):
    class Kill(Callback):
        def batch_start(self, state, logger):
            note.update(json.loads((tmp_path / 'prune_run.json').read_text()))

    note, rarely = {}, RunReport(min_seconds=1e6, max_seconds=1e6)
    train(tmp_path, source, rarely, batches=1, evaluate=False, more=[Kill()])
    assert (note['batch'], note['elapsed_share'], note['max_duration'], note['closed']) == (0, 0.0, '1ba', False)
    assert note['references'] is None and note['result']['parameters'] < note['source']['parameters']


def test_a_run_that_is_refused_before_anything_was_logged_ends_with_that_one_message(tmp_path, source, caplog):
    class Refuse(Callback):
        def fit_start(self, state, logger):
            raise ValueError('no')

    with pytest.raises(ValueError, match='no'):
        train(tmp_path, source, RunReport(), name='refused', more=[Refuse()])
    assert 'Error running' not in caplog.text


def test_refusals(tmp_path, source):
    newer = tmp_path / 'newer'
    newer.mkdir()
    (newer / 'pruning.json').write_text('{"version": 2}')
    with pytest.raises(ValueError, match='max_seconds: expected a number of at least 5, got 1'):
        RunReport(min_seconds=5, max_seconds=1)
    with pytest.raises(ValueError, match='add `metrics_file'):
        tiny_trainer(source, [], callbacks=[RunReport()])
    for settings, words in (
        ({'pruned': str(tmp_path)}, 'no pruning.json in pruned='),
        ({'pruned': str(newer)}, 'pruning.json is of version 2; this release reads version 1'),
        ({'law': 'none.json'}, 'no file law='),
    ):
        with pytest.raises(ValueError, match=words):
            tiny_trainer(
                source, [], callbacks=[RunReport(**settings)], loggers=[MetricsFile(str(tmp_path / 'm.jsonl'))]
            )


def test_other_ranks_write_nothing(tmp_path, source, monkeypatch):
    monkeypatch.setattr('llmshearing.callbacks.run_report.dist', SimpleNamespace(get_global_rank=lambda: 1))
    callback = RunReport(min_seconds=0, max_seconds=0)
    state = train(tmp_path, source, callback, batches=2, evaluate=False).state
    callback.close(state, None)
    assert not [path for path in tmp_path.iterdir() if path.name not in ('source', 'prune_metrics.jsonl')]
