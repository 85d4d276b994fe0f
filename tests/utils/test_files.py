"""A file is the old one or the new one, whole, whatever happens while it is written."""

from __future__ import annotations

import os

import pytest

from llmshearing.utils.files import write_atomically


def test_text_and_bytes(tmp_path):
    path = tmp_path / 'new' / 'a.json'
    for content, stored in (('d\u00e9j\u00e0', b'd\xc3\xa9j\xc3\xa0'), (b'\xff\n', b'\xff\n')):
        write_atomically(path, content)
        assert path.read_bytes() == stored
    assert [p.name for p in path.parent.iterdir()] == ['a.json']


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    write_atomically(path, 'old')

    def fail(handle):
        assert path.read_text() == 'old'
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='No space left'):
        write_atomically(path, 'new')
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['a.json']
