"""The folder of a search: begun by several at once, killed or out of space while it is begun, or somebody else's."""

import errno

import pytest

from llmshearing.search import records
from llmshearing.search.records import SearchFolder
from tests.interruptions import stop_after


def test_stopped_while_the_folder_was_begun_the_next_start_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space'):
        stop_after(patch, records, 'write_atomically', 0, OSError(errno.ENOSPC, 'No space left on device'))
        SearchFolder(tmp_path / 'search', {'a': 1})
    SearchFolder(tmp_path / 'search', {'a': 1}).write('x', {'loss': 1.0})
    assert SearchFolder(tmp_path / 'search', {'a': 1}).read('x') == {'loss': 1.0}


def test_another_one_that_begins_the_same_folder_is_no_stranger(tmp_path):
    (tmp_path / 'search').mkdir()
    (tmp_path / 'search' / '.search.json.0123456789abcdef').write_text('{')  # half written, or left by a killed one
    SearchFolder(tmp_path / 'search', {'a': 1}).write('x', {'loss': 1.0})
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / '.notes').write_text('mine')
    with pytest.raises(ValueError, match='exists already and holds no search'):
        SearchFolder(tmp_path / 'notes', {'a': 1})
