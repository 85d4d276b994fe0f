"""The list of kept tokens that another model takes."""

from __future__ import annotations

import json

import pytest

from llmshearing.vocabulary.settings import read_kept, read_wished


def test_the_list_of_another_folder(tmp_path):
    with pytest.raises(ValueError, match='holds no vocabulary.json; expected a folder that trim-vocab wrote'):
        read_kept(tmp_path, 'abc')
    (tmp_path / 'vocabulary.json').write_text(json.dumps({'kept': [3, 5], 'source_vocabulary': 'abc'}))
    assert read_kept(tmp_path, 'abc') == [3, 5]
    with pytest.raises(ValueError, match='made from another tokenizer'):
        read_kept(tmp_path, 'abd')
    for damaged in ('{', '{"kept": "x"}', '[]'):
        (tmp_path / 'vocabulary.json').write_text(damaged)
        with pytest.raises(ValueError, match='is not what trim-vocab writes'):
            read_kept(tmp_path, 'abc')


def test_wished_tokens_stand_one_a_line(tmp_path):
    path = tmp_path / 'keep.txt'
    path.write_bytes('Ġthe\n\n▁a b\u2028c\n'.encode())
    assert read_wished(path) == ['Ġthe', '▁a b\u2028c'] and read_wished(None) == []
    path.write_bytes('\ufeffdef\r\n"a\\nb"\n"\n"\\""\n""\n'.encode())  # of Windows, and in quotes
    assert read_wished(path) == ['def', 'a\nb', '"', '"', '""']
    path.write_bytes(b'\xff')
    with pytest.raises(ValueError, match='is not UTF-8'):
        read_wished(path)
