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
    masks = masks_of(0.5)
    masks.draw(0, 0.3)
    assert masks.current_masks()['hidden'].gt(0).sum() == 10  # falling, not gone
    assert masks.deterministic('target')['hidden'].nonzero().flatten().tolist() == [6, 7, 8, 9]
    masks.update({'hidden': torch.arange(10.0, 0.0, -1.0) * 100}, 0.3, 1.0)  # the other way round, loudly
    masks.draw(1, 0.31)
    stays = masks.scores()['hidden'] > 0
    assert not stays[:3].any()  # what was told to go does not come back


def test_what_the_schedule_starts_from_is_gone_at_once():
    masks = masks_of(0.5, start_sparsity=0.3)
    assert masks.draw(0, 0.0)['hidden'].tolist() == [0.0] * 3 + [1.0] * 7


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
