"""The ranges of the numbers that ``dynamic_text`` takes, its own and Streaming's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmshearing.utils.checks import Range

__all__ = ['RANGES', 'SEED', 'SEQUENCE', 'check_numbers']

SEQUENCE = Range(2, whole=True)  # of a single token there is nothing to predict
SEED = Range(0, 2**32 - 1, whole=True)
RANGES = {
    'max_seq_len': SEQUENCE,
    'round_batches': Range(1, whole=True),
    'shuffle_seed': SEED,
    'shuffle_block_size': Range(1, whole=True),
    'predownload': Range(0, whole=True),  # below, Streaming waits for ever
    'download_retry': Range(0, whole=True),
    'replication': Range(1, whole=True),
    'max_passes': Range(0, above=True),
    'download_timeout': Range(0, above=True),
}


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Refuses numbers that are out of range, for ``DynamicTextDataset`` and what it takes of Streaming's.

    Raises:
        ValueError: Naming the setting, its range and the number.
    """
    for name, allowed in RANGES.items():
        if settings.get(name) is not None:
            allowed.check(name, settings[name])
