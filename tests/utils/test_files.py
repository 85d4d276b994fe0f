"""A file is the old one or the new one, whatever happens while it is written."""

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
