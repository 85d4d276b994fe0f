"""A resumed run has the optimizer's numbers of its configuration, and tells what it takes from the checkpoint."""

import logging
from types import SimpleNamespace

import pytest
import torch
from composer.core import Callback, Time, Timestamp
from llmfoundry.optim import DecoupledLionW

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.resume_settings import FROM_CHECKPOINT, ResumeSettings
from llmshearing.compat.composer import install
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.tiny_run import sequences_spec, tiny_tokenizer, tiny_trainer

BATCHES, STOP = 8, 4


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def batch_start(self, state, logger):
        self.rates.append(state.optimizers[0].param_groups[0]['lr'])


def go(source, save=None, rate=1e-3, config=None, slow=None, **settings):
    """A run, with the final norm at the rate ``slow`` in a group of its own."""
    rates, callback = Rates(), ResumeSettings({'seed': 17, **(config or {})})
    if save is not None:
        settings = {'save_folder': str(save), 'save_filename': 'ba{batch}.pt', 'save_interval': f'{STOP}ba', **settings}
    if slow is not None:
        model = ShearedCausalLM(tiny_tokenizer(), str(source))
        named = dict(model.named_parameters())
        norm = named.pop(next(name for name in named if name.endswith('model.norm.weight')))
        groups = [{'params': list(named.values())}, {'params': [norm], 'lr': slow, 'betas': (0.8, 0.9)}]
        settings |= {'model': model, 'optimizers': torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)}
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


@pytest.mark.parametrize('before, now', [(None, 1e-4), (1e-4, None), (1e-4, 2e-4)])
def test_groups_of_parameters_are_those_of_the_configuration(source, tmp_path, before, now):
    whole, optimizer = go(source, tmp_path, slow=now)
    final = [group['lr'] for group in optimizer.param_groups]
    go(source, tmp_path, slow=before, save_overwrite=True)
    rates, optimizer = go(source, slow=now, load_path=str(tmp_path / f'ba{STOP}.pt'))
    assert rates == pytest.approx(whole[STOP:], rel=1e-12)
    assert [group['lr'] for group in optimizer.param_groups] == pytest.approx(final, rel=1e-12)
    assert [group['betas'] for group in optimizer.param_groups][1:] == [(0.8, 0.9)] * (now is not None)


def test_weights_that_were_frozen_are_named(source, tmp_path):
    install()

    def frozen(**settings):
        model = ShearedCausalLM(tiny_tokenizer(), str(source))
        next(model.parameters()).requires_grad_(False)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        go(source, model=model, optimizers=torch.optim.AdamW(trained, lr=1e-3), **settings)

    frozen(save=tmp_path)
    frozen(load_path=str(tmp_path / f'ba{STOP}.pt'))  # as is advised
    with pytest.raises(ValueError, match=r'no optimizer state of model.model.embed_tokens.weight: .* the same weights'):
        go(source, load_path=str(tmp_path / f'ba{STOP}.pt'))


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


def test_another_optimizer_is_the_configured_one_without_moments(source, tmp_path, caplog):
    go(source, tmp_path, config={'optimizer': {'name': 'adamw'}})
    model = ShearedCausalLM(tiny_tokenizer(), str(source))
    other = {'model': model, 'optimizers': DecoupledLionW(model.parameters(), lr=1e-4)}
    with caplog.at_level(logging.WARNING):
        _, optimizer = go(
            source, config={'optimizer': {'name': 'lion'}}, load_path=str(tmp_path / f'ba{STOP}.pt'), **other
        )
    assert isinstance(optimizer, DecoupledLionW)
    assert [record.getMessage() for record in caplog.records if 'Resumed with' in record.getMessage()] == [
        'Resumed with optimizer.name: lion as configured now; the checkpoint had adamw, whose moments do not fit: they '
        'begin anew.'
    ]


def test_another_loader_cannot_go_on_with_the_data(source, tmp_path):
    """It ended in a KeyError of Streaming at the first batch."""
    go(source, tmp_path, config={'train_loader': {'name': 'dynamic_text'}})
    with pytest.raises(ValueError, match='train_loader.name: text cannot go on .*dynamic_text .* load_weights_only'):
        go(source, config={'train_loader': {'name': 'text'}}, load_path=str(tmp_path / f'ba{STOP}.pt'))


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
        callback.after_load(SimpleNamespace(timestamp=Timestamp(), algorithms=[]), None)
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


def shear(source, save, caplog, load=None, batches=BATCHES, **settings):
    """A pruning run to batch ``STOP``, or on from its checkpoint; what it said of its schedule."""
    caplog.clear()
    target = {'num_hidden_layers': 3, 'hidden_size': 36}
    pruning, callback = TargetedPruning(target, **settings), ResumeSettings({'algorithms': {'targeted_pruning': {}}})
    saving = {'save_folder': str(save), 'save_filename': 'ba{batch}.pt', 'save_interval': '1ba', 'save_overwrite': True}
    saving |= {'eval_dataloader': sequences_spec(4, 4), 'eval_interval': 0}  # what units are scored on
    trainer = tiny_trainer(source, [pruning], batches, callbacks=[callback], load_path=load, **saving)
    with caplog.at_level(logging.WARNING):
        trainer.fit(duration=None if load else f'{STOP}ba')
    trainer.close()
    return [record.getMessage() for record in caplog.records if 'Resumed with' in record.getMessage()]


@pytest.mark.parametrize(
    ('mask_learning', 'what'),
    [
        ('progressive', 'units that went stay gone'),
        ('lagrangian', 'the target that masks are held to may have stepped back'),
    ],
)
def test_a_schedule_that_moved_is_told_once(source, tmp_path, caplog, mask_learning, what):
    run = {'mask_learning': mask_learning, 'warmup': '0.75dur'}
    assert not shear(source, tmp_path, caplog, **run)
    load = str(tmp_path / f'ba{STOP}.pt')
    assert not shear(source, tmp_path, caplog, load, **run)
    longer = (
        'Resumed with max_duration: 12ba as configured now; the checkpoint had max_duration: 8ba. So the pruning '
        f'schedule moved: {what}.'
    )
    assert shear(source, tmp_path, caplog, load, 12, **run) == [longer]
    both = shear(source, tmp_path, caplog, load, **{**run, 'warmup': '7ba', 'start_sparsity': 0.1})
    assert [text.partition(' as configured')[0] for text in both] == ['Resumed with warmup: 7ba, start_sparsity: 0.1']


def test_a_longer_run_whose_schedule_is_in_batches_has_nothing_to_tell(source, tmp_path, caplog):
    shear(source, tmp_path, caplog, warmup='6ba')
    assert not shear(source, tmp_path, caplog, str(tmp_path / f'ba{STOP}.pt'), 12, warmup='6ba')


def test_another_time_to_freeze_is_told_once_masks_are_frozen(source, tmp_path, caplog):
    shear(source, tmp_path, caplog, warmup='1ba', freeze_masks_after='2ba')
    load = str(tmp_path / f'ba{STOP}.pt')
    assert shear(source, tmp_path, caplog, load, 12, warmup='1ba', freeze_masks_after='7ba') == [
        'Resumed with algorithms.targeted_pruning.freeze_masks_after: 2ba of the checkpoint, not 7ba: masks are '
        'frozen; start anew in another save_folder.'
    ]


def test_compensation_asked_for_after_the_cut_is_told(source, tmp_path, caplog):
    run = {'mask_learning': 'one_shot', 'scores': 'magnitude'}
    shear(source, tmp_path, caplog, **run)
    assert shear(source, tmp_path, caplog, str(tmp_path / f'ba{STOP}.pt'), compensate=True, **run) == [
        'Resumed with algorithms.targeted_pruning.compensate: False of the checkpoint, not True: masks are frozen; '
        'start anew in another save_folder.'
    ]


def test_compensation_follows_the_configuration_while_units_go(source, tmp_path, caplog):
    shear(source, tmp_path, caplog, warmup='6ba')
    assert not shear(source, tmp_path, caplog, str(tmp_path / f'ba{STOP}.pt'), warmup='6ba', compensate=True)
