"""What fits an annotation, in the words of a YAML."""

from typing import Literal

import pytest

from llmshearing.utils.annotations import expected_instead


@pytest.mark.parametrize(('value', 'fits'), [(1, True), (2, False), (True, False), (1.0, False), ('1', False)])
def test_a_literal_is_of_its_own_kind(value, fits):
    assert (expected_instead(value, Literal[1]) is None) == fits
