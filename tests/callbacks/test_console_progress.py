"""The console: one line per interval and evaluation, in numbers that are those of the metrics."""

import io
import re

import pytest

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.console_progress import ConsoleProgress
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.metrics.lines import read_metrics
from llmshearing.metrics.logger import MetricsFile
from tests.tiny_run import sequences_spec, tiny_source, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    work = tmp_path_factory.mktemp('console')
    tiny_source(work / 'source')
    trainer = tiny_trainer(
        work / 'source',
        [TargetedPruning(TARGET)],
        10,
        callbacks=[ExportPruned(str(work / 'out'))],
        loggers=[ConsoleProgress('4ba', ['trainer/device_train_microbatch_size']), MetricsFile(str(work / 'm.jsonl'))],
        eval_dataloader=sequences_spec(4, 4, seed=1),
        eval_interval='5ba',
    )
    written = io.StringIO()
    for logger in trainer.logger.destinations:
        if isinstance(logger, ConsoleProgress):
            logger.stream = written
    trainer.fit()
    trainer.close()
    return work, written.getvalue().splitlines()


def test_one_line_per_interval_and_evaluation(run):
    _, lines = run
    heads = [re.match(r'\[ *(\d+)/10 batches\]  (loss|evaluated)', line) for line in lines[:-1]]
    assert [(int(head[1]), head[2]) for head in heads] == [
        (1, 'loss'), (4, 'loss'), (5, 'evaluated'), (8, 'loss'), (10, 'evaluated'), (10, 'loss')
    ]  # fmt: skip


def test_the_numbers_are_those_of_the_metrics(run):
    work, lines = run
    metrics = read_metrics(work / 'm.jsonl')
    line = next(line for line in lines if line.startswith('[ 8/10'))
    assert f'loss {metrics["loss/train/total"][7]:.4f}  ' in line
    for axis in ('layer', 'hidden', 'kv_group', 'intermediate'):
        expected, target = (metrics[f'pruning/{axis}/{kind}'][7] for kind in ('expected', 'target'))
        assert f'{axis} {expected:.4g} ({target:.4g})' in line
    assert re.search(r'[\d,]+ tokens/s  0:0\d left  kept \(to keep\): ', line)
    assert line.endswith('trainer/device_train_microbatch_size 4')


def test_the_last_line_names_the_folder_and_its_check(run):
    work, lines = run
    assert lines[-1].startswith(f'exported {work / "out"}: opened by transformers, logits within ')
    assert 'masked model' in lines[-1]
