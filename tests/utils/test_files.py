"""A file is the old one or the new one, whole, whatever happens while it is written."""

from __future__ import annotations

import os

import pytest

from llmshearing.utils.files import atomic_path, write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / 'folder' / 'file.json'
    write_atomically(path, 'first ä')
    assert path.read_text(encoding='utf-8') == 'first ä'
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_text('second')
        raise RuntimeError
    assert path.read_text(encoding='utf-8') == 'first ä'
    write_atomically(path, b'third')
    assert path.read_bytes() == b'third' and os.listdir(path.parent) == ['file.json']


def test_permissions_and_links_stay(tmp_path):
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / 'new', 'x')
        assert (tmp_path / 'new').stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(mask)
    (tmp_path / 'new').chmod(0o600)
    (tmp_path / 'link').symlink_to('new')
    write_atomically(tmp_path / 'link', 'y')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'new').read_text() == 'y'
    assert (tmp_path / 'new').stat().st_mode & 0o777 == 0o600


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
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_atomically(path, 'new')
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_what_is_no_file_is_written_to(tmp_path):
    """A pipe or ``/dev/stdout`` keeps its name; a file in its place would reach nobody."""
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, 'text')
    assert os.read(reader, 99) == b'text' and pipe.is_fifo()
    os.close(reader)
