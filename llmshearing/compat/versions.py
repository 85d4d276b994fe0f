"""Which generation of a library is installed; read from its metadata, so that nothing is imported for it."""

from __future__ import annotations

import importlib.metadata

__all__ = ['TRANSFORMERS_5', 'major_version']


def major_version(package: str) -> int:
    """The first number of an installed package's version.

    Args:
        package (str): Name of the distribution on PyPI.

    Raises:
        importlib.metadata.PackageNotFoundError: If it is not installed.
    """
    return int(importlib.metadata.version(package).split('.')[0])


TRANSFORMERS_5 = major_version('transformers') >= 5
