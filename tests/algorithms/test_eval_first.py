"""An evaluation before the first batch is one of the uncut model while nothing says what goes, and changes no bit."""

import pytest
import torch
from composer.loggers import InMemoryLogger

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from tests.tiny_run import sequences_spec, tiny_trainer

TARGET = {'num_hidden_layers': 2, 'hidden_size': 36}


def run(source, first, **settings):
    pruning, seen, log = TargetedPruning(TARGET, **settings), [], InMemoryLogger()
    install = pruning._install

    def installing(state, masks, *rest):
        seen.append((state.timestamp.batch.value, {axis: int(mask.sum()) for axis, mask in masks.items()}))
        install(state, masks, *rest)

    pruning._install = installing
    trainer = tiny_trainer(source, [pruning], 3, eval_dataloader=sequences_spec(8, 4), loggers=[log])
    if first:
        trainer.eval()
    trainer.fit()
    return seen, [value.detach().clone() for value in trainer.state.model.parameters()]


@pytest.mark.parametrize(
    'settings', [{'mask_learning': 'one_shot'}, {'eval_masks': 'target', 'warmup': '2ba'}], ids=['one_shot', 'target']
)
def test_before_units_are_scored_the_model_is_evaluated_uncut(source, settings):
    settings = {'scores': 'magnitude', **settings}
    seen, weights = run(source, True, **settings)
    assert seen[0] == (0, {'hidden': 48, 'layer': 4})
    without, expected = run(source, False, **settings)
    assert seen[1:] == without and all(map(torch.equal, weights, expected))
    assert without[-1] == (3, {'hidden': 36, 'layer': 2})  # evaluated at the end
