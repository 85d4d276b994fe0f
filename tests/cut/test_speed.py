"""Speed is measured whatever the model's own generation settings ask for."""

import pytest

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
