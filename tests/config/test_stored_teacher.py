"""``distillation: {stored: true}`` in a YAML: the loader follows, and what does not go together is refused."""

from __future__ import annotations

import copy

import pytest

from llmshearing.config.run import check_run, prepare_run
from llmshearing.config.stored_teacher import serve_stored_teacher


def stored(config, **dataset):
    config = copy.deepcopy(config)
    config.setdefault('algorithms', {})['distillation'] = {'stored': True}
    config['train_loader']['dataset'].update(dataset)
    return config


def test_the_loader_serves_the_column_where_distillation_asks_for_it(config):
    assert prepare_run(stored(config))['train_loader']['dataset']['teacher'] is True
    assert 'teacher' not in prepare_run(copy.deepcopy(config))['train_loader']['dataset']


@pytest.mark.parametrize('broken', [{'algorithms': 3}, {'train_loader': []}, {'train_loader': {'dataset': None}}])
def test_whatever_else_is_wrong_is_left_to_the_checks(config, broken):
    serve_stored_teacher({**stored(config), **broken})


def test_what_does_not_go_together(config):
    with pytest.raises(ValueError, match='needs train_loader.dataset.teacher: true, got false; remove that key'):
        prepare_run(stored(config, teacher=False))
    served = stored(config, teacher=True)
    check_run(served)
    del served['algorithms']['distillation']
    with pytest.raises(ValueError, match='serves what only algorithms.distillation.stored: true uses'):
        check_run(served)
    both = stored(config)
    both['algorithms']['distillation']['teacher'] = 'some/model'
    with pytest.raises(ValueError, match='algorithms.distillation: distillation: expected teacher.* got both'):
        prepare_run(both)
    text = stored(config)
    del text['callbacks']['dynamic_batch_loading']
    text['train_loader'] = {**config['eval_loaders'][0]}
    del text['train_loader']['label']
    with pytest.raises(ValueError, match="stored: true needs train_loader.name: dynamic_text, got 'text'"):
        prepare_run(text)
