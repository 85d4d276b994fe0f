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
    names = ''.join(f' {name} |' if name else ' |' for name in header)
    lines = [''.join(f' {cell} |' for cell in cells) for cells in rows]
    return '\n'.join(f'|{line}' for line in (names, '---|' * len(header), *lines))
