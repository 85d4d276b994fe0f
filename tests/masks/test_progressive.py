"""Progressive shearing: which units go, when, and how their masks fall."""

import pytest
import torch

from llmshearing.masks.axes import AxisPlan
from llmshearing.masks.learner import LearnerSettings
from llmshearing.masks.progressive import ProgressiveMasks

PLAN = AxisPlan('hidden', (10,), units=10, keep=4)


def masks_of(fade, **settings):
    """Units of importance 1 to 10, of which the lower six are to go."""
    masks = ProgressiveMasks({'hidden': PLAN}, LearnerSettings(seed=0, fade=fade, **settings))
    masks.start_from({'hidden': torch.arange(1.0, 11.0)})
    return masks


@pytest.mark.parametrize('fade', [0.0, 0.25, 0.5])
def test_units_go_in_the_order_of_importance_and_masks_fall_in_a_straight_line(fade):
    masks = masks_of(fade)
    for step in range(101):
        progress = step / 100
        got = masks.draw(step, progress)['hidden']
        for unit in range(6):
            # Told to go when the schedule, shortened by the fade, says so: the first step at or after that.
            left = torch.ceil(torch.tensor((unit + 1) / 6 * (1 - fade) * 100 - 1e-4)).item() / 100
            if progress < left - 1e-6:
                want = 1.0
            else:
                want = max(0.0, 1 - (progress - left) / fade) if fade and progress < 1 else 0.0
            assert got[unit].item() == pytest.approx(want, abs=1e-5), (unit, progress)
        assert got[6:].eq(1).all()
    assert masks.hard_counts() == {'hidden': [4]}
    assert torch.equal(masks.deterministic('target')['hidden'], got)


def test_a_unit_that_goes_is_not_among_the_targets_while_its_mask_falls():
    masks = ProgressiveMasks({'layer': AxisPlan('layer', (10,), units=10, keep=4)}, LearnerSettings(seed=0, fade=0.5))
    masks.start_from({'layer': torch.arange(1.0, 11.0)})
    masks.draw(0, 0.3)
    assert masks.current_masks()['layer'].gt(0).sum() == 10  # falling, not gone
    assert masks.deterministic('target')['layer'].nonzero().flatten().tolist() == [6, 7, 8, 9]
    masks.update({'layer': torch.arange(10.0, 0.0, -1.0) * 100}, 0.3, 1.0)  # the other way round, loudly
    masks.draw(1, 0.31)
    stays = masks.scores()['layer'] > 0
    assert not stays[:3].any()  # what was told to go does not come back


def test_what_the_schedule_starts_from_is_gone_at_once():
    masks = masks_of(0.5, start_sparsity=0.3)
    assert masks.draw(0, 0.0)['hidden'].tolist() == [0.0] * 3 + [1.0] * 7


def test_an_axis_that_loses_less_than_the_start_is_at_its_target_at_once():
    plans = {'hidden': AxisPlan('hidden', (8,), units=8, keep=7), 'layer': AxisPlan('layer', (8,), units=8, keep=2)}
    masks = ProgressiveMasks(plans, LearnerSettings(start_sparsity=0.5))
    for progress, layers in ((0.0, 4), (0.5, 3), (1.0, 2)):  # 8 x (1 - 0.5), then on to 8 x (1 - 0.75)
        drawn = masks.draw(0, progress)
        logged = masks.update({axis: torch.ones(8) for axis in plans}, progress, 1.0)
        assert logged == {'hidden/target': 7.0, 'layer/target': layers}
        assert {axis: int(mask.sum()) for axis, mask in drawn.items()} == {'hidden': 7, 'layer': layers}


def test_masks_go_on_from_their_state():
    whole, first = masks_of(0.4), masks_of(0.4)
    for step in range(5):
        whole.draw(step, step / 10), first.draw(step, step / 10)
    resumed = masks_of(0.4)
    resumed.load_state_dict(first.state_dict())
    assert (
        torch.equal(resumed.current_masks()['hidden'], whole.current_masks()['hidden'])
        and (whole.current_masks()['hidden'] % 1).any()
    )
    for step in range(5, 12):
        assert torch.equal(resumed.draw(step, step / 10)['hidden'], whole.draw(step, step / 10)['hidden'])


def schedule(axis, shape, units, keep, weakest, fade=0.0):
    """Units that rows keep along the way; ``weakest`` is the importance of the least important unit of each row."""
    plan = AxisPlan(axis, shape, units=units, keep=keep)
    masks = ProgressiveMasks({axis: plan}, LearnerSettings(fade=fade))
    importance = torch.full((len(weakest), units), 5.0) + torch.arange(units)
    importance[:, 0] = torch.tensor(weakest)
    masks.start_from({axis: importance.view(shape)})
    return [plan.rows(masks.draw(step, step / 100)[axis]).sum(1).int().tolist() for step in range(101)]


def test_layers_lose_a_kv_group_one_after_the_other_where_it_matters_least():
    got = schedule('kv_group', (4, 3), 3, 2, [0.1, 0.4, 0.2, 0.3])
    when = [next(step for step, counts in enumerate(got) if counts[row] == 2) for row in range(4)]
    assert when == [25, 100, 50, 75]  # a quarter of the layers by each quarter of the schedule
    assert got[-1] == [2, 2, 2, 2]
    for step, counts in enumerate(got):
        due = 4 * (3 - step / 100)
        assert due - 1e-4 <= sum(counts) < due + 1


def test_all_groups_of_a_layer_keep_the_same_number_of_heads():
    got = schedule('head', (2, 4), 2, 1, [0.1, 0.4, 0.2, 0.2])  # rows are groups; layers matter 0.5 and 0.4
    assert got[49] == [2, 2, 2, 2] and got[50] == [2, 2, 1, 1] and got[99] == [2, 2, 1, 1] and got[100] == [1] * 4


def test_other_axes_lose_a_unit_in_all_rows_at_once():
    got = schedule('intermediate', (4, 3), 3, 2, [0.1, 0.4, 0.2, 0.3])
    assert got[99] == [3] * 4 and got[100] == [2] * 4


def test_a_run_from_before_layers_took_turns_goes_on_as_it_began():
    plans = {'kv_group': AxisPlan('kv_group', (4, 3), units=3, keep=2)}
    masks, resumed = ProgressiveMasks(plans, LearnerSettings(seed=0)), ProgressiveMasks(plans, LearnerSettings(seed=0))
    state = masks.state_dict()
    assert state.pop('layer_by_layer')
    resumed.load_state_dict(state)
    fade = LearnerSettings().fade
    for each, kept in ((masks, 10), (resumed, 12)):
        each.draw(0, 0.5 * (1 - fade))
        assert (each.left_at['kv_group'] == float('inf')).sum() == kept


@pytest.mark.parametrize('fade', [0.0, 0.3])
@pytest.mark.parametrize('before', [0.5, 1.0, 1.5])
def test_what_went_stays_gone_where_the_warm_up_becomes_longer(fade, before):
    plans = {'hidden': PLAN, 'head': AxisPlan('head', (2, 4), units=2, keep=1)}
    masks = ProgressiveMasks(plans, LearnerSettings(fade=fade))
    for step in range(round(before * 20) + 1):
        last = masks.draw(step, step / 20)
    for step in range(round(before * 20) + 1, 100):
        now = masks.draw(step, step / 80)
        assert all((now[axis] <= last[axis] + 1e-6).all() for axis in plans), step
        last = now
    assert masks.hard_counts() == {'hidden': [4], 'head': [1] * 4}


@pytest.mark.parametrize('fades', [(0.0, 0.4), (0.2, 0.4), (0.4, 0.2), (0.4, 0.0)])
def test_what_goes_does_not_come_back_with_another_fade(fades):
    masks, resumed = masks_of(fades[0]), masks_of(fades[1])
    for step in range(6):
        last = masks.draw(step, step / 10)['hidden']
    assert (last == 0).any()
    resumed.load_state_dict(masks.state_dict())
    for step in range(6, 11):
        now = resumed.draw(step, step / 10)['hidden']
        assert (now <= last + 1e-6).all()
        last = now
    assert last.sum() == 4


def test_a_layer_of_the_kind_that_is_needed_comes_back_also_then():
    plan = AxisPlan('layer', (6,), units=6, keep=3, kinds=('full', 'slide', 'full', 'slide', 'full', 'slide'))
    masks = ProgressiveMasks({'layer': plan}, LearnerSettings(fade=0.0))
    masks.start_from({'layer': torch.tensor([1.0, 9.0, 2.0, 8.0, 3.0, 7.0])})
    for step in range(11):
        masks.draw(step, step / 10)
    target = masks.current_masks()['layer']
    assert target.sum() == 3 and torch.equal(masks.draw(11, 0.4)['layer'], target)
