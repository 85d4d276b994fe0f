"""The journal survives any interruption; samples are cut and written exactly; bad writer options are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from streaming import MDSWriter

from llmshearing.prepare import pack
from llmshearing.prepare.pack import Journal, check_writer_options, read_journal, write_samples
from tests.prepare.prepare_inputs import read_tokens


def _entry(i):
    return [np.arange(i * 3, dtype=np.uint16), np.full(2, i, np.uint16)]


def _continued(folder, first=0):
    """Opens a journal of four entries and adds those that it lacks; how many it had, and what is there then."""
    journal = Journal(folder, 'j', 'ab')
    had = journal.count
    for i in range(had, 4):
        journal.append(_entry(i + first), number=i)
    journal.close()
    return had, _contents(folder)


def _contents(folder):
    return [np.fromfile(folder / f'j.{c}.bin', np.uint16).tolist() for c in 'ab'], list(read_journal(folder, 'j'))


@pytest.mark.parametrize('file', ['j.journal', 'j.a.bin', 'j.b.bin'])
def test_journal_cut_anywhere_continues(tmp_path, file):
    _, expected = _continued(tmp_path / 'whole')
    size = (tmp_path / 'whole' / file).stat().st_size
    for length in range(0, size + 1, max(1, size // 23)):
        folder = tmp_path / f'{file}{length}'
        folder.mkdir()
        for path in (tmp_path / 'whole').iterdir():
            data = path.read_bytes()
            (folder / path.name).write_bytes(data[:length] if path.name == file else data + b'beyond'[: len(data) % 7])
        if file != 'j.journal':
            (folder / 'j.journal').write_bytes((tmp_path / 'whole' / 'j.journal').read_bytes())
        had, contents = _continued(folder)
        assert had <= 4 and (had == 4) == (length == size)
        assert contents == expected


@pytest.mark.parametrize('file', ['j.journal', 'j.a.bin', 'j.b.bin'])
def test_journal_with_zeros_where_data_were_continues(tmp_path, file):
    """What a file may hold after a loss of power: its length, but not its content."""
    _, expected = _continued(tmp_path, first=1)
    size = (tmp_path / file).stat().st_size
    with open(tmp_path / file, 'r+b') as opened:
        opened.seek(size // 2 + 1)
        opened.write(bytes(size - size // 2 - 1))
    had, contents = _continued(tmp_path, first=1)
    assert 1 <= had < 4 and contents == expected


def test_journal_removes_its_files(tmp_path):
    journal = Journal(tmp_path, 'j', 'ab')
    journal.append(_entry(1))
    journal.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('dtype', 'length', 'samples', 'block'), [('uint16', 16, 7, 1 << 22), ('uint32', 5, 101, 50), ('uint16', 64, 1, 1)]
)
def test_samples(tmp_path, monkeypatch, dtype, length, samples, block):
    monkeypatch.setattr(pack, 'BLOCK', block)
    ids = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, samples * length + 3, dtype, endpoint=True)
    (tmp_path / 'ids').write_bytes(ids.tobytes())
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'left behind').touch()
    options = {'compression': None, 'hashes': ['sha1', 'xxh64'], 'shard_size': 2000}
    write_samples(tmp_path / 'ids', tmp_path / 'out', samples, length, dtype, **options)
    assert np.array_equal(read_tokens(tmp_path / 'out'), ids[:-3].reshape(samples, length))
    shards = json.loads((tmp_path / 'out' / 'index.json').read_text())['shards']
    assert all(
        s['column_encodings'] == [f'ndarray:{dtype}:{length}']
        and s['column_names'] == ['tokens']
        and set(s['raw_data']['hashes']) == {'sha1', 'xxh64'}
        for s in shards
    )
    assert len(list((tmp_path / 'out').iterdir())) == len(shards) + 1


def test_a_failing_writer_leaves_no_index(tmp_path, monkeypatch):
    flush, failed = MDSWriter.flush_shard, []

    def fail(self):
        if len(self.shards) == 1 and not failed:
            failed.append(True)  # once: room may come back while the error is on its way
            raise OSError(28, 'No space left on device')
        flush(self)

    monkeypatch.setattr(MDSWriter, 'flush_shard', fail)
    (tmp_path / 'ids').write_bytes(bytes(2 * 16 * 100))
    with pytest.raises(OSError, match='No space left'):
        write_samples(
            tmp_path / 'ids', tmp_path / 'out', 100, 16, 'uint16', compression=None, hashes=[], shard_size=1500
        )
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['shard.00000.mds']


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (('lzma', [], '64mb'), "compression is 'lzma'; expected one of br"),
        ((None, ['sha1', 'crc'], '64mb'), "hashes has 'crc'; expected some of blake2b"),
        ((None, [], 'big'), "shard_size is 'big'; expected bytes"),
        ((None, [], 4096), 'room for a sample of 4096 bytes'),
        ((None, [], '4gb'), 'expected less than 4 GB'),
    ],
)
def test_options_refused(options, words):
    with pytest.raises(ValueError) as error:
        check_writer_options(*options, 4096)
    assert words in str(error.value)


def test_options_accepted():
    check_writer_options('zstd:7', ['sha1', 'xxh64'], '1mb', 4096)
    check_writer_options(None, [], 1 << 26, 4096)
