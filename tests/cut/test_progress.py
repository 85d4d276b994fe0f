"""The bar counts passes over the decoder, on a terminal only, and leaves no hook."""

import sys

import pytest
import torch

from llmshearing.cut.cut_source import stage_bar
from tests.models.tiny import tiny_model


@pytest.mark.parametrize('terminal, shown, told', [(True, True, True), (False, True, False), (True, False, False)])
def test_passes_are_counted_on_a_terminal(monkeypatch, capsys, terminal, shown, told):
    model = tiny_model()
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: terminal)
    with torch.no_grad(), stage_bar(model.model, 'choosing', 3, shown):
        for _ in range(3):
            model(torch.tensor([[3, 4]]))
    assert ('choosing' in capsys.readouterr().err) == told
    assert not model.model._forward_hooks
