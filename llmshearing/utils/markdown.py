"""Tables as Markdown has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ['markdown_table']


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table without the newline at its end.

    Args:
        header (Sequence[str]): A name for each column; it may be empty.
        rows (Iterable[Sequence[str]]): As many cells each, without a ``|``.
    """
    lines = [''.join(f' {cell} |' if cell else ' |' for cell in cells) for cells in (header, *rows)]
    lines.insert(1, '---|' * len(header))
    return '\n'.join(f'|{line}' for line in lines)
