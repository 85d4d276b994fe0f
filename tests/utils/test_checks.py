"""What passes for a number."""

import math

import pytest

from llmshearing.utils.checks import check_number, is_number


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, True, '1', None, 10**400, -(10**400)])
def test_only_what_a_float_can_hold_is_a_number(value):
    """A whole number beyond that ended the checks of a YAML with an OverflowError that named no key."""
    assert not is_number(value)
    with pytest.raises(ValueError, match='key: expected a number of at least 0, got'):
        check_number('key', value, 0)


@pytest.mark.parametrize('value', [0, -1, 1e308, 10**300])
def test_whole_numbers_are_numbers_too(value):
    assert is_number(value)
