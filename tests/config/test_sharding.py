"""Sharding and initialisation that cannot work: one message before anything is built."""

import logging

import pytest

from llmshearing.compat.versions import GLOO_AVERAGES
from llmshearing.config.sharding import check_sharding

CONFIG = {'model': {'name': 'sheared_causal_lm'}, 'fsdp_config': {'state_dict_type': 'full'}}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ('FSDP_VERSION', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)


def test_mixed_needs_shards():
    with pytest.raises(ValueError, match='mixed needs fsdp_config.* without it use cpu'):
        check_sharding({'model': {'init_device': 'mixed'}})
    check_sharding({**CONFIG, 'model': {'init_device': 'mixed'}})


@pytest.mark.parametrize(
    'model, message',
    [
        ({'init_device': 'meta'}, 'this model is pretrained. With fsdp_config use mixed: .* use cpu'),
        ({'init_device': 'meta', 'pretrained': False}, 'initialises weights on GPUs'),
    ],
)
def test_initialisation_that_cannot_work(model, message):
    with pytest.raises(ValueError, match=message):
        check_sharding({**CONFIG, 'model': model})


def test_fsdp1_cannot_start_on_cpu(monkeypatch):
    monkeypatch.setenv('FSDP_VERSION', '1')
    check_sharding({'model': CONFIG['model']})
    with pytest.raises(ValueError, match='FSDP1 cannot start on CPU; unset FSDP_VERSION or set it to 2'):
        check_sharding(CONFIG)
    with pytest.raises(ValueError, match='FSDP1 cannot start on CPU, and pruning is built for FSDP2'):
        check_sharding({**CONFIG, 'algorithms': {'targeted_pruning': {}}})


def test_sums_of_gradients_on_cpu_are_told(monkeypatch, caplog):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with caplog.at_level(logging.WARNING):
        check_sharding(CONFIG)
    assert ('they are 2 times too large' in caplog.text) == (not GLOO_AVERAGES)


def test_a_saver_for_fsdp1_is_refused_in_every_run():
    """In a run without pruning it ended in a KeyError at its first checkpoint."""
    saver = {'mono_checkpoint_saver': {'save_folder': 'x', 'batch_interval': 1}}
    for config in (CONFIG, {'model': CONFIG['model']}):
        with pytest.raises(ValueError, match='mono_checkpoint_saver needs FSDP1, .* remove it and set save_folder'):
            check_sharding({**config, 'callbacks': saver})
