"""The harvest: pages from docstrings, duplicates found in spite of cosmetics, the same bytes every time."""

import json
import random
import sys

import pytest

from llmshearing.demo import text as harvest
from llmshearing.demo.duplicates import Document, deduplicate, shingles
from llmshearing.demo.text import DOMAINS, Domain, cut, docstring_page, harvest_text, installed_distributions

MIT = """{head}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files, to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and sell copies of the Software, subject to these conditions.

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software, whoever {holder} may be, and wherever they may live, for as long as the sun shines on the hills of this land.
"""
OTHER = ' '.join(f'clause{chr(97 + i % 26)} about matter{chr(97 + i // 26)}' for i in range(60))


def kept(documents, prose=True):
    return list(deduplicate([Document(f'd{i}', text) for i, text in enumerate(documents)], prose))


def test_docstring_page():
    source = (
        '"""The module.\n\n    Indented.\n"""\nimport nothing\n\n\nclass Shape:\n    """A shape."""\n\n'
        '    def area(self, unit: str = "m", *, exact=False) -> float:\n        """Its area.\n\n'
        '        In units.\n        """\n        return 1.0\n\n    def bare(self):\n        pass\n\n\n'
        'async def go(x):\n    """Goes."""\n'
    )
    assert docstring_page(source, 'pack.shape') == (
        'pack.shape\n\n\nThe module.\n\nIndented.\n\n\nclass Shape\n\nA shape.\n\n\n'
        "Shape.area(self, unit: str='m', *, exact=False)\n\nIts area.\n\nIn units.\n\n\ngo(x)\n\nGoes."
    )
    assert docstring_page('x = 1\n', 'pack') == ''
    assert docstring_page('def (:\n', 'pack') == ''


def test_licences_that_differ_in_cosmetics_are_one():
    first = MIT.format(head='Copyright (c) 2001 Ada Byron', holder='Ada Byron')
    second = MIT.format(head='Copyright 2019-2024 The Babbage Authors\nAll rights reserved.', holder='the authors')
    second = '\r\n'.join('  * ' + line for line in second.upper().split('\n')).replace(', ', ',  ')
    assert [document.source for document in kept([first, second])] == ['d0']
    assert len(kept([first, OTHER])) == 2


def test_shingles_are_runs_of_six_words_without_copyright_lines():
    assert shingles('Copyright 1999 by a great many people indeed\nOne, 2 two three:\n  four FIVE six seven') == [
        'one two three four five six',
        'two three four five six seven',
    ]
    assert shingles('only five words are here') == []


def test_repeated_blocks_are_cut_from_prose_only():
    paragraph = MIT.split('\n\n')[1]
    first, second = f'{OTHER}\n\n{paragraph}\n', f'A heading\n\n{paragraph}\n\n{OTHER[::-1]}\n'
    assert kept([first, second])[1].text == f'A heading\n\n{OTHER[::-1]}\n'
    assert kept([first, second], prose=False)[1].text == second


def test_order_decides_which_twin_stays_and_a_dropped_one_leaves_no_trace():
    half = OTHER[::-1][:300].strip()
    mostly_old = f'{OTHER}\n\n{half}\n'
    fresh = f'{half}\n\n{MIT.split(chr(10) * 2)[1]}\n'
    assert [document.source for document in kept([OTHER, mostly_old, fresh])] == ['d0', 'd2']
    assert half in kept([OTHER, mostly_old, fresh])[1].text


def test_long_documents_are_cut_at_the_end_of_a_block():
    assert cut('one\n\ntwo\n', 10) == 'one\n\ntwo\n'
    assert cut('one\n\ntwo\nthree\n', 12) == 'one\n'
    assert cut('one\ntwo\nthree\n', 10) == 'one\ntwo\n'
    assert cut('onetwothree\n', 6) == 'onetwo\n'


@pytest.mark.parametrize('text', ['too short', 'x y ' * 40_000, OTHER + '\x04', OTHER + '<|im_end|>', OTHER + '\ufffd'])
def test_unusable_documents_are_left_out(text):
    assert kept([text]) == []


def test_licence_bundles_are_split_after_whole_files(tmp_path, monkeypatch):
    (tmp_path / 'a').write_text(f'{OTHER}\n{"=" * 40}\n{"filler " * 4000}\n')
    (tmp_path / 'b').write_text(OTHER * 2)
    files = (
        harvest.PackageFile('big/LICENSES.txt', tmp_path / 'a'),
        harvest.PackageFile('small/COPYING', tmp_path / 'b'),
        harvest.PackageFile('small/license.py', tmp_path / 'b'),
    )
    monkeypatch.setattr(harvest, 'installed_files', lambda: files)
    found = list(harvest.licences(random.Random(0)))
    assert [document.source for document in found] == ['small/COPYING', 'big/LICENSES.txt#0', 'big/LICENSES.txt#1']
    assert found[1].text == OTHER + '\n'


def test_large_packages_take_turns(tmp_path, monkeypatch):
    page = '"""Module."""\n' + ''.join(f'def f{i}():\n    """{OTHER}"""\n' for i in range(3))
    (tmp_path / 'm.py').write_text(page)
    names = [f'huge/m{i}.py' for i in range(50)] + ['small/m.py', 'huge/tests/m.py', 'single.py']
    files = tuple(harvest.PackageFile(name, tmp_path / 'm.py') for name in names)
    monkeypatch.setattr(harvest, 'installed_files', lambda: files)
    sources = [document.source for document in harvest.api_documentation(random.Random(0))]
    assert 'small/m.py' in sources[:2] and len(sources) == 51 and 'huge/tests/m.py' not in sources


def test_a_checkout_on_the_path_adds_nothing_of_its_own(tmp_path, monkeypatch):
    for name in ('llmshearing', 'other'):
        (tmp_path / f'{name}.egg-info').mkdir()
        (tmp_path / f'{name}.egg-info' / 'PKG-INFO').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1\n')
        (tmp_path / f'{name}.egg-info' / 'SOURCES.txt').write_text(f'{name}_module.py\n')
        (tmp_path / f'{name}_module.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    harvest.installed_files.cache_clear()
    names = {file.name for file in harvest.installed_files()}
    harvest.installed_files.cache_clear()
    assert 'other_module.py' in names and 'llmshearing_module.py' not in names


def test_the_text_does_not_depend_on_whether_setuptools_was_imported(tmp_path, monkeypatch):
    """Its import puts the packages that it carries on the path."""
    plain = [distribution.name for distribution in installed_distributions()]
    vendored = tmp_path / 'setuptools' / '_vendor'
    for name in (plain[0], 'nowhere_else'):
        (vendored / f'{name}-9.9.dist-info').mkdir(parents=True)
        metadata = f'Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n'
        (vendored / f'{name}-9.9.dist-info' / 'METADATA').write_text(metadata)
    monkeypatch.syspath_prepend(str(vendored))
    assert [distribution.name for distribution in installed_distributions()] == plain


def test_harvest_of_this_installation(tmp_path):
    summary = harvest_text(tmp_path / 'one', seed=5, max_chars=150_000)
    harvest_text(tmp_path / 'two', seed=5, max_chars=150_000)
    harvest_text(tmp_path / 'three', seed=6, max_chars=150_000)
    assert list(summary) == list(DOMAINS) and len(summary) >= 4
    texts = set()
    for name, counts in summary.items():
        path = tmp_path / 'one' / f'{name}.jsonl'
        assert path.read_bytes() == (tmp_path / 'two' / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / 'three' / path.name).read_bytes()
        documents = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        assert counts == {'documents': len(documents), 'chars': sum(len(document['text']) for document in documents)}
        assert counts['chars'] >= 100_000, f'{name} is too small to train on'
        assert all(document.keys() == {'text', 'source'} for document in documents)
        assert len({document['source'] for document in documents}) == len(documents)
        assert not any(
            document['source'].startswith(('/', '..')) or sys.prefix in document['text'] for document in documents
        )
        texts |= {document['text'] for document in documents}
    assert len(texts) == sum(counts['documents'] for counts in summary.values())  # no document in two domains
    assert {path.name for path in (tmp_path / 'one').iterdir()} == {f'{name}.jsonl' for name in DOMAINS}


def test_bad_requests_are_refused_and_write_nothing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown \\['novels'\\]"):
        harvest_text(tmp_path / 'out', domains=['python', 'novels'])
    with pytest.raises(ValueError, match='max_chars must be positive, got 0'):
        harvest_text(tmp_path / 'out', max_chars=0)
    monkeypatch.setitem(DOMAINS, 'licences', Domain(lambda rng: iter([Document('a', OTHER)]), prose=True))
    with pytest.raises(ValueError, match="domain 'licences': found 1 documents"):
        harvest_text(tmp_path / 'out', domains=['licences'])
    assert not (tmp_path / 'out').exists()
