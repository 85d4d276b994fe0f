"""A pruning run that is stopped anywhere goes on as if nothing had happened: bit for bit on one CPU rank."""

import pytest
import torch
from composer.loggers import InMemoryLogger

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.masks.state import STATE_VERSION
from llmshearing.models.cuttable import Cutter
from tests.tiny_run import sequences_spec, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
BATCHES = 12


def run(source, folder, mask_learning, stop=None, load=None, target=TARGET, **pruning_settings):
    """Runs to ``stop`` (or the end), saving every batch; returns the trainer, the algorithm and the losses by batch."""
    pruning = TargetedPruning(target, mask_learning=mask_learning, warmup='0.5dur', **pruning_settings)
    log = InMemoryLogger()
    trainer = tiny_trainer(
        source,
        [pruning],
        batches=BATCHES,
        loggers=[log],
        save_folder=str(folder),
        save_filename='ba{batch}.pt',
        save_interval='1ba',
        save_overwrite=True,
        load_path=load,
        run_name='resume',
        eval_dataloader=sequences_spec(4, 4),
        eval_interval=0,
    )
    trainer.fit(duration=f'{stop}ba' if stop else None)
    trainer.close()
    return trainer, pruning, {batch.batch.value: value for batch, value in log.data['loss/train/total']}


@pytest.mark.parametrize(
    'mask_learning, compensate',
    [('lagrangian', False), ('progressive', False), ('progressive', True), ('one_shot', True)],
)
@pytest.mark.parametrize('stop', [1, 5, 11])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(source, tmp_path, mask_learning, compensate, stop):
    settings = {'freeze_masks_after': '10ba', 'compensate': compensate}
    if mask_learning == 'one_shot':
        settings['scores'] = 'magnitude'
    whole, whole_pruning, whole_losses = run(source, tmp_path / 'whole', mask_learning, **settings)
    checkpoint = tmp_path / 'whole' / f'ba{stop}.pt'
    resumed, pruning, losses = run(source, tmp_path / 'resumed', mask_learning, load=str(checkpoint), **settings)
    assert (
        losses == {batch: loss for batch, loss in whole_losses.items() if batch >= stop}
        and len(losses) == BATCHES - stop
    )
    for (name, mine), theirs in zip(resumed.state.model.named_parameters(), whole.state.model.parameters()):
        assert torch.equal(mine, theirs), name
    for axis, mask in whole_pruning.final_masks().items():
        assert torch.equal(pruning.final_masks()[axis], mask)
        assert torch.equal(pruning.learner.scores()[axis], whole_pruning.learner.scores()[axis])
    if mask_learning == 'lagrangian':
        for axis, multipliers in whole_pruning.learner.multipliers.items():
            assert torch.equal(pruning.learner.multipliers[axis], multipliers)


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(source, tmp_path):
    run(source, tmp_path / 'first', 'lagrangian', stop=1)
    other = {**TARGET, 'hidden_size': 24}
    with pytest.raises(ValueError, match="target: checkpoint .*'hidden_size': 36.* this run .*'hidden_size': 24"):
        run(source, tmp_path / 'second', 'lagrangian', load=str(tmp_path / 'first' / 'ba1.pt'), target=other)
    with pytest.raises(ValueError, match='mask_learning: checkpoint lagrangian, this run progressive'):
        run(source, tmp_path / 'second', 'progressive', load=str(tmp_path / 'first' / 'ba1.pt'))


def test_the_mask_state_is_plain_and_small(source, tmp_path):
    trainer, pruning, _ = run(source, tmp_path / 'run', 'lagrangian', stop=2)
    torch.save(pruning.state_dict(), tmp_path / 'masks.pt')
    state = torch.load(tmp_path / 'masks.pt', weights_only=True)
    assert state['version'] == STATE_VERSION and state['learner']['log_alpha']['hidden'].dtype == torch.float32


@pytest.mark.parametrize('mask_learning', ['progressive', 'lagrangian', 'one_shot'])
def test_that_frozen_masks_are_constants_changes_no_bit_of_a_run(source, tmp_path, mask_learning, monkeypatch):
    settings = {'freeze_masks_after': '4ba', 'scores': 'magnitude', 'multiple_of': 16}
    constant, _, losses = run(source, tmp_path / 'constant', mask_learning, **settings)
    set_masks, seen = Cutter.set_masks, set()

    def set_learned(self, masks, multiple_of=1, constant=False):
        seen.add(constant)
        set_masks(self, masks, multiple_of)

    monkeypatch.setattr(Cutter, 'set_masks', set_learned)
    learned, _, expected = run(source, tmp_path / 'learned', mask_learning, **settings)
    assert True in seen and losses == expected and len(losses) == BATCHES
    for (name, mine), theirs in zip(constant.state.model.named_parameters(), learned.state.model.parameters()):
        assert torch.equal(mine, theirs), name
