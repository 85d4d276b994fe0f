"""A run that prunes experts is stopped and goes on bit for bit, and its checkpoint is exported."""

import torch

from llmshearing.export.job import export_checkpoint
from llmshearing.export.model_folder import open_strictly
from llmshearing.export.settings import ExportSettings
from llmshearing.models.shapes import shape_of
from tests.algorithms.test_resume import BATCHES, run
from tests.tiny_run import tiny_source

TARGET = {'hidden_size': 40, 'num_local_experts': 4, 'intermediate_size': 40}


def test_a_run_that_prunes_experts_goes_on_bit_for_bit(tmp_path):
    source = tiny_source(tmp_path / 'source', 'mixtral')
    settings = {'target': TARGET, 'fade': 0.2}
    whole, whole_pruning, whole_losses = run(source, tmp_path / 'whole', 'progressive', **settings)
    checkpoint = tmp_path / 'whole' / 'ba5.pt'
    resumed, pruning, losses = run(source, tmp_path / 'resumed', 'progressive', load=str(checkpoint), **settings)
    assert losses == {batch: loss for batch, loss in whole_losses.items() if batch >= 5} and len(losses) == BATCHES - 5
    for (name, mine), theirs in zip(resumed.state.model.named_parameters(), whole.state.model.parameters()):
        assert torch.equal(mine, theirs), name
    assert set(pruning.plans) == {'hidden', 'intermediate', 'expert'}
    for axis, mask in whole_pruning.final_masks().items():
        assert torch.equal(pruning.final_masks()[axis], mask)
    last = tmp_path / 'whole' / f'ba{BATCHES}.pt'
    report = export_checkpoint(last, tmp_path / 'out', ExportSettings(source=str(source)))
    assert report['logit_difference'] <= 1e-5
    shape = shape_of(open_strictly(tmp_path / 'out').config)
    assert (shape.hidden_size, shape.num_experts, shape.intermediate_size) == (40, 4, 40)
