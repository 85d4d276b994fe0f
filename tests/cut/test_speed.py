"""Speed is measured whatever the model's own generation settings ask for."""

import pytest

from llmshearing.cut import speed
from llmshearing.cut.speed import tokens_per_second
from tests.models.tiny import tiny_model


@pytest.mark.parametrize(
    'settings', [{'stop_strings': ['x']}, {'do_sample': True, 'num_return_sequences': 3}, {'eos_token_id': '</s>'}]
)
def test_the_model_s_own_generation_settings_do_not_matter(settings):
    model = tiny_model().eval()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    own = model.generation_config
    assert min(tokens_per_second(model, length=16, new_tokens=2).values()) > 0
    assert model.generation_config is own


def test_a_second_per_pass_gives_the_speeds_of_the_closed_form(monkeypatch):
    model, passes = tiny_model().eval(), []
    model.register_forward_hook(lambda *_: passes.append(None))
    monkeypatch.setattr(speed.time, 'perf_counter', lambda: float(len(passes)))
    # A text takes one pass whatever its length, and each new token one.
    assert tokens_per_second(model, length=16, new_tokens=4) == {'forward': 16, 'generate': 1}
