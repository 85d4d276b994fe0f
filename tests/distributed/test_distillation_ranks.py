"""Distillation on two gloo ranks equals that on one; with FSDP2 each rank holds its share of the teacher only."""

import torch

from tests.distributed.distillation_worker import run
from tests.distributed.test_two_ranks import ROOT, launch
from tests.tiny_run import tiny_source


def test_two_ranks_equal_one(tmp_path):
    # Tied embeddings, and positions whose frequencies the model keeps outside its buffers as well (LongRoPE).
    tiny_source(
        tmp_path / 'teacher',
        'phi3',
        num_hidden_layers=5,
        seed=1,
        tie_word_embeddings=True,
        original_max_position_embeddings=64,
        rope_scaling={'type': 'longrope', 'short_factor': [1.5] * 4, 'long_factor': [4.0] * 4},
    )
    tiny_source(tmp_path / 'student')
    worker = str(ROOT / 'tests/distributed/distillation_worker.py')
    modes = ['ddp', 'fsdp2', 'fsdp2+pruning', 'ddp+pruning+hidden', 'fsdp2+pruning+hidden']
    process = launch(2, [worker, str(tmp_path), str(tmp_path / 'two.pt'), *modes])
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    two = torch.load(tmp_path / 'two.pt', weights_only=True)
    one, pruning, hidden = (run(tmp_path, mode) for mode in ('one', 'one+pruning', 'one+pruning+hidden'))
    for mode, expected in zip(modes, (one, one, pruning, hidden, hidden)):
        for name, losses in expected['losses'].items():
            torch.testing.assert_close(
                torch.tensor(two[mode]['losses'][name]), torch.tensor(losses), rtol=1e-5, atol=1e-6
            )
    assert hidden['losses']['hidden_states'][-1] > 1e-3
    assert one['losses'] != pruning['losses']
    assert one['held'] == two['ddp']['held'] == 1.0
    assert 0.45 < two['fsdp2']['held'] < 0.52 and 0.45 < two['fsdp2+pruning']['held'] < 0.52
