"""Options of the callback, and runs that they do not fit: told before training."""

from __future__ import annotations

import json

import pytest
import torch

from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading, updates
from tests.callbacks.mixture_runs import folder  # noqa: F401
from tests.dynamic_text_run import REFERENCES, tiny_trainer

pytestmark = pytest.mark.usefixtures('closed_loaders')


def test_references_come_from_a_file(tmp_path):
    path = tmp_path / 'references.json'
    path.write_text(json.dumps({'reference_losses': REFERENCES, 'model': 'x'}))
    assert DynamicBatchLoading(str(path)).reference_losses == REFERENCES
    for content, words in (('[1]', 'expected a JSON object, got a list'), ('{}', 'no mapping "reference_losses"')):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            DynamicBatchLoading(str(path))
    for content in (b'{"reference_losses": {', b'', b'\xff\xfe'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'^reference_losses: .*references.json is not JSON \(.+\). Give a file'):
            DynamicBatchLoading(str(path))
    for loss in ('"x"', 'null', 'true', 'Infinity'):
        path.write_text(f'{{"reference_losses": {{"a": {loss}, "b": 1.0}}}}')
        with pytest.raises(ValueError, match=r"must be numbers of at least 0, but .*references.json gives \{'a': "):
            DynamicBatchLoading(str(path))
    with pytest.raises(FileNotFoundError, match='reference_losses: .*nothing.json; let `llmshearing reference-losses`'):
        DynamicBatchLoading(str(tmp_path / 'nothing.json'))
    with pytest.raises(ValueError, match=r"must be numbers of at least 0, but reference_losses gives \{'a': nan\}"):
        DynamicBatchLoading({'a': float('nan')})


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'update': 'shear'}, "update: expected one of .*sheared,.* got 'shear'"),
        ({'smoothing': 1.5}, 'smoothing: expected a number of at least 0 and at most 1, got 1.5'),
        ({'floor': -0.1}, 'floor: expected a number of at least 0 and at most 1'),
        ({'eta': -1}, 'eta: expected a number of at least 0, got -1'),
        ({'eta': float('nan')}, 'eta: expected a number of at least 0, got nan'),
        ({'rho': float('inf')}, 'rho: expected a number of at least 0, got inf'),
        ({'max_eval_sequences': 0}, 'max_eval_sequences: expected a whole number of at least 1'),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        DynamicBatchLoading(REFERENCES, **options)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        ({'eval_interval': '2ba'}, 'runs every 2ba, but a mixing round has 3 batches.*3ba'),
        ({'eval_interval': '6ba'}, 'runs every 6ba'),
        ({'eval_interval': '2ep'}, 'runs every 2ep'),
        ({'update': DynamicBatchLoading({'a': 1.0})}, r"no reference loss for domains \['b', 'c'\], only for \['a'\]"),
        ({'update': DynamicBatchLoading({'a': 1.0}, update='dro')}, r"no reference loss for domains \['b', 'c'\]"),
        ({'update': DynamicBatchLoading(update='dro'), 'duration': '1iter'}, 'does not say how many samples that is'),
        ({'update': DynamicBatchLoading(REFERENCES, metric='Accuracy')}, "has no metric 'Accuracy', only"),
        ({'update': DynamicBatchLoading(REFERENCES, floor=0.4)}, 'Lower the floor'),
        ({'train_subset_num_batches': 2}, 'A mixing round has 3 batches, but an epoch is to have 2'),
        ({'eval_interval': lambda state, event: False}, 'round 0 ended without an evaluation.*3ba'),
    ],
)
def test_what_does_not_fit_together_is_told(folder, settings, match):
    with pytest.raises(ValueError, match=match):
        tiny_trainer(folder, **settings).fit()


def test_other_training_data_is_told(folder):
    trainer = tiny_trainer(folder)
    with pytest.raises(ValueError, match='needs a train_loader with name: dynamic_text, but the training data is list'):
        trainer.fit(train_dataloader=torch.utils.data.DataLoader([1, 2, 3]))


def test_a_remote_weights_file_is_refused():
    with pytest.raises(ValueError, match='weights_file: expected a file on this machine'):
        DynamicBatchLoading(REFERENCES, weights_file='s3://bucket/mixture.json')


@pytest.mark.parametrize(
    ('options', 'vain'),
    [
        ({'update': 'dro', 'eta': 3.0, 'smoothing': 0.1}, 'eta, smoothing'),
        ({'update': 'constant', 'rho': 2.0, 'average': True}, 'rho, average'),
        ({'update': 'ado', 'eta': 3.0, 'smoothing': 0.1}, 'eta'),
        ({'update': 'sheared', 'rho': 0.5, 'eta': 2.0}, 'rho'),
    ],
)
def test_an_option_that_the_rule_does_not_go_by_is_told(caplog, options, vain):
    DynamicBatchLoading(**options)
    text = f'update: {options["update"]} does not go by {vain}; remove it, or choose another update.'
    assert [record.getMessage() for record in caplog.records] == [text]


@pytest.mark.parametrize('share', [0, -1, 7, 'much'])
def test_a_share_of_time_is_a_share(share):
    with pytest.raises(ValueError, match='max_eval_share: expected a number above 0 and at most 1, got'):
        DynamicBatchLoading(max_eval_share=share)


def test_a_rule_of_a_third_party_is_named_like_ours_and_a_bare_function_is_refused(monkeypatch, caplog):
    import catalogue

    monkeypatch.setattr(catalogue, 'REGISTRY', dict(catalogue.REGISTRY))
    updates.update_rules('linear', func=updates.UpdateRule(updates.constant, reads=('rho',), keeps_domains_alive=True))
    DynamicBatchLoading(update='linear', rho=0.5, eta=2.0)
    assert [record.getMessage()[:36] for record in caplog.records] == ['update: linear does not go by eta; r']
    updates.update_rules('bare', func=updates.constant)
    with pytest.raises(ValueError, match='bare is registered as a function, expected an UpdateRule; register'):
        DynamicBatchLoading(update='bare')
