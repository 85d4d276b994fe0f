"""``dynamic_text`` with a teacher's column: it stays with its tokens, and what does not belong together is refused."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from composer.utils import dist

from llmshearing.data import shard_checks
from llmshearing.data.mds import read_index, row_bounds
from llmshearing.data.stored_teacher import read_note, shard_mark, tag_of
from llmshearing.prepare.check import check
from llmshearing.teacher.settings import TeachSettings
from llmshearing.teacher.teach import teach
from tests.dynamic_text_world import on_ranks
from tests.teacher.world import LENGTH, SAMPLES, content, loader_of, make_world, samples_of, taught, write
from tests.tiny_run import tiny_tokenizer

pytestmark = pytest.mark.usefixtures('closed_loaders')

ROUNDS = 4  # more than one pass over domain b


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
    with pytest.raises(ValueError, match=r"sample 3 of .*shard.00001.mds: the teacher's column does not belong"):
        check(copy)
    with pytest.raises(
        ValueError, match=r"Domain 'b': sample 3 of .*b/shard.00001.mds: the teacher's column does not belong to its"
    ):
        serve(loader_of(copy))


def forget_hashes(index, hash_of=lambda content: {}, version=None):
    """As an index without hashes would be, or with others, its note made for it."""
    found = json.loads(index.read_text())
    for entry in found['shards']:
        raw = entry['raw_data']
        raw['hashes'] = hash_of((index.parent / raw['basename']).read_bytes())
        found['teacher']['shards'][raw['basename']] = shard_mark(entry['samples'], raw['bytes'], raw['hashes'])
    found['teacher']['version'] = version or found['teacher']['version']
    index.write_text(json.dumps(found))


def change_columns(folder, shard, changed):
    """Replaces columns of one shard: ``{number of a sample: its new column}``."""
    reader = read_index(folder)[shard]
    path = folder / reader.raw_data.basename
    found = bytearray(path.read_bytes())
    bounds = row_bounds(reader, bytes(found)).tolist()
    for number, column in changed.items():
        at = found.index(reader[number]['teacher'].tobytes(), bounds[number], bounds[number + 1])
        found[at : at + column.nbytes] = column.tobytes()
    path.write_bytes(found)


def as_taught_before(folder):
    """Tags that are a hash of tokens and key alone, as a note of version 1 has them; all else fits."""
    key = read_note(folder).key
    for reader in read_index(folder):
        path = folder / reader.raw_data.basename
        found = path.read_bytes()
        for row in (reader[number] for number in range(len(reader))):
            assert found.count(row['teacher_of'].tobytes()) == 1
            found = found.replace(row['teacher_of'].tobytes(), tag_of(row['tokens'], key).tobytes())
        path.write_bytes(found)
    forget_hashes(folder / 'index.json', lambda content: {'sha1': hashlib.sha1(content).hexdigest()}, version=1)


def test_columns_of_two_samples_swapped_with_their_tags_in_place(copy, monkeypatch):
    rows = read_index(copy / 'train/a')[2]
    change_columns(copy / 'train/a', 2, {1: rows[2]['teacher'], 2: rows[1]['teacher']})
    with pytest.raises(ValueError, match=r'a/shard.00002.mds is damaged: its sha1 is'):
        loader_of(copy)
    belong = r"sample 1 of .*a/shard.00002.mds: the teacher's column does not belong to its tokens"
    for samples, refuse in ((16, loader_of), (1, lambda folder: serve(loader_of(folder)))):
        forget_hashes(copy / 'train/a/index.json')
        monkeypatch.setattr(shard_checks, 'SAMPLED_ROWS', samples)
        with pytest.raises(ValueError, match=f"Domain 'a': .*{belong}"):
            refuse(copy)
    with pytest.raises(ValueError, match=belong):
        check(copy)


def test_hashes_are_compared_up_to_so_many_bytes(copy, monkeypatch):
    forget_hashes(copy / 'train/b/index.json', lambda content: {'sha1': '0' * 40})
    with pytest.raises(ValueError, match=r'b/shard.00000.mds is damaged: its sha1 is'):
        loader_of(copy)
    monkeypatch.setattr(shard_checks, 'HASHED_BYTES', 1000)
    assert len(serve(loader_of(copy), 1)) == 3


def test_ranks_share_the_hashes_and_all_hear_of_a_damaged_shard(copy):
    for shard in (1, 2):  # one for each rank
        place = shutil.copytree(copy, copy.with_name(f'damaged-{shard}'))
        change_columns(place / 'train/a', shard, {2: read_index(place / 'train/a')[shard][1]['teacher']})
        on_ranks(2, build_damaged, place)


def build_damaged(rank, folder):
    dist.initialize_dist('cpu')
    with pytest.raises(ValueError, match=r'a/shard.0000[12].mds is damaged: its sha1 is'):
        loader_of(folder, batch_size=2)


@pytest.mark.parametrize(
    'settings, at, value, message',
    [
        ({'draws': 5}, 0, np.float32('nan'), 'the number nan'),
        ({'draws': 5}, 0, np.float32('-inf'), 'the number -inf'),
        ({'draws': 5}, 6, np.uint16(65535), 'the token id 65535 of 97 tokens'),
        ({'top_k': 3}, 0, np.float32('nan'), 'the number nan'),
        ({'top_k': 3}, 0, np.float32('inf'), 'the number inf'),
        ({'top_k': 3}, 4, np.uint16(97), 'the token id 97 of 97 tokens'),
    ],
)
def test_what_no_teacher_predicts_is_refused_by_name_where_it_is_read(world, tmp_path, settings, at, value, message):
    """In data whose tags do not cover the column."""
    taught(world, tmp_path / 'bad', **settings)
    folder = tmp_path / 'bad/train/a'
    column = read_index(folder)[1][3]['teacher'].copy()
    column[9, at : at + value.nbytes] = np.frombuffer(value.tobytes(), np.uint8)
    change_columns(folder, 1, {3: column})
    as_taught_before(folder)
    said = rf"sample 3 of .*a/shard.00001.mds: the teacher's column holds {message}"
    with pytest.raises(ValueError, match=said):
        check(tmp_path / 'bad')
    with pytest.raises(ValueError, match=f"Domain 'a': .*{said}"):
        serve(loader_of(tmp_path / 'bad'))
    forget_hashes(folder / 'index.json')
    with pytest.raises(ValueError, match=said):
        loader_of(tmp_path / 'bad')  # rows are looked at where there is no hash


def test_data_that_were_taught_before_tags_covered_the_column_go_on(world, copy):
    expected = serve(loader_of(world / 'plus'))
    for name in SAMPLES:
        as_taught_before(copy / 'train' / name)
    for (ids, column), (wanted, same) in zip(serve(loader_of(copy)), expected, strict=True):
        assert torch.equal(ids, wanted) and torch.equal(column, same)
    assert check(copy)['train/a']['samples'] == SAMPLES['a']
    before = content(copy)
    assert content(taught(world, copy, draws=5)) == before  # complete


def test_the_tag_of_older_data():
    assert tag_of(np.arange(16), 'key') == 10964813642678505008


def test_check_refuses_the_shards_that_a_run_refuses(copy):
    index = copy / 'train/a/index.json'
    found = json.loads(index.read_text())
    found['shards'].pop(1)
    (copy / 'manifest.json').unlink()
    index.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r'train/a: shard shard.00001.mds of its index is missing, by the note'):
        check(copy)
    found.pop('teacher')
    index.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"train/a has a teacher's column of which its index says nothing"):
        check(copy)


def test_shards_of_another_teacher_or_place_are_refused_before_the_first_step(world, copy, tmp_path):
    other = taught(world, 'other', draws=5, seed=3)
    swapped = 'train/a/shard.00002.mds'
    shutil.copyfile(other / swapped, copy / swapped)  # the same tokens, size and name
    with pytest.raises(
        ValueError, match=r"sample 0 of .*a/shard.00002.mds: the teacher's column does not belong.*of another teacher"
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
    assert spec.dataloader.dataset.teacher == read_note(tmp_path / 'plus/train/a')
    assert all(teacher.shape == (4, LENGTH, 8) for _, teacher in serve(spec, 1))
