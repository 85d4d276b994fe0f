"""Canaries of compat.versions."""

import pytest
import torch
from composer.utils import dist

from llmshearing.compat.versions import GLOO_AVERAGES, major_version
from tests.dynamic_text_world import on_ranks


def ask_for_an_average(rank):
    dist.initialize_dist('cpu')
    got, sent = torch.empty(1), torch.full((dist.get_world_size(),), 1.0 + rank)
    torch.distributed.reduce_scatter_tensor(got, sent, op=torch.distributed.ReduceOp.AVG)
    assert got.item() == (1.5 if GLOO_AVERAGES else 3.0)


def test_gloo_averages_or_adds_up_as_the_version_says():
    on_ranks(2, ask_for_an_average)


def test_major_version_is_the_first_number():
    assert major_version('torch') == int(torch.__version__.split('.')[0])
    with pytest.raises(ModuleNotFoundError):
        major_version('no-such-package')
