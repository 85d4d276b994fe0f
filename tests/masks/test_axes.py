"""Rows of each axis, and choosing exactly so many units of each."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.masks.axes import AxisPlan, keep_largest, plan_axes
from llmshearing.models.shapes import ModelShape, resolve_target

GQA = ModelShape(4, 48, 6, 2, 64, 8)
MHA = ModelShape(4, 48, 6, 6, 64, 8)


def test_axes_are_those_on_which_the_target_differs():
    plans = plan_axes(GQA, resolve_target(GQA, {'num_hidden_layers': 3, 'num_key_value_heads': 1}))
    assert {axis: (plan.mask_shape, plan.units, plan.keep) for axis, plan in plans.items()} == {
        'layer': ((4,), 4, 3),
        'kv_group': ((4, 2), 2, 1),
    }


def test_query_heads_of_grouped_attention_are_chosen_inside_each_group():
    plan = plan_axes(GQA, resolve_target(GQA, {'num_attention_heads': 4, 'num_key_value_heads': 2}))['head']
    assert (plan.units, plan.keep) == (3, 2)
    scores = torch.tensor([[5.0, 6, 7, 1, 2, 3]] * 4)  # the first group's heads all score higher
    assert keep_largest(plan, scores).tolist() == [[False, True, True, False, True, True]] * 4


def test_heads_without_groups_are_chosen_per_layer():
    plan = plan_axes(MHA, resolve_target(MHA, {'num_attention_heads': 2}))['head']
    assert (plan.units, plan.keep) == (6, 2)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 5), units=st.integers(1, 9), data=st.data())
def test_exactly_so_many_of_the_largest_are_kept_in_every_row(rows, units, data):
    keep = data.draw(st.lists(st.integers(0, units), min_size=rows, max_size=rows))
    values = data.draw(st.lists(st.integers(-3, 3), min_size=rows * units, max_size=rows * units))
    scores = torch.tensor(values, dtype=torch.float32).view(rows, units)
    kept = keep_largest(AxisPlan('head', (rows, units), units, 1), scores, torch.tensor(keep))
    assert kept.sum(1).tolist() == keep
    for row in range(rows):
        chosen, others = scores[row][kept[row]], scores[row][~kept[row]]
        assert not len(chosen) or not len(others) or chosen.min() >= others.max()


def test_an_axis_left_to_training_keeps_as_many_as_are_named():
    plan = AxisPlan('intermediate', (2, 3), 3, keep=None)
    scores = torch.tensor([[1.0, 3.0, 2.0], [6.0, 5.0, 4.0]])
    assert keep_largest(plan, scores, torch.tensor([1, 2])).tolist() == [[False, True, False], [True, True, False]]
    for ask in (lambda: plan.final_sparsity, lambda: keep_largest(plan, scores)):
        with pytest.raises(ValueError, match="how many units of axis 'intermediate' stay is left to training"):
            ask()


@pytest.mark.parametrize(
    'target, message',
    [
        ({'hidden_size': 64}, "hidden_size=64 is larger than the source's 48"),
        ({'num_hidden_layers': 0}, 'num_hidden_layers=0: must be between 1 and 4'),
        ({'num_attention_heads': 5}, 'num_attention_heads=5 with num_key_value_heads=2.*possible: \\[2, 4, 6\\]'),
        ({'num_attention_heads': 6, 'num_key_value_heads': 1}, 'possible: \\[1, 2, 3\\]'),
        ({'head_dim': 4}, 'head_dim=4: the head dimension is inherited'),
        ({'hidden': 32}, 'unknown key.*hidden.*Possible: num_hidden_layers'),
        ({'hidden_size': 31.5}, 'whole numbers'),
    ],
)
def test_impossible_targets_are_refused_with_what_is_possible(target, message):
    with pytest.raises(ValueError, match=message):
        resolve_target(GQA, target)


def test_every_problem_of_a_target_is_named_at_once():
    with pytest.raises(ValueError) as error:
        resolve_target(GQA, {'hidden_size': 64, 'num_attention_heads': 5, 'num_hidden_layers': 9})
    assert all(word in str(error.value) for word in ('hidden_size=64', 'num_attention_heads=5', 'num_hidden_layers=9'))


def test_without_a_head_dim_of_its_own_hidden_size_follows_the_heads():
    with pytest.raises(
        ValueError, match='hidden_size must be heads x 8; nearest: hidden_size=32, num_attention_heads=4'
    ):
        resolve_target(MHA, {'hidden_size': 30, 'num_attention_heads': 4}, has_head_dim=False)
    assert resolve_target(MHA, {'hidden_size': 32, 'num_attention_heads': 4}, has_head_dim=False).hidden_size == 32


def test_layers_of_kinds_are_chosen_so_that_the_pattern_holds():
    kinds = (True, False, True, False, True, False)
    plan = AxisPlan('layer', (6,), 6, 4, kinds)
    scores = torch.tensor([1.0, 9.0, 8.0, 1.0, 1.0, 7.0])
    kept = torch.nonzero(keep_largest(plan, scores)).flatten().tolist()
    assert [kinds[unit] for unit in kept] == list(kinds[:4])
    every = [c for c in itertools.combinations(range(6), 4) if [kinds[u] for u in c] == list(kinds[:4])]
    assert sum(scores[kept]) == max(sum(scores[list(c)]) for c in every)
    # On the way there, any number of layers may be kept in any order.
    assert keep_largest(plan, scores, 3).tolist() == [False, True, True, False, False, True]
