"""Counts and sizes as people write them."""

import pytest

from llmshearing.utils.numbers import parse_count, parse_size, with_unit


@pytest.mark.parametrize(
    'text, value',
    [
        ('6738415616', 6738415616),
        ('1.3e9', 1.3e9),
        ('1.3B', 1.3e9),
        ('70m', 7e7),
        (' 2 T', 2e12),
        ('5k', 5e3),
        (7, 7),
        ('2_000', 2e3),
    ],
)
def test_counts(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize('text', ['', 'B', '-5', '0', '1.3X', 'nan', 'inf', '1e400', '1.2.3', '1.2.', True, None])
def test_what_is_not_a_count(text):
    with pytest.raises(ValueError, match='not a count'):
        parse_count(text)


@pytest.mark.parametrize(
    'value, expected',
    [
        ('2.5GB', 2500000000),
        ('1KiB', 1024),
        ('1.5 KiB', 1536),
        ('3mb', 3000000),
        ('1e9', 10**9),
        (7, 7),
        ('1B', 1),
        ('2TB', 2 * 10**12),
    ],
)
def test_sizes(value, expected):
    assert parse_size(value) == expected


@pytest.mark.parametrize('value', ['five', '3 XB', '0', '0GB', '', '-1GB', '1e400', '1e308TB', True])
def test_no_sizes(value):
    with pytest.raises(ValueError, match='not a size'):
        parse_size(value)


@pytest.mark.parametrize(
    'value, unit, binary, text',
    [
        (13476831232, 'B', False, '13.48 GB'),
        (538e6, 'B', False, '538.00 MB'),
        (999, 'B', False, '999 B'),
        (1000, 'B', False, '1.00 kB'),
        (2**30, 'B', True, '1.00 GiB'),
        (268435456, 'FLOPs', False, '268.44 MFLOPs'),
        (0, 'B', False, '0 B'),
        (5e18, 'FLOPs', False, '5,000,000.00 TFLOPs'),
    ],
)
def test_units_that_fit(value, unit, binary, text):
    assert with_unit(value, unit, binary) == text
