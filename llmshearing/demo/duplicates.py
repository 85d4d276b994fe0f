"""Documents and parts of them that were seen before, found in spite of cosmetics.

A held-out split means nothing when its documents have twins in the training split. Documents are compared by runs of
six words without case, digits, punctuation, layout and copyright lines, so that two licences that differ in holder,
year, line breaks and indentation are the same. A document most of which was seen before is dropped; in prose the
repeated blocks (text between blank lines) of the others are cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ['MAX_CHARS', 'Document', 'deduplicate', 'shingles']

MIN_CHARS = 400  # shorter documents are stubs: an __init__ with one import, a licence that only names another
MAX_CHARS = 60_000  # longer ones are tables or bundles
MIN_BLOCK_SHINGLES = 8  # shorter blocks ("Returns:", a heading) repeat by nature and say nothing about copying
UNUSABLE = re.compile(r'[\x00-\x08\x0b\x0e-\x1f\x7f\ufffd]|<\|[a-z_]+\|>')


class Document(NamedTuple):
    """A piece of text and where it comes from, relative to the installation (``json/decoder.py``)."""

    source: str
    text: str


def shingles(block: str) -> list[str]:
    """Runs of six words in lower case: what blocks are compared by. Lines that claim a copyright do not count."""
    lines = (line for line in block.splitlines() if not re.search(r'copyright|\(c\)|©', line[:80], re.IGNORECASE))
    words = re.findall('[a-z]+', ' '.join(lines).lower())
    return [' '.join(words[i : i + 6]) for i in range(len(words) - 5)]


def deduplicate(documents: Iterable[Document], prose: bool) -> Iterator[Document]:
    """Leaves out documents that were seen before, in whole or for the greater part.

    A block is repeated when three quarters of its shingles were seen in documents that were kept, so a name inside a
    licence's clause does not make it another clause.

    Args:
        documents (Iterable[Document]): In order of preference; the first of several alike is kept.
        prose (bool): Also cut repeated blocks out of the documents that are kept.

    Yields:
        Document: The remaining ones, tidied: no carriage returns, trailing blanks or runs of blank lines.
    """
    seen: set[str] = set()
    for source, text in documents:
        text = re.sub(r'[ \t\f]+\n', '\n', text.replace('\r\n', '\n').replace('\r', '\n'))
        text = re.sub(r'\n{4,}', '\n\n\n', text).strip('\n') + '\n'
        if not MIN_CHARS <= len(text) <= MAX_CHARS or UNUSABLE.search(text):
            continue
        pieces = re.split(r'(\n{2,})', text)  # block, gap, block, gap, ...
        blocks, gaps = pieces[::2], [*pieces[1::2], '']
        found = [shingles(block) for block in blocks]
        counts = [(len(each), sum(shingle not in seen for shingle in each)) for each in found]  # all, and new ones
        if 2 * sum(new for _, new in counts) < sum(total for total, _ in counts):
            continue
        seen.update(*found)
        if prose:
            kept = (
                block + gap
                for block, gap, (total, new) in zip(blocks, gaps, counts)
                if total < MIN_BLOCK_SHINGLES or 4 * new > total
            )
            text = ''.join(kept).strip('\n') + '\n'
        if len(text) >= MIN_CHARS:
            yield Document(source, text)
