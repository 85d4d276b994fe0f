"""Which generation of a library is installed; read from its metadata, so that nothing is imported for it."""

from __future__ import annotations

import importlib.metadata

__all__ = ['GLOO_AVERAGES', 'TRANSFORMERS_5', 'major_version']


def major_version(package: str) -> int:
    """The first number of an installed package's version.

    Raises:
        importlib.metadata.PackageNotFoundError: If it is not installed.
    """
    return int(importlib.metadata.version(package).split('.')[0])


TRANSFORMERS_5 = major_version('transformers') >= 5

# Whether gloo averages where it is asked to: 2.7.0 adds up without a word, 2.14.1 averages; between them nobody looked.
GLOO_AVERAGES = [int(part) for part in importlib.metadata.version('torch').split('.')[:2]] >= [2, 14]
