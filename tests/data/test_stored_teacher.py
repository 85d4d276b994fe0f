"""``dynamic_text`` with a teacher's column: it stays with its tokens, and what does not belong together is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from llmshearing.data.stored_teacher import read_note, shard_mark
from llmshearing.prepare.check import check
from llmshearing.teacher.settings import TeachSettings
from llmshearing.teacher.teach import teach
from tests.dynamic_text_world import close_loaders, on_ranks
from tests.teacher.world import LENGTH, SAMPLES, loader_of, make_world, samples_of, taught, write
from tests.tiny_run import tiny_tokenizer

ROUNDS = 4  # more than one pass over domain b


@pytest.fixture(autouse=True)
def _close():
    yield
    close_loaders()


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp('stored'))
    taught(folder, 'plus', draws=5)
    return folder


def serve(spec, rounds=ROUNDS):
    """Batches of so many rounds, with weights that change: tokens, and the column where it is served."""
    batches, rounds_of = [], spec.dataloader.dataset.rounds
    for number in range(rounds):
        batches += [(batch['input_ids'], batch.get('teacher')) for batch in spec.dataloader]
        if number + 1 < rounds:
            rounds_of.set_next_weights({'a': 1 + number, 'b': 2})
    return batches


def test_every_row_comes_with_its_own_column_in_the_order_of_the_plain_data(world):
    stored = [row for name in SAMPLES for row in samples_of(world / 'plus/train' / name)]
    own = {(row['tokens'].astype(np.int64).tobytes(), row['teacher'].tobytes()) for row in stored}
    with_teacher = serve(loader_of(world / 'plus'))
    without, plain = serve(loader_of(world / 'plus', teacher=False)), serve(loader_of(world / 'data', teacher=False))
    assert len(with_teacher) == 3 * ROUNDS
    for (ids, teacher), (same, nothing), (also_same, _) in zip(with_teacher, without, plain, strict=True):
        assert torch.equal(ids, same) and torch.equal(ids, also_same) and nothing is None
        for row, found in zip(ids, teacher):
            assert (row.numpy().tobytes(), found.numpy().tobytes()) in own


def test_any_number_of_workers_and_ranks_serves_the_same(world, tmp_path):
    expected = serve(loader_of(world / 'plus'))
    for (ids, teacher), (wanted, column) in zip(serve(loader_of(world / 'plus', workers=2)), expected, strict=True):
        assert torch.equal(ids, wanted) and torch.equal(teacher, column)
    on_ranks(2, serve_rank, world / 'plus', tmp_path)
    parts = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    for first, second, (wanted, column) in zip(*parts, expected, strict=True):
        assert torch.equal(torch.cat([first[0], second[0]]), wanted)
        assert torch.equal(torch.cat([first[1], second[1]]), column)


def serve_rank(rank, folder, place):
    torch.save(serve(loader_of(folder, batch_size=2)), place / f'{rank}.pt')


def test_a_run_goes_over_to_taught_data_where_it_stands(world):
    plain = loader_of(world / 'data', teacher=False).dataloader
    for _ in plain:
        pass
    state = plain.dataset.state_dict(0, True)
    over = loader_of(world / 'plus').dataloader
    over.dataset.load_state_dict(state)
    assert [batch['input_ids'].tolist() for batch in over] == [batch['input_ids'].tolist() for batch in plain]


@pytest.fixture
def copy(world, tmp_path):
    return shutil.copytree(world / 'plus', tmp_path / 'copy')


def test_a_shard_beside_other_tokens_is_refused_by_name(copy):
    """The tokens of the first sample changed, as if the column were that of another text."""
    shard = copy / 'train/b/shard.00001.mds'
    content = bytearray(shard.read_bytes())
    content[-2 * LENGTH :] = np.arange(3, 3 + LENGTH, dtype=np.uint16).tobytes()
    shard.write_bytes(content)
    serve(loader_of(copy, teacher=False))  # plain readers do not look
    with pytest.raises(ValueError, match=r'shard.00001.mds.* has changed since it was written'):
        check(copy)  # by the hash of its index
    index = copy / 'train/b/index.json'
    forget_hashes(index)
    with pytest.raises(ValueError, match=r"shard.00001.mds: the teacher's column of sample 3 does not belong"):
        check(copy)
    with pytest.raises(ValueError, match=r"b/shard.00001.mds: the teacher's column does not belong to its tokens"):
        serve(loader_of(copy))


def forget_hashes(index):
    """As an index without hashes would be, its note made for it."""
    found = json.loads(index.read_text())
    for entry in found['shards']:
        entry['raw_data']['hashes'] = {}
        mark = shard_mark(entry['samples'], entry['raw_data']['bytes'], {})
        found['teacher']['shards'][entry['raw_data']['basename']] = mark
    index.write_text(json.dumps(found))


def test_shards_of_another_teacher_or_place_are_refused_before_the_first_step(world, copy, tmp_path):
    other = taught(world, 'other', draws=5, seed=3)
    swapped = 'train/a/shard.00002.mds'
    shutil.copyfile(other / swapped, copy / swapped)  # the same tokens, size and name
    with pytest.raises(
        ValueError, match=r"a/shard.00002.mds: the teacher's column does not belong.*of another teacher"
    ):
        loader_of(copy)
    shutil.copytree(other / 'train/a', copy / 'train/a', dirs_exist_ok=True)  # a whole domain
    with pytest.raises(ValueError, match="Domains 'a' and 'b' were taught by different teachers or with different"):
        loader_of(copy)
    shutil.rmtree(other)


def test_an_index_of_other_shards_is_refused(world, copy):
    index = copy / 'train/a/index.json'
    found = json.loads(index.read_text())
    for change, message in (
        (lambda i: i['shards'].pop(1), 'shard.00001.mds of its index is missing'),
        (lambda i: i['shards'][2]['raw_data']['hashes'].update(sha1='0' * 40), 'shard.00002.mds of its index is not'),
        (lambda i: i['teacher'].update(count=6), 'its note of a teacher.* cannot be read'),
        (lambda i: i.pop('teacher'), "Domain 'a' has no teacher's column"),
    ):
        changed = json.loads(json.dumps(found))
        change(changed)
        index.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            loader_of(copy)


def test_a_shard_cut_short_and_data_without_a_column_are_refused(world, copy):
    shard = copy / 'train/a/shard.00001.mds'
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(ValueError, match='shard.00001.mds has .* bytes where its index says'):
        loader_of(copy)
    with pytest.raises(ValueError, match="Domain 'a' has no teacher's column.*llmshearing teach"):
        loader_of(world / 'data')


def test_data_of_another_tokenizer_are_refused(copy):
    (copy / 'manifest.json').unlink()  # which says the same
    words = tiny_tokenizer(98)
    with pytest.raises(ValueError, match='is of data with another tokenizer .97 ids'):
        loader_of(copy, tokenizer=words)


def test_bytes_of_int64_and_remote_shards_are_served(world, tmp_path):
    write(tmp_path / 'data/train/a', np.stack([row['tokens'] for row in samples_of(world / 'data/train/a')]), 'bytes')
    teach(tmp_path / 'data', str(world / 'teacher'), tmp_path / 'plus', TeachSettings(draws=2), 'cpu')
    place = {'local': str(tmp_path / 'cache'), 'remote': str(tmp_path / 'plus/train')}
    spec = loader_of(tmp_path, domains=['a'], proportions=None, **place)
    assert spec.dataloader.dataset.teacher.note == read_note(tmp_path / 'plus/train/a')
    assert all(teacher.shape == (4, LENGTH, 8) for _, teacher in serve(spec, 1))
