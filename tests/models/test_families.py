"""Tables of families that other packages bring."""

import catalogue
import pytest

from llmshearing.models.cuttable import Cutter
from llmshearing.models.families import families, family_of
from tests.models.tiny import tiny_model


@pytest.fixture
def forgotten():
    """What a test registers is forgotten afterwards."""
    yield
    catalogue.REGISTRY.pop(('llmshearing', 'families', 'mine'), None)


def test_a_family_of_another_package_needs_no_change_of_ours(forgotten):
    model = tiny_model('llama')
    model.config.model_type = 'mine'
    with pytest.raises(ValueError, match="'mine' is not supported.*supported: .*llama"):
        family_of(model.config)
    families('mine', func=families.get('llama'))
    assert Cutter(model).family is families.get('llama')
