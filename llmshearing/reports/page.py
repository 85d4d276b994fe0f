"""From sections to one HTML file that needs nothing else: no network, no script, pictures inside it, and the same as
PNG files.

Pictures flow side by side as the window allows; only a wide table scrolls sideways, inside its own box, so the page
itself never does, on a desk or on a phone.
"""

from __future__ import annotations

import base64
import html
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmshearing.reports.blocks import Picture, Section, Table
from llmshearing.utils.files import write_atomically

PAGE = 'report.html'
STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --rule: #dfe3e8; --link: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 1rem clamp(0.75rem, 2vw, 2rem) 3rem;
  color: var(--ink); background: #fff; overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.35rem; border-top: 3px solid var(--ink); padding-top: 0.6rem; margin: 2.5rem 0 0.5rem; }
h3 { font-size: 1.1rem; margin: 1.75rem 0 0.5rem; }
p { max-width: 75ch; margin: 0.5rem 0; }
p.soft, figcaption, caption { color: var(--soft); font-size: 0.875rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; padding: 0; margin: 0.5rem 0; list-style: none; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 1rem;
  margin: 0.75rem 0; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; max-width: 690px; border: 1px solid var(--rule);
  border-radius: 4px; }
figcaption { margin-top: 0.25rem; }
.table { overflow-x: auto; display: inline-block; max-width: 100%; margin: 0.5rem 0 0.75rem; padding-right: 2rem;
  vertical-align: top; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 0.25rem; }
th, td { padding: 0.25rem 0.75rem 0.25rem 0; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; overflow-wrap: normal; }
th:first-child, td:first-child { text-align: left; }
table.list td { text-align: left; overflow-wrap: anywhere; }
details { margin: 0.75rem 0; }
summary { cursor: pointer; color: var(--link); }
"""


@dataclass(frozen=True)
class Chapter:
    """A stage of training: its title, a word for file names and links (:func:`told_apart`), and its sections."""

    title: str
    key: str
    sections: list[Section]


def write_page(folder: Path, title: str, lead: str, chapters: Sequence[Chapter]) -> Path:
    """Writes the page and its pictures; each file is replaced at once, so a reader never meets half of one.

    Args:
        folder: Where to; made if needed.
        title: Of the page.
        lead: The line below it.
        chapters: At least one.

    Returns:
        Path: The page.
    """
    chapters = told_apart(chapters)
    for chapter in chapters:
        for picture in _pictures(chapter):
            write_atomically(folder / f'{_name(picture, chapter.key)}.png', picture.png)
    page = folder / PAGE
    write_atomically(page, render(title, lead, chapters).encode('utf-8'))
    return page


def told_apart(chapters: Sequence[Chapter]) -> list[Chapter]:
    """The chapters, with a number behind the key of each that would have the key, or a picture's name, of an earlier
    one."""
    told: list[Chapter] = []
    taken: set[str] = set()
    for chapter in chapters:
        key, number = chapter.key, 1
        while taken & (names := {key, *(_name(picture, key) for picture in _pictures(chapter))}):
            number += 1
            key = f'{chapter.key}_{number}'
        taken |= names
        told.append(replace(chapter, key=key))
    return told


def _pictures(chapter: Chapter) -> Iterable[Picture]:
    return (block for section in chapter.sections for block in section.blocks if isinstance(block, Picture))


def _name(picture: Picture, chapter: str) -> str:
    """Of a picture's file, and of its place on the page."""
    return f'{chapter}_{picture.name}'


def render(title: str, lead: str, chapters: Sequence[Chapter]) -> str:
    """The page's text; arguments as :func:`write_page`."""
    links = ''.join(
        f'<li><a href="#{html.escape(chapter.key)}">{html.escape(chapter.title)}</a></li>' for chapter in chapters
    )
    body = ''.join(_chapter(chapter) for chapter in chapters)
    navigation = f'<nav><ul>{links}</ul></nav>\n' if len(chapters) > 1 else ''
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f'<h1>{html.escape(title)}</h1>\n<p class="soft">{html.escape(lead)}</p>\n'
        f'{navigation}{body}</body>\n</html>\n'
    )


def _chapter(chapter: Chapter) -> str:
    sections = ''.join(
        f'<section id="{_key(chapter.key, section.title)}">\n<h3>{html.escape(section.title)}</h3>\n'
        f'{_blocks(section.blocks, chapter.key)}</section>\n'
        for section in chapter.sections
    )
    return f'<h2 id="{html.escape(chapter.key)}">{html.escape(chapter.title)}</h2>\n{sections}'


def _key(chapter: str, title: str) -> str:
    return html.escape(f'{chapter}-{"-".join(title.lower().replace(",", "").split())}')


def _blocks(blocks: Sequence[str | Table | Picture], chapter: str) -> str:
    parts, pictures = [], []
    for block in [*blocks, '']:
        if isinstance(block, Picture):
            pictures.append(_picture(block, chapter))
            continue
        if pictures:
            parts.append(f'<div class="pictures">\n{"".join(pictures)}</div>\n')
            pictures = []
        if block:
            parts.append(_table(block) if isinstance(block, Table) else f'<p>{html.escape(block)}</p>\n')
    return ''.join(parts)


def _picture(picture: Picture, chapter: str) -> str:
    width, height = struct.unpack('>II', picture.png[16:24])
    data = base64.b64encode(picture.png).decode('ascii')
    name, caption = html.escape(_name(picture, chapter)), html.escape(picture.caption)
    return (
        f'<figure><img id="{name}" src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{caption}">'
        f'<figcaption>{caption}</figcaption></figure>\n'
    )


def _table(table: Table) -> str:
    header, *rows = table.rows
    caption = f'<caption>{html.escape(table.title)}</caption>' if table.title and not table.folded else ''
    head = ''.join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    lines = ''.join('<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row) + '</tr>\n' for row in rows)
    plain = ' class="list"' if len(header) == 1 else ''
    text = (
        f'<div class="table"><table{plain}>{caption}<thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{lines}</tbody></table></div>\n'
    )
    return f'<details><summary>{html.escape(table.title)}</summary>\n{text}</details>\n' if table.folded else text
