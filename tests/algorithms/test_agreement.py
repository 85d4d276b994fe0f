"""Ranks whose numbers differ in the last bits still use one set of masks: rank 0's."""

import pytest
import torch
from composer.core import Callback
from composer.utils import dist

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from tests.dynamic_text_world import on_ranks
from tests.tiny_run import sequences_spec, tiny_source, tiny_trainer

TARGET = {'num_hidden_layers': 2, 'hidden_size': 36, 'intermediate_size': 32}
PROGRESSIVE = {'mask_learning': 'progressive', 'warmup': '3ba'}


class Record(Callback):
    """The masks that are set for every batch and every evaluation, and those at the end."""

    def __init__(self):
        self.masks = []

    def before_forward(self, state, logger):
        cutter = getattr(state.model, 'module', state.model).cutter
        self.masks.append({axis: mask.clone() for axis, mask in cutter.masks.items()})

    eval_before_forward = before_forward

    def fit_end(self, state, logger):
        self.masks.append(state.algorithms[0].final_masks())


def prune(rank, source, folder, settings):
    """Prunes with a rank 1 that learns something else, far from what rounding could make of it."""
    dist.initialize_dist('cpu')
    record, pruning = Record(), TargetedPruning(TARGET, **settings)
    trainer = tiny_trainer(
        source,
        [pruning],
        batches=4,
        callbacks=[record],
        eval_dataloader=sequences_spec(8, 4, seed=1),
        eval_interval='2ba',
        dist_timeout=60,
    )
    if rank == 1:
        update, start_from = pruning.learner.update, pruning.learner.start_from

        def reversed_(values):
            return {axis: value.flip(-1) for axis, value in values.items()}

        pruning.learner.update = lambda gradients, *args: update(reversed_(gradients), *args)
        pruning.learner.start_from = lambda scores: start_from(reversed_(scores))
    trainer.fit()
    torch.save(record.masks, folder / f'{rank}.pt')


@pytest.mark.parametrize(
    'settings',
    [{}, PROGRESSIVE, {**PROGRESSIVE, 'freeze_masks_after': '2ba'}, {'mask_learning': 'one_shot', 'scores': 'random'}],
    ids=['lagrangian', 'progressive', 'frozen', 'one_shot'],
)
def test_every_rank_uses_the_masks_of_rank_0(tmp_path, settings):
    source = tiny_source(tmp_path / 'source')
    on_ranks(2, prune, source, tmp_path, settings)
    zero, one = (torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in range(2))
    assert len(zero) == len(one) == 4 + 2 * 2 + 1  # batches, evaluation batches of two evaluations, the end
    for place, (mine, theirs) in enumerate(zip(one, zero)):
        for axis in theirs:
            assert torch.equal(mine[axis], theirs[axis]), (place, axis)
