"""What the loader refuses: mistakes in its settings, in the data, in a checkpoint, told before training."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from streaming import MDSWriter

from llmshearing.data.dynamic_text import build_dynamic_text_dataloader
from tests.data.dynamic_text_folder import SIZES, folder  # noqa: F401
from tests.dynamic_text_world import (
    BASE,
    dynamic_loader,
    read_back,
    serve_rounds,
    tiny_tokenizer,
    tokens_of,
    write_domains,
)

pytestmark = pytest.mark.usefixtures('closed_loaders')


def test_a_checkpoint_within_a_batch_is_refused(folder):
    with pytest.raises(ValueError, match='between global batches of 4'):
        dynamic_loader(folder, list(SIZES)).dataset.state_dict(6, True)


def write(folder, columns, rows, **settings):
    with MDSWriter(out=str(folder), columns=columns, hashes=['xxh64'], **settings) as writer:
        for row in rows:
            writer.write(row)


def damage(folder):
    for shard in folder.glob('*.mds'):
        content = bytearray(shard.read_bytes())
        content[-3] ^= 1
        shard.write_bytes(content)


def test_data_prepared_again_is_not_taken_for_the_data_of_the_checkpoint(folder, tmp_path):
    loader = dynamic_loader(folder, list(SIZES))
    serve_rounds(loader, 1)
    state = loader.dataset.state_dict(0, True)
    shutil.copytree(folder, tmp_path / 'same')
    dynamic_loader(tmp_path / 'same', list(SIZES)).dataset.load_state_dict(state)  # wherever it is kept
    write_domains(tmp_path / 'other', {name: SIZES[name] for name in ('b', 'a', 'c')})  # numbered in this order
    with pytest.raises(ValueError, match='other shards of a, b: as many samples'):
        dynamic_loader(tmp_path / 'other', list(SIZES)).dataset.load_state_dict(state)


def test_proportions_that_a_resumed_run_does_not_heed_are_told(folder, caplog):
    settings = {'proportions': {'a': 2, 'b': 1, 'c': 1}}
    loader = dynamic_loader(folder, list(SIZES), **settings)
    serve_rounds(loader, 1)
    state = loader.dataset.state_dict(0, True)
    dynamic_loader(folder, list(SIZES), **settings).dataset.load_state_dict(state)
    assert 'for new runs' not in caplog.text
    dynamic_loader(folder, list(SIZES), proportions={'a': 0, 'b': 0, 'c': 1}).dataset.load_state_dict(state)
    assert "{'a': 0.5, 'b': 0.25, 'c': 0.25}" in caplog.text and 'for new runs' in caplog.text


def test_a_damaged_shard_is_an_error(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'data')
    damage(tmp_path / 'data' / 'b')
    with pytest.raises(ValueError, match='shard.* is damaged: its xxh64 is'):
        serve_rounds(dynamic_loader(tmp_path / 'data', list(SIZES), validate_hash='xxh64'), 2)
    with pytest.raises(ValueError, match=r"validate_hash is sha1, but .* has \['xxh64'\] only"):
        serve_rounds(dynamic_loader(tmp_path / 'data', list(SIZES), validate_hash='sha1'), 2)
    loader = dynamic_loader(tmp_path / 'cache', list(SIZES), remote=str(tmp_path / 'data'), validate_hash='xxh64')
    with pytest.raises((ValueError, RuntimeError), match='[Cc]hecksum|[Bb]ackground thread'):
        serve_rounds(loader, 2)


def test_a_cut_or_missing_shard_is_told_before_training(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'data')
    shard = sorted((tmp_path / 'data' / 'b').glob('*.mds'))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    bad(tmp_path / 'data', 'b: .*shard.00001.mds has .* bytes where its index says')
    shard.unlink()
    bad(tmp_path / 'data', 'b: shard shard.00001.mds of .* is missing')


def test_compressed_shards_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """They are unpacked beside themselves; the advice is to name the folder as the remote place of another."""
    with MDSWriter(out=str(tmp_path / 'a'), columns={'tokens': 'ndarray:uint16:8'}, compression='zstd') as writer:
        for sample in range(8):
            writer.write({'tokens': tokens_of(0, sample).astype(np.uint16)})
    with monkeypatch.context() as patch:
        patch.setattr('os.access', lambda path, mode: mode != os.W_OK)  # root may write everywhere
        bad(
            tmp_path,
            'a: its shards are compressed, .* cannot be written to unpack them.*as its `remote`',
            domains=['a'],
        )
    loader = dynamic_loader(tmp_path / 'other', ['a'], remote=str(tmp_path))
    assert len([row for batch in loader for row in read_back(batch)]) == 20


def bad(folder, match, **changes):
    with pytest.raises(ValueError, match=match):
        dynamic_loader(folder, changes.pop('domains', list(SIZES)), **changes)


def test_mistakes_in_the_configuration_are_told(folder, tmp_path):
    bad(folder, r"Cannot read 1 of 2 domains \(d: no .*Domains found in .*\['a', 'b', 'c'\]", domains=['a', 'd'])
    bad(folder, 'must be a list of names', domains=[])
    bad(folder, 'must be a list of names', domains='a')
    bad(folder, 'named once', domains=['a', 'a'])
    bad(folder, r"unknown names \['d'\] and lacks \['c'\]", proportions={'a': 1, 'b': 1, 'd': 1})
    bad(folder, 'it holds 8 tokens, but max_seq_len is 16. Set max_seq_len to 8', max_seq_len=16)
    bad(folder, "train_loader.dataset: unknown key 'proportion'. Did you mean 'proportions'?", proportion={'a': 1})
    bad(folder, 'always shuffles', shuffle=False)
    for name, wrong in {
        'round_batches': 0,
        'predownload': -1,
        'shuffle_seed': -3,
        'shuffle_block_size': 0,
        'max_seq_len': 0,
        'download_retry': -1,
        'replication': 0,
    }.items():
        bad(folder, f'{name}: expected a whole number (of at least .|from 0 to [0-9]+), got {wrong}', **{name: wrong})
    for name, wrong in {'max_passes': 0, 'download_timeout': -1}.items():
        bad(folder, f'{name}: expected a number above 0, got {wrong}', **{name: wrong})
    bad(folder, 'num_workers: expected a whole number of at least 0, got -1', workers=-1)
    bad(tmp_path / 'nowhere', 'There is no folder', domains=['a'])
    with pytest.raises(ValueError, match='needs a tokenizer'):
        build_dynamic_text_dataloader(None, 4, {})
    for name, wrong in {'timeout': -1, 'prefetch_factor': 0}.items():
        with pytest.raises(ValueError, match=f'{name}: expected a .*number of at least ., got {wrong}'):
            build_dynamic_text_dataloader(tiny_tokenizer(), 4, {}, num_workers=1, **{name: wrong})


def test_places_mean_what_a_shell_means(folder, monkeypatch):
    monkeypatch.setenv('HOME', str(folder))
    monkeypatch.setenv('DATA', str(folder.parent))
    dynamic_loader(f'$DATA/{folder.name}', {'a': None, 'b': {'local': '~/b'}})
    bad(
        folder,
        "domains.a.local: '.NOT_SET_AT_ALL/a' has the environment variable",
        domains=['a'],
        local='$NOT_SET_AT_ALL',
    )


def test_mistakes_in_the_data_are_told(folder, tmp_path):
    write(tmp_path / 'empty', {'tokens': 'ndarray:uint16'}, [])
    bad(tmp_path, 'empty: .*lists no samples', domains=['empty'])
    write_domains(tmp_path, {'fixed': 3}, encoding='ndarray:uint16:8')
    bad(tmp_path, r"'fixed' holds sequences of 8 tokens", domains=['fixed'], max_seq_len=4)
    write(tmp_path / 'large', {'tokens': 'ndarray:uint32'}, [{'tokens': np.full(8, 70_000, np.uint32)}])
    there = (
        f"'large': sample 0 of {tmp_path}/large/shard.00000.mds: it has the token id 70000, outside a vocabulary of 64"
    )
    bad(tmp_path, there, domains=['large'])
    for kind in ('ndarray:float32', 'ndarray:float32:8', 'ndarray'):
        name = kind.replace(':', '_')
        write(tmp_path / name, {'tokens': kind}, [{'tokens': np.ones(8, np.float32)}])
        bad(tmp_path, f"'{name}': .*tokens (is {kind},|are float32,) expected .*whole numbers", domains=[name])
    write(tmp_path / 'other', {'image': 'int'}, [{'image': 3}])
    bad(tmp_path, r"'other' has the columns \['image'\]", domains=['other'])
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'index.json').write_text('{"version": 2,')
    bad(tmp_path, 'broken: .*not JSON', domains=['broken'])


def test_the_first_sample_of_every_shard_is_looked_at(tmp_path):
    rows = [{'tokens': np.full(8, -1 if number == 3 else 1, np.int32)} for number in range(10)]
    write(tmp_path / 'a', {'tokens': 'ndarray:int32:8'}, rows, size_limit=300)
    index = json.loads((tmp_path / 'a' / 'index.json').read_text())
    assert [shard['samples'] for shard in index['shards']] == [3, 3, 3, 1]
    bad(tmp_path, "'a': sample 0 of .*a/shard.00001.mds: it has the token id -1, outside", domains=['a'])


def test_the_sequence_length_of_remote_data_is_known_from_its_index(tmp_path):
    write_domains(tmp_path / 'remote', {'a': 5}, encoding='ndarray:uint16:8')
    bad(tmp_path / 'local', 'sequences of 8 tokens', domains=['a'], remote=str(tmp_path / 'remote'), max_seq_len=16)


@pytest.mark.parametrize(
    ('wrong', 'match'),
    [
        (
            np.full(8, BASE, np.uint16),
            f"'a': sample 5 of .*shard.00000.mds: it has the token id {BASE}, outside a vocabulary of {BASE}",
        ),
        (np.ones(7, np.uint16), "'a': .*: sample 5 has 16 bytes of tokens where the others have 18"),
        (np.ones(9, np.uint16), "'a': .*: sample 5 has 20 bytes of tokens where the others have 18"),
    ],
)
def test_a_wrong_sample_further_on_is_an_error(tmp_path, wrong, match):
    rows = [{'tokens': tokens_of(0, i).astype(np.uint16)} for i in range(8)]
    rows[5]['tokens'] = wrong
    write(tmp_path / 'a', {'tokens': 'ndarray:uint16'}, rows)
    with pytest.raises(ValueError, match=match):
        serve_rounds(dynamic_loader(tmp_path, ['a']), 1)


def test_the_manifest_of_prepare_names_the_vocabulary(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'data' / 'prune')
    manifest = tmp_path / 'data' / 'manifest.json'
    manifest.write_text(json.dumps({'tokenizer': {'name': 'other', 'vocab_size': 65}}))
    bad(tmp_path / 'data' / 'prune', "another tokenizer, 'other' .*: it has 65 ids, the one here 64")
    manifest.write_text(json.dumps({'tokenizer': {'name': 'other', 'vocab_size': 64}}))
    dynamic_loader(tmp_path / 'data' / 'prune', list(SIZES))
