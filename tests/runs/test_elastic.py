"""Runs that go on with other ranks, other sharding and other workers than they were saved with.

The same global batches, the same masks drawn, losses and masks to rounding. Every chain starts from a checkpoint of
another kind and ends on one rank or two, so that each kind is written and read.
"""

from __future__ import annotations

import pytest
import torch

from tests.dynamic_text_world import on_ranks
from tests.runs.stages import BATCHES, finish, outcome, train_rank

EXACT = (
    'digest/batch',
    'mixture/share/',
    'mixture/passes/',
    'mixture/round',
    'pruning/layer/hard',
    'pruning/hidden/hard',
)
DIFFERENT = ('digest/', 'trainer/')  # digests of masks are of bits; the size of a micro-batch depends on the ranks
SHARDED, FULL = {'state_dict_type': 'sharded'}, {'state_dict_type': 'full'}


@pytest.fixture(scope='module', params=['prune', pytest.param('continue', marks=pytest.mark.slow)])
def stage(request):
    return request.param


@pytest.fixture(scope='module')
def whole(work, stage):
    return finish(stage, work, work / f'whole-{stage}')


def go_on(stage, work, place, ranks, **settings):
    place.mkdir()
    if ranks == 1:
        return finish(stage, work, place, **settings)
    on_ranks(ranks, train_rank, stage, work, place, settings)
    return outcome(place)


def check_same(got, want, first=0):
    (metrics, result), (whole_metrics, whole_result) = got, want
    assert min(metrics) == first and max(metrics) == BATCHES
    for batch, values in metrics.items():
        for name, value in values.items():
            if name.startswith(EXACT):
                assert value == whole_metrics[batch][name], (batch, name)
            elif not name.startswith(DIFFERENT):
                assert value == pytest.approx(whole_metrics[batch][name], rel=1e-5, abs=2e-5), (batch, name)
    for part in ('weights', 'masks'):
        assert result[part].keys() == whole_result[part].keys()
        for name, value in whole_result[part].items():
            torch.testing.assert_close(
                result[part][name], value, rtol=1e-4, atol=1e-5, msg=lambda message: f'{name}: {message}'
            )


def saved(place, batch, sharded=False):
    if not sharded:
        return str(place / 'save' / f'ba{batch}.pt')
    return str(next((place / 'save').glob(f'ep*-ba{batch}')))


def test_from_one_rank_to_two_and_back(work, stage, whole, tmp_path):
    two = go_on(stage, work, tmp_path / 'two', 2, load_path=saved(work / f'whole-{stage}', 3), workers=1)
    check_same(two, whole, 3)
    one = go_on(stage, work, tmp_path / 'one', 1, load_path=saved(tmp_path / 'two', 7))
    check_same(one, whole, 7)


def test_from_ddp_to_fsdp2_and_back(work, stage, whole, tmp_path):
    fsdp = go_on(stage, work, tmp_path / 'fsdp', 2, load_path=saved(work / f'whole-{stage}', 4), fsdp=FULL)
    check_same(fsdp, whole, 4)
    one = go_on(stage, work, tmp_path / 'one', 1, load_path=saved(tmp_path / 'fsdp', 6))
    check_same(one, whole, 6)


def test_sharded_checkpoints_over_two_ranks_and_one(work, stage, whole, tmp_path):
    """Two ranks from the start, where only the first reads the weights; then one rank, then two on other workers."""
    two = go_on(stage, work, tmp_path / 'two', 2, fsdp=SHARDED, init_device='mixed')
    check_same(two, whole)
    one = go_on(stage, work, tmp_path / 'one', 1, fsdp=SHARDED, load_path=saved(tmp_path / 'two', 5, True))
    check_same(one, whole, 5)
    again = go_on(
        stage, work, tmp_path / 'again', 2, fsdp=SHARDED, load_path=saved(tmp_path / 'one', 8, True), workers=1
    )
    check_same(again, whole, 8)


@pytest.mark.slow
def test_two_sharded_ranks_resume_exactly(work, stage, tmp_path):
    """The same ranks and the same sums: nothing but bits."""
    first = go_on(stage, work, tmp_path / 'first', 2, fsdp=SHARDED)
    for stop in (3, 5, 9):
        metrics, result = go_on(
            stage, work, tmp_path / f'from{stop}', 2, fsdp=SHARDED, load_path=saved(tmp_path / 'first', stop, True)
        )
        assert all(
            first[0][batch][name] == value for batch, values in metrics.items() for name, value in values.items()
        )
        for part in ('weights', 'masks'):
            assert all(torch.equal(result[part][name], value) for name, value in first[1][part].items())
