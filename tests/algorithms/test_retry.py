"""A batch that Composer tries again after running out of memory steps the masks once."""

import pytest
import torch
from composer.core import Callback
from composer.loggers import InMemoryLogger

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.tiny_run import sequences_spec, tiny_tokenizer, tiny_trainer

TARGET = {'num_hidden_layers': 2, 'hidden_size': 36}
BATCHES = 3


class ShortOfMemory(Callback):
    """Lets the first attempt at a batch run out of memory: after the backward pass, or in the optimizer."""

    def __init__(self, place, optimizer, batch=1):
        self.place, self.failed, self.step, self.batch = place, False, optimizer.step, batch
        optimizer.step = self.step_or_fail

    def fail(self):
        self.failed = True
        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')

    def after_backward(self, state, logger):
        if self.place == 'backward' and state.timestamp.batch.value == self.batch and not self.failed:
            self.fail()

    def step_or_fail(self, closure):

        def once():
            loss = closure()
            if self.place == 'step' and self.state.timestamp.batch.value == self.batch and not self.failed:
                self.fail()
            return loss

        return self.step(once)

    def fit_start(self, state, logger):
        self.state = state
        state.auto_microbatching = True  # Composer offers it on GPUs only


def run(source, mask_learning, place=None, batch=1, eval_dataloader=None, **settings):
    """Trains some batches; returns learner, logged expected counts, the masks of every attempt, and the model."""
    model, log = ShearedCausalLM(tiny_tokenizer(), str(source)), InMemoryLogger()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruning = TargetedPruning(TARGET, mask_learning=mask_learning, warmup='3ba', follow_schedule=False, **settings)
    trainer = tiny_trainer(
        source,
        [pruning],
        batches=BATCHES,
        model=model,
        optimizers=optimizer,
        schedulers=None,
        loggers=[log],
        eval_dataloader=eval_dataloader,
        callbacks=[ShortOfMemory(place, optimizer, batch)],
    )
    attempts, training_masks = [], pruning.training_masks

    def recording(state):
        masks = training_masks(state)
        attempts.append((state.timestamp.batch.value, {axis: mask.clone() for axis, mask in masks.items()}))
        return masks

    pruning.training_masks = recording
    trainer.fit()
    assert trainer.state.device_train_microbatch_size == (2 if place else 4)
    return pruning.learner, log.data['pruning/hidden/expected'], attempts, model


@pytest.mark.parametrize('mask_learning', ['lagrangian', 'progressive'])
@pytest.mark.parametrize('place', ['backward', 'step'])
def test_a_second_attempt_has_the_same_masks_and_one_update(source, mask_learning, place):
    learner, expected, attempts, _ = run(source, mask_learning)
    again, expected_again, attempts_again, _ = run(source, mask_learning, place)
    assert [batch for batch, _ in attempts_again] == [0, 1, 1, 2]
    for batch, masks in attempts_again:
        for axis, mask in dict(attempts)[batch].items():
            torch.testing.assert_close(masks[axis], mask, rtol=0.0, atol=1e-5 if batch == 2 else 0.0)
    assert [time.batch.value for time, _ in expected_again] == [time.batch.value for time, _ in expected] == [0, 1, 2]
    for axis, scores in learner.scores().items():
        torch.testing.assert_close(again.scores()[axis], scores, rtol=1e-4, atol=1e-5)
    if mask_learning == 'lagrangian':
        assert {int(state['step']) for state in again.optimizer.state.values()} == {BATCHES}


@pytest.mark.parametrize('place', ['backward', 'step'])
@pytest.mark.parametrize(('mask_learning', 'batch'), [('progressive', 1), ('one_shot', 0)])
def test_a_second_attempt_is_compensated_once(source, mask_learning, batch, place):
    settings = {'mask_learning': mask_learning, 'eval_dataloader': sequences_spec(8, 4)}
    *_, model = run(source, compensate=True, **settings)
    *_, again = run(source, place=place, batch=batch, compensate=True, **settings)
    *_, without = run(source, **settings)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), parameter, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(without.model.lm_head.weight, model.model.lm_head.weight, rtol=1e-3, atol=1e-3)
    assert not any(module._forward_pre_hooks for module in again.modules())


def test_a_run_that_begins_anew_draws_and_steps_anew(source):
    pruning = TargetedPruning(TARGET, mask_learning='lagrangian', warmup='3ba')
    trainer = tiny_trainer(source, [pruning], batches=1)
    trainer.fit()
    trainer.fit(reset_time=True)
    assert {int(state['step']) for state in pruning.learner.optimizer.state.values()} == {2}


def test_auto_calibrates_in_passes_that_fit_and_finds_the_same(source, monkeypatch):
    """The whole batch does not fit, which training finds out and calibration before it cannot."""
    seen = {}
    for size in ('auto', 8):
        model = ShearedCausalLM(tiny_tokenizer(), str(source))
        forward = model.model.forward

        def short_of_memory(*args, size=size, forward=forward, **kwargs):
            if size == 'auto' and len(kwargs['input_ids']) > 4:
                raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
            return forward(*args, **kwargs)

        model.model.forward = short_of_memory
        monkeypatch.setattr('composer.trainer.trainer._is_auto_microbatching', lambda size, device: size == 'auto')
        pruning = TargetedPruning(TARGET, scores={'hidden': 'taylor'}, warmup='2ba')
        trainer = tiny_trainer(
            source,
            [pruning],
            batches=BATCHES,
            batch_size=8,
            model=model,
            device_train_microbatch_size=size,
            eval_dataloader=sequences_spec(16, 4, seed=5),
            eval_interval=0,
        )
        scores, start_from = {}, pruning.learner.start_from
        pruning.learner.start_from = lambda found: (scores.update(found), start_from(found))
        trainer.fit()
        seen[size] = {**scores, 'norm_energies': pruning.norm_energies}
        assert trainer.state.device_train_microbatch_size == (4 if size == 'auto' else 8)
    for name, value in seen['auto'].items():
        torch.testing.assert_close(value, seen[8][name], rtol=1e-4, atol=1e-5 * float(value.abs().max()))
