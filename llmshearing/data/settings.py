"""The ranges of the numbers that ``dynamic_text`` takes, its own and Streaming's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmshearing.utils.checks import check_integer, check_number

__all__ = ['LEAST', 'check_numbers']

LEAST = {
    'max_seq_len': 1,
    'round_batches': 1,
    'shuffle_seed': 0,
    'shuffle_block_size': 1,
    'predownload': 0,  # below, Streaming waits for ever
    'download_retry': 0,
    'replication': 1,
}
"""The smallest possible value of each whole number."""


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Refuses numbers that are out of range, for ``DynamicTextDataset`` and what it takes of Streaming's.

    Raises:
        ValueError: Naming the setting, its range and the number.
    """
    for name, least in LEAST.items():
        if settings.get(name) is not None:
            check_integer(name, settings[name], least)
    for name in ('max_passes', 'download_timeout'):
        if settings.get(name) is not None:
            check_number(name, settings[name], 0, above=True)
