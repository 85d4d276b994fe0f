"""What one rank finds, all raise; what they hold is compared."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from llmshearing.utils.ranks import from_rank_0, raised_together, refuse_differences
from tests.dynamic_text_world import on_ranks


def refuse(message: str) -> None:
    raise KeyError(message)


def agree(rank: int) -> None:
    dist.init_process_group('gloo')
    wanted = (KeyError, '^.no weights.$') if rank == 1 else (ValueError, r'^On rank 1 \(.+\): .no weights.$')
    with pytest.raises(wanted[0], match=wanted[1]), raised_together():
        if rank == 1:
            refuse('no weights')
    assert from_rank_0(lambda: [rank, 'decides']) == [0, 'decides']
    with pytest.raises(KeyError if rank == 0 else ValueError, match='taken'):
        from_rank_0(lambda: refuse('taken'))
    refuse_differences({'samples': 400}, 'copy them')
    with pytest.raises(ValueError, match=r'^samples: 60 on rank 2 \(.+\), 400 on rank 0 \(.+\); copy them\.$'):
        refuse_differences({'seed': 1, 'samples': 60 if rank == 2 else 400}, 'copy them')
    with pytest.raises(ValueError, match='^b: none on rank 1 .*, 2 on rank 0'):
        refuse_differences({'a': 1} if rank else {'a': 1, 'b': 2}, 'copy them')
    dist.destroy_process_group()


def test_three_ranks_agree():
    on_ranks(3, agree)


def test_one_process_needs_no_group():
    with raised_together():
        pass
    with pytest.raises(KeyError), raised_together():
        refuse('no weights')
    assert from_rank_0(lambda: 5) == 5
    refuse_differences({'samples': 400}, 'copy them')
