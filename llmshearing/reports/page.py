"""From chapters to one HTML file that needs no network and nothing else, and every picture as an SVG file beside it.

Style, pictures and script are inside the file. Pictures flow side by side as the window allows; only a wide table
scrolls sideways, inside its own box, so the page itself never does, on a desk or on a phone. How it looks is in
``page.html.j2``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llmshearing.reports.blocks import Picture, Section
from llmshearing.reports.svg import as_file
from llmshearing.utils.files import write_atomically

__all__ = ['Chapter', 'write_page']

PAGE = 'report.html'


@dataclass(frozen=True)
class Chapter:
    """A stage of training: its title, a word for file names and links (:func:`_distinct_keys`), and its sections."""

    title: str
    key: str
    sections: list[Section]


def write_page(folder: Path, title: str, lead: str, chapters: Sequence[Chapter]) -> Path:
    """Writes the page and its pictures, and returns the page's path; ``lead`` is the line below the title.

    The folder is made if needed. Each file is replaced at once, so a reader never meets half of one.
    """
    chapters = _distinct_keys(chapters)
    for chapter in chapters:
        for picture in _pictures(chapter):
            write_atomically(folder / f'{chapter.key}_{picture.name}.svg', as_file(picture.svg))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters['groups'] = _groups
    page = folder / PAGE
    write_atomically(page, environment.get_template('page.html.j2').render(title=title, lead=lead, chapters=chapters))
    return page


def _distinct_keys(chapters: Sequence[Chapter]) -> list[Chapter]:
    """The chapters, with a number behind each key that is an earlier one's, or names a picture of it."""
    named: list[Chapter] = []
    taken: set[str] = set()
    for chapter in chapters:
        key, number = chapter.key, 1
        while taken & (names := {key, *(f'{key}_{picture.name}' for picture in _pictures(chapter))}):
            number += 1
            key = f'{chapter.key}_{number}'
        taken |= names
        named.append(replace(chapter, key=key))
    return named


def _pictures(chapter: Chapter) -> Iterable[Picture]:
    return (block for section in chapter.sections for block in section.blocks if isinstance(block, Picture))


def _groups(blocks: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """Neighbouring blocks of one kind, with its name."""
    return [(kind, list(group)) for kind, group in groupby(blocks, lambda block: type(block).__name__)]
