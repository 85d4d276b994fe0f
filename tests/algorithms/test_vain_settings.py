"""Settings that the chosen learner does not read, or that work against each other, are told."""

import logging

import pytest

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.algorithms.targeted_pruning.settings import PruningSettings
from llmshearing.config.parts import build_for_checks
from llmshearing.masks.learner import LEARNER_KEYS, LearnerSettings
from llmshearing.masks.one_shot import OneShotMasks


def told(caplog, **settings):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        PruningSettings({'num_hidden_layers': 3}, **settings)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ('settings', 'vain'),
    [
        ({'mask_learning': 'lagrangian', 'fade': 0.3, 'multiplier_damping': 3.0}, 'fade'),
        ({'learning_rate': 0.01, 'follow_schedule': False, 'fade': 0.2}, 'learning_rate, follow_schedule'),
        ({'mask_learning': 'one_shot', 'scores': 'magnitude', 'warmup': '5ba', 'fade': 0.2}, 'fade, warmup'),
    ],
)
def test_what_the_learner_does_not_read_is_told_once(caplog, settings, vain):
    learning = settings.get('mask_learning', 'progressive')
    text = f'mask_learning: {learning} does not go by {vain}; remove it, or choose another way of learning.'
    assert told(caplog, **settings) == [text]


@pytest.mark.parametrize('learning', ['lagrangian', 'progressive', 'one_shot'])
def test_defaults_in_so_many_words_are_not_told(caplog, learning):
    defaults = {name: getattr(PruningSettings, name) for name in LEARNER_KEYS}
    assert not told(caplog, mask_learning=learning, scores='magnitude', **defaults)


def test_a_learner_of_somebody_else_that_does_not_say_is_not_asked(caplog, monkeypatch):
    monkeypatch.delattr(OneShotMasks, 'reads')
    assert not told(caplog, mask_learning='one_shot', scores='magnitude', fade=0.2)


def test_keys_are_of_the_settings():
    assert set(LEARNER_KEYS) <= {*vars(PruningSettings), *LearnerSettings.__dataclass_fields__}


def test_the_check_of_a_yaml_leaves_telling_to_the_run(caplog):
    """Both build the settings, and each told of the former name of warmup."""
    settings = {'target': {'num_hidden_layers': 3}, 'lagrangian_warmup': '2ba'}
    with caplog.at_level(logging.WARNING):
        build_for_checks('algorithms.targeted_pruning', PruningSettings, settings)
        assert not caplog.records
        TargetedPruning(**settings)
    assert [record.getMessage().split(' is ')[0] for record in caplog.records] == ['lagrangian_warmup']


def test_frozen_before_the_warm_up_ends_is_told(caplog):
    assert told(caplog, warmup='0.5dur', freeze_masks_after='0.1dur') == [
        'freeze_masks_after: 0.1dur comes before the end of warmup: 0.5dur; masks are then cut to the target at once, '
        'wherever they are. Freeze later, or shorten the warm-up.'
    ]
    for freeze in ('0.5dur', '0.6dur', '4ba'):
        assert not told(caplog, warmup='0.5dur', freeze_masks_after=freeze)
