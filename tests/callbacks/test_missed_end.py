"""What a run that was stopped between its last checkpoint and its end tells of an evaluation that it did not make."""

import json
import logging

import pytest

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.callbacks.resume_settings import ResumeSettings
from llmshearing.metrics.logger import MetricsFile
from tests.tiny_run import tiny_trainer


@pytest.mark.parametrize('evaluated', [2, 3])
def test_an_evaluation_that_is_missing_is_told_in_log_and_card(source, tmp_path, caplog, evaluated):
    def trainer(callbacks, **settings):
        pruning = TargetedPruning({'hidden_size': 36}, warmup='1ba')
        return tiny_trainer(source, [pruning], batches=3, callbacks=callbacks, **settings)

    trainer([], save_folder=str(tmp_path / 'save'), save_filename='ba{batch}.pt').fit()
    metrics = tmp_path / 'metrics.jsonl'
    metrics.write_text(json.dumps({'batch': evaluated, 'metrics/eval/law/LanguageCrossEntropy': 4.5}) + '\n')
    again = {'load_path': str(tmp_path / 'save' / 'ba3.pt'), 'loggers': [MetricsFile(str(metrics))]}
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit, match='^0$'):
        trainer(
            [ResumeSettings({'algorithms': {'targeted_pruning': {}}}), ExportPruned(str(tmp_path / 'out'))], **again
        )
    card = (tmp_path / 'out' / 'README.md').read_text()
    told = (
        'stopped before its evaluation after batch 3, which is not made up for: the card tells the losses after batch 2'
    )
    assert '| law | 4.5000 |' in card and (told in caplog.text) is (evaluated == 2)
    assert ('(eval_masks: expected) after 2 of 3 batches, cross-entropy' in card) is (evaluated == 2)


@pytest.mark.parametrize('warmup', ['4ba', '2ba'])
def test_a_run_that_ended_before_its_checkpoint_is_told_so_first(source, tmp_path, warmup):
    """Its masks had no time to reach the target, of which alone it was told."""

    def trainer(batches, callbacks=(), **settings):
        pruning = TargetedPruning({'hidden_size': 36}, warmup=warmup, mask_learning='lagrangian')
        return tiny_trainer(source, [pruning], batches=batches, callbacks=list(callbacks), **settings)

    saved = tmp_path / 'save'
    trainer(3, save_folder=str(saved), save_filename='ba{batch}.pt').fit()
    callbacks = [ResumeSettings({'algorithms': {'targeted_pruning': {}}}), ExportPruned(str(tmp_path / 'out'))]
    over = '^The checkpoint is of batch 3, past where max_duration: 2ba ends: nothing is left to train.'
    with pytest.raises(ValueError, match=over) as error:
        trainer(2, callbacks, load_path=str(saved / 'ba3.pt'))
    assert 'give a longer max_duration' in str(error.value) and 'target' in str(error.value)
