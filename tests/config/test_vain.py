"""Settings of which nothing comes are named, with what they need."""

import logging
import re

import pytest
from omegaconf import OmegaConf

from llmshearing.config.vain import tell_vain_settings
from tests.config.test_ranges import RUNS


@pytest.mark.parametrize(
    'settings, told',
    [
        (
            {'save_interval': '1ba', 'save_num_checkpoints_to_keep': 2},
            'save_interval, save_num_checkpoints_to_keep: nothing comes of this without save_folder; set that, or '
            'remove this.',
        ),
        ({'load_weights_only': True, 'load_ignore_keys': ['x']}, 'load_weights_only, load_ignore_keys: .* load_path;'),
        ({'icl_seq_len': 8}, 'icl_seq_len: nothing comes of this without icl_tasks;'),
        ({'eval_interval': '3ba', 'eval_first': True}, 'eval_interval, eval_first: nothing .* without eval_loader;'),
        (
            {'console_log_interval': '1ba', 'loggers': {'console_progress': None}},
            'console_log_interval: loggers.console_progress goes by its own interval; set that, or remove this.',
        ),
    ],
)
def test_what_lacks_something_is_told(settings, told, caplog):
    tell_vain_settings(settings)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.match(told, record.getMessage())


@pytest.mark.parametrize(
    'settings',
    [
        {'save_interval': '1ba', 'save_folder': 'x'},
        {'save_overwrite': False, 'save_interval': '1000ba', 'load_weights_only': False, 'load_ignore_keys': None},
        {'eval_interval': '3ba', 'eval_loaders': [{}]},
        {'eval_interval': '3ba', 'icl_tasks_str': 'x.yaml', 'icl_seq_len': 8},
        {'console_log_interval': '1ba', 'loggers': None},
    ],
)
def test_what_does_something_is_not_told(settings, caplog):
    tell_vain_settings(settings)
    assert not caplog.records


@pytest.mark.parametrize('path', RUNS, ids=lambda path: path.stem)
def test_nothing_is_vain_in_a_shipped_file(path, caplog):
    tell_vain_settings(OmegaConf.to_container(OmegaConf.load(path)))
    assert not caplog.records
