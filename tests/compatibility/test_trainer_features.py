"""Features of Composer's Trainer beside pruning:
what they must not change is compared bit for bit, what they write is looked at."""

import pytest
import torch
from composer.algorithms import EMA, GradientClipping
from composer.core import Callback
from composer.loggers import InMemoryLogger

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.export.model_folder import open_strictly
from tests.tiny_run import sequences_spec, tiny_source, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
BATCHES = 4


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return tiny_source(tmp_path_factory.mktemp('features') / 'source')


def run(source, *algorithms, before=lambda trainer: None, **settings):
    """Prunes for a few batches; returns the trainer, the algorithm and the training losses."""
    pruning, log = TargetedPruning(TARGET, warmup='2ba', mask_learning='lagrangian'), InMemoryLogger()
    settings.setdefault('eval_dataloader', sequences_spec(4, 4, seed=1))
    trainer = tiny_trainer(source, [pruning, *algorithms], batches=BATCHES, loggers=[log], **settings)
    before(trainer)
    trainer.fit()
    trainer.close()
    return trainer, pruning, [value for _, value in log.data['loss/train/total']]


@pytest.fixture(scope='module')
def plain(source):
    return run(source)


def weights(trainer):
    return {name: parameter.detach() for name, parameter in trainer.state.model.named_parameters()}


def same_masks(first, second):
    """Masks, their order and the multipliers are equal bit for bit."""
    for axis, value in first.learner.log_alpha.items():
        assert torch.equal(value, second.learner.log_alpha[axis]), axis
        assert torch.equal(first.learner.multipliers[axis], second.learner.multipliers[axis]), axis


class WeightGradientNorm(Callback):
    """Norm of the weights' gradient as the optimizer gets it."""

    def __init__(self):
        self.norms = []

    def batch_end(self, state, logger):
        gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        self.norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))


def test_clipping_bounds_the_weights_gradient_and_leaves_masks_and_multipliers_alone(source):
    learned = []
    for threshold in (None, 1e-3):
        norm, pruning = WeightGradientNorm(), TargetedPruning(TARGET, mask_learning='lagrangian')
        clipping = [] if threshold is None else [GradientClipping('norm', threshold)]
        tiny_trainer(source, [pruning, *clipping], batches=1, callbacks=[norm]).fit()
        learned.append(pruning)
        assert norm.norms[0] > 0.1 if threshold is None else norm.norms[0] <= threshold * 1.001
    same_masks(*learned)


def test_ema_beside_pruning_changes_no_step_and_its_weights_are_exported(source, plain, tmp_path):
    ema = EMA(half_life='2ba', update_interval='1ba')
    export = ExportPruned(str(tmp_path / 'out'), allow_unconverged=True)
    _, plain_pruning, losses = plain
    trainer, pruning, losses_with_ema = run(
        source,
        ema,
        callbacks=[export],
        eval_interval='2ba',
        save_folder=str(tmp_path / 'save'),
        save_interval='2ba',
        save_overwrite=True,
    )
    assert losses_with_ema == losses
    same_masks(pruning, plain_pruning)
    training = weights(plain[0])
    exported = open_strictly(tmp_path / 'out')
    kept = pruning.final_masks()['hidden'] != 0
    averaged = ema.ema_model.named_parameters_dict if not ema.ema_weights_active else weights(trainer)
    name = next(name for name in training if name.endswith('embed_tokens.weight'))
    assert not torch.equal(averaged[name], training[name])
    assert torch.equal(exported.get_input_embeddings().weight, averaged[name][:, kept])


def test_evaluation_first_changes_no_step(source, plain):
    trainer, pruning, losses = run(source, before=lambda trainer: trainer.eval())
    assert losses == plain[2]
    same_masks(pruning, plain[1])


def test_bf16_autocast_gives_masks_float32_gradients_near_the_exact_ones(source):
    """Composer runs amp_bf16 on GPUs only, so this is its autocast without its Trainer."""
    pruning = TargetedPruning(TARGET, warmup='2ba', mask_learning='lagrangian')
    trainer = tiny_trainer(source, [pruning], batches=BATCHES)
    model = trainer.state.model.eval()
    masks = pruning.learner.draw(0, 1.0)
    batch = next(iter(sequences_spec(8, 8, seed=1).dataloader))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.cutter.set_masks(masks)
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            loss = model.loss(model(batch), batch)
        loss.backward()
        found[dtype] = model.cutter.mask_gradients(reduce=lambda gradient: None)
    assert set(found[torch.bfloat16]) == set(masks)
    for axis, gradient in found[torch.bfloat16].items():
        exact = found[torch.float32][axis]
        assert gradient.dtype == torch.float32
        assert not torch.equal(gradient, exact)  # the precision did change
        assert torch.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0) > 0.99, axis
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_automatic_microbatches_are_refused_on_cpu(source):
    with pytest.raises(ValueError, match='adaptive device_train_microbatch_size on GPU'):
        tiny_trainer(source, [TargetedPruning(TARGET, mask_learning='lagrangian')], device_train_microbatch_size='auto')
