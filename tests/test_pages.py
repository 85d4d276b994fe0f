"""Every page of the checkout: its links lead somewhere, and its sentences are short."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
FOLDERS = ('benchmarks', 'conversion', 'data_prep', 'jobs', 'llmshearing', 'tests', 'yamls', 'constraints')
PAGES = sorted([*CHECKOUT.glob('*.md'), *(page for folder in FOLDERS for page in (CHECKOUT / folder).rglob('*.md'))])
LINK = re.compile(r'(?<!!)\[[^\]\[]*\]\(([^)\s]+)\)')
ITEM = re.compile(r'^\s*(?:[-*]|\d+\.) ')
FENCE = re.compile(r'^```.*?^```', re.MULTILINE | re.DOTALL)
LONGEST = 30  # words of a sentence


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page: words in lower case, joined by hyphens, repeats numbered."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r'^#+ (.*)$', FENCE.sub('', page.read_text(encoding='utf-8')), re.MULTILINE):
        text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)
        name = re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-')
        names.add(f'{name}-{found[name]}' if found[name] else name)
        found[name] += 1
    return names


def broken_links(page: Path) -> list[str]:
    """The links of a page that lead to no file, or to no heading of one."""
    broken = []
    for link in LINK.findall(FENCE.sub('', page.read_text(encoding='utf-8'))):
        if re.match(r'[a-z]+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = page.parent / path if path else page
        if anchor and target.is_dir():
            target /= 'README.md'
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / 'page.md'
    page.write_text('# A `b`, c\n\n[x](other.md) [y](#a-b-c) [z](#nowhere) [v](https://a.org)\n')
    assert broken_links(page) == ['other.md', '#nowhere']


TABLES = [
    page for page in PAGES if re.search(r'^\|( step \|)? file \|', page.read_text(encoding='utf-8'), re.MULTILINE)
]


@pytest.mark.parametrize('page', TABLES, ids=lambda page: page.parent.name)
def test_a_table_of_files_names_every_one(page: Path) -> None:
    text = page.read_text(encoding='utf-8')
    modules = [path.name for path in page.parent.glob('*.py') if path.stem != '__init__']
    assert len(modules) > 3 and not [name for name in modules if name not in text]


def sentences(text: str) -> list[str]:
    """The sentences of a page outside of headings, tables and code; what is in backticks counts as a word."""
    found = []
    for block in re.split(r'\n\s*\n', FENCE.sub('', text)):
        parts: list[list[str]] = [[]]
        for line in block.split('\n'):
            if line.startswith(('|', '#')):
                continue
            if ITEM.match(line):
                parts.append([])
            parts[-1].append(ITEM.sub('', line, count=1).strip())
        for part in parts:
            plain = re.sub(r'`[^`]*`', 'code', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', ' '.join(part)))
            found += re.split(r'(?<=[.!?])\s+(?=[A-Z"(])', plain.replace('*', ''))
    return found


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_sentences_are_short(page: Path) -> None:
    assert not [each for each in sentences(page.read_text(encoding='utf-8')) if len(each.split()) > LONGEST]


def test_a_long_sentence_is_found() -> None:
    long = ' '.join(['Word'] * 31) + '.'
    text = f'# A {long}\n\nShort one. {long}\n- {"a `b c` " * 10}.\n\n| {long} |\n'
    assert [each for each in sentences(text) if len(each.split()) > LONGEST] == [long]
