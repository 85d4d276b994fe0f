"""The evaluators of the domains: what they measure, how long that takes, and which do not belong to a mixture."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from streaming.base.partition import get_partitions

from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading, eval_clock
from llmshearing.callbacks.dynamic_batch_loading.evaluators import prepare_evaluation
from tests.callbacks.mixture_runs import folder  # noqa: F401
from tests.dynamic_text_run import REFERENCES, SIZES, evaluators, tiny_trainer
from tests.dynamic_text_world import SEQ_LEN, on_ranks, tiny_tokenizer

pytestmark = pytest.mark.usefixtures('closed_loaders')


def test_a_domain_without_evaluator_is_told(folder):
    with pytest.raises(ValueError, match=r"Domain 'b' has no evaluator; there are \['eval/a', 'eval/c'\]"):
        tiny_trainer(folder, eval_dataloader=evaluators(folder, domains=['a', 'c'])).fit()


def test_an_evaluator_that_misses_the_end_of_a_round_is_told(folder):
    evals = evaluators(folder)
    evals[1].eval_interval = lambda state, event: False
    with pytest.raises(ValueError, match=r"Evaluators \['eval/b'\] did not run at the end of mixing round 0"):
        tiny_trainer(folder, eval_dataloader=evals).fit()


def test_an_empty_evaluation_is_told(folder):
    """A domain whose every token is masked has a loss of 0 / 0."""
    trainer = tiny_trainer(folder)
    metric = trainer.state.eval_metrics['eval/b']['LanguageCrossEntropy']
    metric.update = lambda output, target: None
    with pytest.raises(ValueError, match=r"evaluation loss of \{'b': nan\} is not a finite number"):
        trainer.fit()


def test_the_evaluation_is_capped(folder):
    update = DynamicBatchLoading(REFERENCES, max_eval_sequences=9)
    trainer = tiny_trainer(folder, '3ba', update=update)
    trainer.fit()
    assert [evaluator.subset_num_batches for evaluator in trainer.state.evaluators] == [3, 3, 3]
    trainer = tiny_trainer(folder, '3ba', update=DynamicBatchLoading(REFERENCES, max_eval_sequences=None))
    trainer.fit()
    assert [evaluator.subset_num_batches for evaluator in trainer.state.evaluators] == [-1, -1, -1]


def test_an_evaluation_before_the_first_step_is_of_the_same_sequences(folder):
    trainer = tiny_trainer(folder, '3ba', update=DynamicBatchLoading(REFERENCES, max_eval_sequences=9))
    trainer.eval()
    assert [evaluator.subset_num_batches for evaluator in trainer.state.evaluators] == [3, 3, 3]


def test_the_evaluation_counts_tokens_that_equal_padding_as_training_does(folder):
    trainer = tiny_trainer(folder)
    padding = tiny_tokenizer().pad_token_id
    for evaluator in trainer.state.evaluators:
        loader = evaluator.dataloader.dataloader
        prepare_evaluation(trainer.state, list(SIZES), None)  # again changes nothing
        batch = next(iter(loader))
        assert (batch['input_ids'] == padding).any() and torch.equal(batch['labels'], batch['input_ids'])
        assert batch['loss_generating_tokens'] == [SEQ_LEN - 1] * len(batch['labels'])


@pytest.mark.parametrize(('nodes', 'ranks', 'workers'), [(1, 1, 2), (1, 8, 3), (2, 8, 2), (4, 8, 1)])
def test_the_capped_evaluation_is_of_the_first_sequences(folder, monkeypatch, nodes, ranks, workers):
    """As Streaming deals 300 sequences to the ranks; 50 are asked for, in batches of 2 on each rank."""
    evals = evaluators(folder, 2)
    state = SimpleNamespace(evaluators=evals)
    monkeypatch.setattr('composer.utils.dist.get_world_size', lambda: nodes * ranks)
    prepare_evaluation(state, ['a'], 50)
    limits = [evaluator.subset_num_batches for evaluator in evals]
    canonical = [evaluator.dataloader.dataloader.dataset.num_canonical_nodes for evaluator in evals]
    assert limits[1:] == [None, None] and canonical == [1, None, None]
    dealt = get_partitions('relaxed', 300, canonical[0], nodes, ranks, workers, 2)
    batches = dealt.transpose(3, 2, 0, 1, 4).reshape(-1, nodes * ranks * 2)  # in the order they are served
    served = -(-50 // (nodes * ranks * 2)) * nodes * ranks * 2
    assert sorted(batches[: limits[0]].ravel().tolist()) == list(range(served))


def evaluate_rank(rank, folder):
    torch.distributed.init_process_group('gloo')
    state = SimpleNamespace(evaluators=evaluators(folder, 2))
    prepare_evaluation(state, ['a'], None)
    data = state.evaluators[1].dataloader.dataloader.dataset  # two nodes share no memory: this is what they would read
    data.shards = data.shards[: len(data.shards) - rank]
    with pytest.raises(
        ValueError, match=r'^shards of the evaluator \S*b \(their hash\): \w+ on rank 1 .* every node needs'
    ):
        prepare_evaluation(state, ['a'], None)
    torch.distributed.destroy_process_group()


def test_nodes_with_other_evaluation_data_are_refused(folder):
    on_ranks(2, evaluate_rank, folder)


def test_the_time_in_evaluation_is_measured_and_warned_of_once(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(eval_clock.time, 'monotonic', lambda: now[0])
    clock, shares = eval_clock.EvalClock(0.25), []
    for training, evaluation in ((9, 1), (6, 4), (5, 5)):
        now[0] += training
        clock.start_evaluation()
        now[0] += evaluation
        clock.end_evaluation()
        shares.append(clock.end_round())
    assert shares == pytest.approx([0.1, 0.4, 0.5])
    assert [record.getMessage()[:20] for record in caplog.records] == ['Evaluation took 40 %']


def test_an_evaluator_that_reads_the_data_of_another_domain_is_refused(folder, tmp_path):
    wrong = [*evaluators(folder, domains=['a', 'b']), *evaluators(folder, domains=['b'])]
    wrong[2].label = 'eval/c'
    with pytest.raises(ValueError, match="evaluator of domain 'c' reads .*/b, which is named like domain 'b'.*"):
        tiny_trainer(folder, eval_dataloader=wrong).fit()

    shutil.copytree(folder / 'a', tmp_path / 'all')  # a name that says nothing
    wrong = [*evaluators(tmp_path, domains=['all', 'all']), *evaluators(folder, domains=['c'])]
    wrong[0].label, wrong[1].label = 'eval/a', 'eval/b'
    with pytest.raises(ValueError, match="evaluators of the domains 'a' and 'b' both read .*/all; give each its own"):
        tiny_trainer(folder, eval_dataloader=wrong).fit()


def test_an_evaluator_that_reads_what_is_trained_on_is_warned_of(folder, tmp_path, caplog):
    for name in ('a', 'b'):
        shutil.copytree(folder / name, tmp_path / name)
    held_out = [*evaluators(tmp_path, domains=['a', 'b']), *evaluators(folder, domains=['c'])]
    tiny_trainer(folder, '3ba', eval_dataloader=held_out).fit()
    told = [record.getMessage() for record in caplog.records if 'which the run trains on' in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("The evaluator of domain 'c' reads ")
