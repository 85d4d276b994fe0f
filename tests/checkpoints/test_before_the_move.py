"""Checkpoints that the code wrote before its files moved resume, and their runs' losses are unchanged.

On the machine that wrote them the numbers are the same to the last bit. Another kind of CPU takes sums in another
order, which is why a millionth is allowed.

``before_the_move`` was written by commit ae5bf56 on torch 2.7.0: a tiny source, a checkpoint after five of twelve
batches for each way of learning masks, the losses of all batches, and the units that were left at the end. Since then
layers take turns to lose a KV group (``progressive``); a checkpoint from before goes on as it began, and a run from the
start is told to.
"""

import json
from pathlib import Path

import pytest
from composer.loggers import InMemoryLogger

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from tests.tiny_run import tiny_trainer


class AllLayersAtOnce(TargetedPruning):
    def _prepare(self, state):
        super()._prepare(state)
        self.learner.layer_by_layer = False


FOLDER = Path(__file__).with_name('before_the_move')
TARGET = {'num_hidden_layers': 2, 'hidden_size': 8, 'num_key_value_heads': 1, 'intermediate_size': 16}


@pytest.mark.parametrize('mask_learning', ['lagrangian', 'progressive'])
@pytest.mark.parametrize('resumed', [False, True])
def test_a_run_begun_before_the_move_goes_on_with_the_same_numbers(mask_learning, resumed, tmp_path):
    written = json.loads((FOLDER / 'losses.json').read_text())
    pruning = (TargetedPruning if resumed else AllLayersAtOnce)(
        TARGET, mask_learning=mask_learning, lagrangian_warmup='0.5dur', freeze_masks_after='10ba'
    )
    log = InMemoryLogger()
    trainer = tiny_trainer(
        FOLDER / 'source',
        [pruning],
        batches=12,
        loggers=[log],
        load_path=str(FOLDER / f'{mask_learning}.pt') if resumed else None,
        save_folder=str(tmp_path),
        run_name='r',
    )
    trainer.fit()
    trainer.close()
    losses = {str(batch.batch.value): value for batch, value in log.data['loss/train/total']}
    expected = {batch: loss for batch, loss in written[mask_learning].items() if not resumed or int(batch) >= 5}
    assert losses == pytest.approx(expected, rel=1e-6)
    kept = {
        axis: [unit for unit, value in enumerate(mask.flatten().tolist()) if value > 0]
        for axis, mask in pruning.final_masks().items()
    }
    assert kept == written[f'{mask_learning}_kept']
