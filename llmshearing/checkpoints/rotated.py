"""What a model folder says of the basis that its hidden dimensions stand in: the record of ``llmshearing rotate``."""

from __future__ import annotations

from pathlib import Path

from llmshearing.utils.files import load_json

__all__ = ['RECORD', 'has_learned_basis', 'is_rotated']

RECORD = 'rotation.json'


def is_rotated(source: str | Path) -> bool:
    """Whether ``llmshearing rotate`` wrote a source, which may be named by its ``config.json``."""
    return _record_of(source).is_file()


def has_learned_basis(source: str | Path) -> bool:
    """Whether a source's hidden dimensions stand in the order that ``llmshearing rotate --learn`` found."""
    return is_rotated(source) and bool(load_json(_record_of(source)).get('learned'))


def _record_of(source: str | Path) -> Path:
    path = Path(source)
    return (path.parent if path.is_file() else path) / RECORD
