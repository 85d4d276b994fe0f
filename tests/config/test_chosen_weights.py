"""Weights that an optimizer's settings choose by name are there."""

import pytest

from llmshearing.config.chosen_weights import check_chosen_weights
from tests.models.tiny import tiny_model

SETTINGS = {'name': 'decoupled_adamw', 'lr': 1e-3}


@pytest.fixture(scope='module')
def source():
    return tiny_model().config


@pytest.mark.parametrize(
    'settings, message',
    [
        (
            {'disable_grad': 'zzz'},
            "optimizer.disable_grad: 'zzz' is in no name of a weight, .* Names are such as model.",
        ),
        ({'disable_grad': ['norm', 'bais']}, "optimizer.disable_grad: 'bais' is in no name"),
        ({'disable_grad': '('}, r"optimizer.disable_grad: expected a regular expression, got '\('"),
        ({'disable_grad': [3]}, 'optimizer.disable_grad: expected a regular expression, got 3'),
        ({'disable_grad': '.*'}, r'freezes every weight; freeze fewer, or set .*\.freeze_weights: true'),
        ({'param_groups': 'norm'}, 'expected a list of patterns as disable_grad, and of groups as param_groups'),
        ({'param_groups': ['norm']}, r"param_groups\[0\]: expected keys and values, got 'norm'"),
        ({'param_groups': [{'lr': 1e-5}]}, r'param_groups\[0\]: missing param_str_match'),
        ({'param_groups': [{'param_str_match': 'norm', 'lrr': 1}]}, r"param_groups\[0\]: unknown key 'lrr'. Did you"),
        ({'param_groups': [{'param_str_match': 'nrm'}]}, r"param_groups\[0\].param_str_match: 'nrm' is in no name"),
    ],
)
def test_what_chooses_nothing_is_refused(source, settings, message):
    with pytest.raises(ValueError, match=message):
        check_chosen_weights({**SETTINGS, **settings}, source)


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'disable_grad': None, 'param_groups': None},
        {'disable_grad': r'^model\.model\.embed_tokens'},  # as the model calls it
        {
            'disable_grad': ['norm', 'embed'],
            'param_groups': [{'param_str_match': 'mlp', 'lr': 1e-5, 'betas': [0.8, 0.9]}],
        },
    ],
)
def test_what_chooses_something_passes(source, settings):
    check_chosen_weights({**SETTINGS, **settings}, source)
