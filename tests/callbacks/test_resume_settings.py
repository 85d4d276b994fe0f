"""A resumed run has the optimizer's numbers of its configuration, and tells what it takes from the checkpoint."""

import logging
from types import SimpleNamespace

import pytest
from composer.core import Callback, Time, Timestamp

from llmshearing.callbacks.resume_settings import FROM_CHECKPOINT, ResumeSettings
from tests.tiny_run import tiny_trainer

BATCHES, STOP = 8, 4


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def batch_start(self, state, logger):
        self.rates.append(state.optimizers[0].param_groups[0]['lr'])


def go(source, save=None, rate=1e-3, config=None, **settings):
    rates, callback = Rates(), ResumeSettings({'seed': 17, **(config or {})})
    if save is not None:
        settings = {'save_folder': str(save), 'save_filename': 'ba{batch}.pt', 'save_interval': f'{STOP}ba', **settings}
    trainer = tiny_trainer(source, [], BATCHES, learning_rate=rate, callbacks=[rates, callback], **settings)
    trainer.fit()
    optimizer = trainer.state.optimizers[0]
    trainer.close()
    return rates.rates, optimizer


def test_a_lower_rate_holds_from_the_first_resumed_batch(source, tmp_path, caplog):
    whole, _ = go(source, tmp_path)
    same, _ = go(source, load_path=str(tmp_path / f'ba{STOP}.pt'))
    assert same == whole[STOP:] and 'Resumed with' not in caplog.text
    with caplog.at_level(logging.WARNING):
        halved, optimizer = go(source, rate=5e-4, load_path=str(tmp_path / f'ba{STOP}.pt'))
    assert halved == pytest.approx([rate / 2 for rate in whole[STOP:]], rel=1e-12)
    assert caplog.text.count('Resumed with') == 1
    assert 'Resumed with optimizer.lr: 0.0005 as configured now; the checkpoint had 0.001.' in caplog.text
    assert optimizer.state[optimizer.param_groups[0]['params'][0]]['step'] == BATCHES  # moments went on


def test_what_the_checkpoint_decides_is_named_with_both_values(source, tmp_path, caplog):
    go(source, tmp_path, config={'train_loader': {'dataset': {'proportions': {'a': 1}}}})
    changed = {'seed': 3, 'train_loader': {'dataset': {'proportions': {'a': 2}}}}
    with caplog.at_level(logging.WARNING):
        go(source, config=changed, load_path=str(tmp_path / f'ba{STOP}.pt'))
    told = [record.getMessage() for record in caplog.records if 'of the checkpoint, not' in record.getMessage()]
    assert told == [
        f'Resumed with seed: 17 of the checkpoint, not 3: {FROM_CHECKPOINT["seed"]}.',
        "Resumed with train_loader.dataset.proportions: {'a': 1} of the checkpoint, not {'a': 2}: "
        f'{FROM_CHECKPOINT["train_loader.dataset.proportions"]}.',
    ]


def test_a_run_that_is_over_says_so(source, tmp_path):
    go(source, tmp_path)
    ended = {'load_path': str(tmp_path / f'ba{BATCHES}.pt')}
    with pytest.raises(ValueError, match=f'of batch {BATCHES}, where max_duration: {BATCHES}ba ends: .* export '):
        go(source, config=ended, **ended)


def test_the_checkpoint_of_a_run_that_is_over_is_named(tmp_path):
    save = tmp_path / 'save'
    save.mkdir()
    for name in ('ba8.pt', 'ba4.pt'):
        (save / name).touch()
    (save / 'latest-rank0.pt').symlink_to('ba8.pt')
    config = {'save_folder': str(save), 'autoresume': True, 'load_path': str(save / 'ba4.pt')}
    state = SimpleNamespace(timestamp=Timestamp(batch=8), max_duration=Time.from_timestring('8ba'))
    assert f'llmshearing export {save / "ba8.pt"} --out' in ResumeSettings(config)._over(state)
    (save / 'latest-rank0.pt').unlink()
    assert f'llmshearing export {save / "ba4.pt"} --out' in ResumeSettings(config)._over(state)


def test_a_checkpoint_that_only_the_loading_sees_belongs_to_its_stage():
    pruning, saved = {'algorithms': {'targeted_pruning': {}}}, {}
    for stage, config in (('prune', pruning), ('train', {})):
        callback = ResumeSettings(config)
        callback.after_load(SimpleNamespace(timestamp=Timestamp()), None)
        saved[stage] = callback.state_dict()
    ResumeSettings(pruning).load_state_dict(saved['prune'])
    ResumeSettings({}).load_state_dict(saved['train'])
    with pytest.raises(ValueError, match='^load_path is a checkpoint of pruning, and this run has no'):
        ResumeSettings({}).load_state_dict(saved['prune'])
    with pytest.raises(ValueError, match='^load_path is no checkpoint of pruning'):
        ResumeSettings(pruning).load_state_dict(saved['train'])


def test_weights_alone_are_a_new_run(source, tmp_path, caplog):
    whole, _ = go(source, tmp_path)
    with caplog.at_level(logging.WARNING):
        anew, _ = go(source, rate=5e-4, config={'seed': 3}, load_path=str(tmp_path / 'ba4.pt'), load_weights_only=True)
    assert anew == pytest.approx([rate / 2 for rate in whole], rel=1e-12) and 'Resumed with' not in caplog.text


def test_a_run_that_prunes_is_not_sent_to_weights_without_masks(source, tmp_path, caplog):
    pruning = {'algorithms': {'targeted_pruning': {'target': {}}}}
    go(source, tmp_path, config=pruning)
    with caplog.at_level(logging.WARNING):
        go(source, config={'seed': 3, **pruning}, load_path=str(tmp_path / f'ba{STOP}.pt'))
    assert 'Resumed with seed: 17' in caplog.text and 'start a new run from the source' in caplog.text
    assert 'load_weights_only' not in caplog.text
