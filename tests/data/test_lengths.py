"""A sample of another length among equals is found by the check and before the run, whatever it is stored as."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from streaming import MDSWriter

from llmshearing.compat.streaming import MDSReader
from llmshearing.data.lengths import local_bytes, token_sizes
from llmshearing.prepare.check import check
from tests.dynamic_text_world import dynamic_loader

pytestmark = pytest.mark.usefixtures('closed_loaders')

LENGTHS = [8] * 30
ODD = [8] * 17 + [5] + [8] * 12


def write(folder, lengths, encoding='ndarray:uint16', others=(), compression=None):
    """Shards of about ten samples."""
    columns = {**dict(others), 'tokens': encoding}
    with MDSWriter(out=str(folder), columns=columns, size_limit=400, compression=compression) as writer:
        for number, length in enumerate(lengths):
            tokens = np.arange(length, dtype=np.int64 if encoding == 'bytes' else np.uint16)
            row = {'tokens': tokens.tobytes() if encoding == 'bytes' else tokens}
            if 'url' in columns:
                row['url'] = 'x' * (number % 3)
            if 'number' in columns:
                row['number'] = number
            writer.write(row)


KINDS = [
    {},
    {'encoding': 'bytes'},
    {'others': {'number': 'int'}.items()},
    {'others': {'url': 'str', 'number': 'int'}.items()},
    {'compression': 'zstd:3'},
    {'compression': 'gz'},
    {'compression': 'br'},
    {'compression': 'snappy'},
    {'compression': 'zstd:3', 'others': {'url': 'str'}.items()},
]


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_an_odd_sample(tmp_path, kind):
    write(tmp_path / 'good', LENGTHS, **kind)
    write(tmp_path / 'odd', ODD, **kind)
    assert len(list((tmp_path / 'odd').glob('shard*'))) > 1
    loader = dynamic_loader(tmp_path, ['good'])
    assert sum(len(batch['input_ids']) for batch in loader) == 20
    assert check(tmp_path / 'good')['.']['samples'] == 30
    for look in (lambda: dynamic_loader(tmp_path, ['good', 'odd']), lambda: check(tmp_path / 'odd')):
        with pytest.raises(ValueError, match=r'sample \d+ has \d+ bytes of tokens where the others have \d+'):
            look()


def test_shards_of_another_length(tmp_path):
    """Each shard is even, but not like the others."""
    write(tmp_path / 'odd', [8] * 20 + [5] * 40)
    for look in (lambda: dynamic_loader(tmp_path, ['odd']), lambda: check(tmp_path / 'odd')):
        with pytest.raises(ValueError, match=r'sample \d+ .*where the others have'):
            look()


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_sizes_are_those_of_the_stored_tokens(tmp_path, kind):
    write(tmp_path, ODD, **kind)
    for shard in json.loads((tmp_path / 'index.json').read_text())['shards']:
        reader = MDSReader.from_json(str(tmp_path), None, shard)
        sizes = token_sizes(reader, local_bytes(reader)).tolist()
        assert len(sizes) == reader.samples and len(set(sizes)) <= 2


def test_nothing_is_read_where_the_encoding_fixes_the_length(tmp_path):
    write(tmp_path / 'a', LENGTHS, encoding='ndarray:uint16:8')
    reader = MDSReader.from_json(
        str(tmp_path / 'a'), None, json.loads((tmp_path / 'a/index.json').read_text())['shards'][0]
    )
    assert token_sizes(reader, b'') is None
    shutil.rmtree(tmp_path / 'a')
    assert local_bytes(reader) is None
