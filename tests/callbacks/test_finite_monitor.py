"""What is advised where a number is not finite is possible in the run."""

from types import SimpleNamespace

import pytest
import torch
from composer.core import Timestamp

from llmshearing.callbacks.finite_monitor import FiniteMonitor
from llmshearing.data.dynamic_text import DynamicTextLoader


@pytest.mark.parametrize('is_mixed', [True, False])
def test_only_a_mixture_is_told_its_way_to_other_data(is_mixed):
    loader = DynamicTextLoader.__new__(DynamicTextLoader) if is_mixed else None
    state = SimpleNamespace(timestamp=Timestamp(), callbacks=[], train_dataloader=loader)
    told = FiniteMonitor()._describe(state, {}, {'hidden': torch.tensor([torch.nan])})
    assert 'the hidden mask. ' in told and 'Start again with a lower optimizer.lr, a higher precision, or' in told
    end = 'other data (train_loader.dataset.restart_on_new_data: true).' if is_mixed else 'other data.'
    assert told.endswith(end)
