"""Runs whose masks leave out layers from the first batch on can be resumed, with FSDP2 too, bit for bit."""

import pytest
import torch
from composer.utils import dist
from torch.distributed.tensor import DTensor

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.algorithms.targeted_pruning.unused_parameters import add_missing_gradients
from tests.tiny_run import sequences_spec, tiny_trainer

TARGET = {'num_hidden_layers': 2, 'hidden_size': 36, 'intermediate_size': 32}
ONE_SHOT = {'mask_learning': 'one_shot', 'scores': 'magnitude'}
LATER = {'mask_learning': 'progressive', 'start_sparsity': 0.5, 'warmup': '10ba'}
BATCHES = 4


@pytest.fixture
def one_rank(monkeypatch):
    """A process group of one: FSDP2 needs one."""
    monkeypatch.setenv('FSDP_VERSION', '2')
    dist.initialize_dist('cpu')


def run(source, pruning, fsdp, **settings):
    """Trains to the end; returns the weights."""
    trainer = tiny_trainer(
        source,
        [TargetedPruning(TARGET, **pruning)],
        batches=BATCHES,
        eval_dataloader=sequences_spec(8, 4, seed=1),
        eval_interval='100ba',
        parallelism_config=fsdp and {'fsdp': fsdp},
        save_interval='2ba',
        **settings,
    )
    trainer.fit()
    trainer.close()
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in trainer.state.model.named_parameters()
    }


@pytest.mark.parametrize('pruning', [ONE_SHOT, LATER], ids=['one_shot', 'start_sparsity'])
@pytest.mark.parametrize(
    'fsdp', [None, {'state_dict_type': 'full'}, {'state_dict_type': 'sharded'}], ids=['none', 'full', 'sharded']
)
def test_a_run_that_never_runs_a_layer_resumes_bit_for_bit(source, tmp_path, one_rank, pruning, fsdp):
    whole = run(source, pruning, fsdp, save_folder=str(tmp_path))
    sharded = fsdp is not None and fsdp['state_dict_type'] == 'sharded'
    checkpoint = tmp_path / ('ep0-ba2' if sharded else 'ep0-ba2-rank0.pt')
    resumed = run(source, pruning, fsdp, load_path=str(checkpoint))
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


def test_zeros_are_given_once_and_only_where_nothing_is_known():
    never, used, frozen = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = torch.optim.AdamW([never, used, frozen], lr=0.1, weight_decay=0.5)
    for batch in range(3):
        optimizer.zero_grad(set_to_none=True)
        used.grad = torch.ones(3) if batch < 2 else None
        add_missing_gradients([optimizer])
        assert (never.grad is None) == (batch > 0) and frozen.grad is None
        assert (used.grad is None) == (batch == 2)
        optimizer.step()
        torch.testing.assert_close(never.detach(), torch.full((3,), 1 - 0.1 * 0.5))  # decayed once
    assert set(optimizer.state) == {never, used}
