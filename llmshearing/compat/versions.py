"""Which generation of a library is installed; read from its metadata, so that nothing is imported for it."""

from __future__ import annotations

import importlib.metadata
from typing import Any

__all__ = ['GLOO_AVERAGES', 'TRANSFORMERS_5', 'major_version', 'needs_newer']


def major_version(package: str) -> int:
    """The first number of an installed package's version.

    Raises:
        importlib.metadata.PackageNotFoundError: If it is not installed.
    """
    return int(importlib.metadata.version(package).split('.')[0])


TRANSFORMERS_5 = major_version('transformers') >= 5

# Whether gloo averages where it is asked to: 2.7.0 adds up without a word, 2.14.1 averages; between them nobody looked.
GLOO_AVERAGES = [int(part) for part in importlib.metadata.version('torch').split('.')[:2]] >= [2, 14]


def needs_newer(key: str, value: Any) -> str:
    """The sentence on a setting of a config.json that transformers 4 does not compute."""
    return (
        f'the config has {key}: {value!r}, which transformers 4 does not compute; use transformers 5 '
        '(constraints/current.txt).'
    )
