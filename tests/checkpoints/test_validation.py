"""Damaged checkpoints of both kinds are refused: every byte of the tensors counts, and so does the end."""

import os

import pytest
import torch
from torch.distributed import checkpoint as dist_cp

from llmshearing.checkpoints.shards import read_metadata
from llmshearing.checkpoints.validation import validate_checkpoint

STATE = {
    'state': {
        'model': {'weight': torch.arange(400.0).view(20, 20), 'bias': torch.ones(7)},
        'numbers': [1, 2, {'three': 3.0}],
    }
}


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


@pytest.fixture()
def files(tmp_path):
    for batch in (1, 2):
        torch.save(STATE, tmp_path / f'ba{batch}.pt')
        os.utime(tmp_path / f'ba{batch}.pt', (batch, batch))
    os.symlink('ba2.pt', tmp_path / 'latest-rank0.pt')
    return tmp_path


@pytest.fixture()
def shards(tmp_path):
    for batch in (1, 2):
        dist_cp.save(STATE, storage_writer=dist_cp.FileSystemWriter(tmp_path / f'ep0-ba{batch}'), no_dist=True)
        os.utime(tmp_path / f'ep0-ba{batch}', (batch, batch))
    return tmp_path


def validate_shards(folder):
    validate_checkpoint(folder / '.metadata')
    pieces = {}
    for info in read_metadata(folder).storage_data.values():
        pieces.setdefault(info.relative_path, []).append((info.offset, info.length))
    return all(validate_checkpoint(folder / name, found) for name, found in pieces.items())


def test_whole_checkpoints_pass(files, shards):
    assert validate_checkpoint(files / 'latest-rank0.pt') and validate_checkpoint(str(files / 'ba1.pt'))
    assert validate_shards(shards / 'ep0-ba2')


def test_any_flipped_bit_of_the_tensors_is_seen(files):
    path = files / 'ba2.pt'
    start = path.read_bytes().index(STATE['state']['model']['weight'].numpy().tobytes())
    for position in (start, start + 799, start + 1599):
        flip(path, position)
        with pytest.raises(
            ValueError, match=r'ba2.pt is damaged: the checksum of .*ba1.pt is whole: resume with load_path=.*ba1.pt'
        ):
            validate_checkpoint(files / 'latest-rank0.pt')
        flip(path, position)
        assert validate_checkpoint(path)


@pytest.mark.parametrize('share', [0, 0.3, 0.99])
def test_a_file_that_was_cut_off_is_refused(files, share):
    size = (files / 'ba2.pt').stat().st_size
    os.truncate(files / 'ba2.pt', int(size * share))
    os.truncate(files / 'ba1.pt', size // 2)
    with pytest.raises(ValueError, match='ba2.pt is damaged: .*there is no whole checkpoint beside it'):
        validate_checkpoint(files / 'ba2.pt')


def test_a_damaged_shard_is_refused_and_the_whole_folder_offered(shards):
    (shard,) = (shards / 'ep0-ba2').glob('*.distcp')
    flip(shard, shard.read_bytes().index(STATE['state']['model']['weight'].numpy().tobytes()) + 5)
    with pytest.raises(
        ValueError, match=r'distcp is damaged: the checksum .*ep0-ba1 is whole: resume with load_path=.*ep0-ba1 '
    ):
        validate_shards(shards / 'ep0-ba2')
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(ValueError, match='is damaged: .*ep0-ba1 is whole'):
        validate_shards(shards / 'ep0-ba2')
    shard.unlink()
    with pytest.raises(ValueError, match='is damaged: it is missing. .*ep0-ba1 is whole'):
        validate_checkpoint(shard, [(0, 10)])


@pytest.mark.parametrize('share', [0, 0.1, 0.5, 0.95])
def test_cut_off_metadata_is_refused(shards, share):
    path = shards / 'ep0-ba2' / '.metadata'
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ValueError, match='.metadata is damaged: .*ep0-ba1 is whole'):
        validate_checkpoint(path)


def test_changed_metadata_is_read_or_refused_but_never_breaks(shards):
    """It has no checksum; what a change leads to is seen when the pieces are read."""
    path = shards / 'ep0-ba2' / '.metadata'
    refused = 0
    for position in range(0, path.stat().st_size, 5):
        flip(path, position)
        try:
            validate_checkpoint(path)
        except ValueError as error:
            assert 'ep0-ba1 is whole' in str(error)
            refused += 1
        flip(path, position)
    assert refused > 50 and validate_shards(shards / 'ep0-ba2')


def test_a_folder_where_a_file_is_loaded(shards):
    with pytest.raises(ValueError, match='is a sharded checkpoint, but this run loads single files. Set fsdp_config'):
        validate_checkpoint(shards / 'ep0-ba1')
