"""One canary for each touch of Streaming's internals: it fails under the touch's name when Streaming changes."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import streaming.base.dataset
import torch.distributed
from botocore.exceptions import ClientError
from composer.utils import get_device
from composer.utils.dist import initialize_dist
from streaming import MDSWriter, StreamingDataset
from streaming.base.shared import SharedMemory, prefix
from streaming.base.storage import CloudDownloader
from streaming.base.storage import download as download_module

from llmshearing.compat import streaming as touched
from llmshearing.utils.ranks import refuse_differences
from tests.dynamic_text_world import on_ranks


@pytest.fixture
def folder(tmp_path):
    """An MDS folder of ten samples, compressed and hashed."""
    path = tmp_path / 'data'
    columns = {'tokens': 'ndarray:uint16:4'}
    with MDSWriter(out=str(path), columns=columns, compression='zstd:3', hashes=['sha1'], keep_local=True) as writer:
        for number in range(10):
            writer.write({'tokens': np.full(4, number, np.uint16)})
    return path


@pytest.fixture
def dataset(folder, tmp_path):
    made = StreamingDataset(remote=str(folder), local=str(tmp_path / 'cache'), batch_size=2)
    yield made
    made._locals_shm.cleanup()


def test_register_batching(dataset):
    def make_work(dataset, world, epoch, sample_in_epoch):
        assert (world.num_ranks, epoch, sample_in_epoch) == (1, 0, 0)
        return np.array([[[[[3, 1], [4, -1]]]]])

    touched.register_batching('canary', make_work)
    dataset.batching_method = 'canary'
    assert [int(sample['tokens'][0]) for sample in dataset] == [3, 1, 4]


def test_placed_by_itself(folder, tmp_path):
    class Placed(touched.PlacedByItself):
        def find_place(self):
            return 3, 4

    def make_work(dataset, world, epoch, sample_in_epoch):
        assert (epoch, sample_in_epoch) == (3, 4)
        return np.array([[[[[4, 5]]]]])

    touched.register_batching('placed', make_work)
    dataset = Placed(remote=str(folder), local=str(tmp_path / 'cache'), batch_size=2)
    dataset.batching_method = 'placed'
    assert [int(sample['tokens'][0]) for sample in dataset] == [4, 5]


def test_worlds(dataset):
    for world in (touched.rank_world(dataset), touched.parallel_world(dataset)):
        assert isinstance(world, touched.World)
        assert (world.num_nodes, world.ranks_per_node, world.num_ranks, world.workers_per_rank) == (1, 1, 1, 1)
        assert world.is_leader and world.is_local_leader
    list(dataset)  # sets the worker's
    assert touched.is_first_worker(dataset)


def test_run_number_and_block_name(dataset):
    list(dataset)  # takes the locks
    number = touched.run_number(dataset)
    assert touched.block_name(3, touched.LOCALS) == '000003_locals'
    there = {path.name for path in Path('/dev/shm').glob(f'{number:06}_*')}
    assert touched.block_name(number, touched.LOCALS) in there
    assert there <= {touched.block_name(number, name) for name in touched.SHM_TO_CLEAN}, 'a kill would leave these'
    for name in (touched.BARRIER_FILELOCK, touched.CACHE_FILELOCK):
        assert Path(dataset._filelock_root, touched.block_name(number, name)).exists()
    assert dataset._filelock_root == tempfile.gettempdir()


def test_locals_block_holds_folders_and_number(dataset, tmp_path):
    """What `shared_order` reads to find a run that was killed while it started."""
    number = touched.run_number(dataset)
    data = Path('/dev/shm', touched.block_name(number, touched.LOCALS)).read_bytes()
    size = int(np.frombuffer(data[:4], np.int32)[0])
    assert data[4:size].decode().split('\0') == [str(tmp_path / 'cache'), str(number)]


def test_shared_array():
    array = touched.SharedArray(3, np.int64, touched.block_name(900_009, 'canary'))
    try:
        array[:] = np.array([1, 2, 3])
        assert Path('/dev/shm/900009_canary').exists() and array[:].tolist() == [1, 2, 3]
    finally:
        array.shm.cleanup()


FREE = itertools.count(910_000, 100)


@pytest.fixture
def unguarded(monkeypatch):
    """Gives back what `guard_numbers` replaces; numbers begin at its value, where no run of this machine has one."""
    begin = next(FREE)
    monkeypatch.setattr(prefix, '_each_prefix_int', lambda: itertools.count(begin))
    for module, name in ((prefix, '_check_and_find_retrying'), (streaming.base.dataset, 'get_shm_prefix')):
        monkeypatch.setattr(module, name, touched._original(module, name))
    return begin


def test_guard_numbers(folder, unguarded):
    entered = []

    @contextmanager
    def guard():
        entered.append('in')
        yield
        entered.append('out')

    touched.guard_numbers(guard)
    touched.guard_numbers(guard)  # replaces the first
    made = StreamingDataset(local=str(folder), batch_size=2)
    assert entered == ['in', 'out']
    made._locals_shm.cleanup()


def test_guard_numbers_passes_over_a_number_that_is_half_free(folder, unguarded):
    """A run has ended but for a block, the next one has not: Streaming alone goes for the number of the latter."""
    begin, blocks = unguarded, []
    for number, name in ((begin, 'barrier'), (begin + 1, 'barrier'), (begin + 2, 'locals')):
        blocks.append(SharedMemory(touched.block_name(number, name), True, 8))
    try:
        with pytest.raises(FileExistsError):
            StreamingDataset(local=str(folder), batch_size=2)
        touched.guard_numbers(nullcontext)
        made = StreamingDataset(local=str(folder), batch_size=2)
        blocks.append(made._locals_shm)
    finally:
        for memory in blocks:
            memory.cleanup()


def test_guard_numbers_closes_the_blocks_of_others(folder, unguarded):
    """Each data set of a process looked at those of runs that were killed, and kept all of them open."""

    def count_open() -> int:
        lines = Path('/proc/self/maps').read_text().splitlines()
        return sum(any(memory.shm.name in line for memory in others) for line in lines)

    others = [SharedMemory(touched.block_name(unguarded + number, 'barrier'), True, 8) for number in range(5)]
    try:
        touched.guard_numbers(nullcontext)
        before = count_open()
        number = prefix._check_and_find_retrying(['/x'], [None], 'barrier', 0)
        assert (number, before, count_open()) == (unguarded + 5, 5, 5)
        assert Path('/dev/shm', others[0].shm.name).exists(), 'it is not ours to remove'
    finally:
        for memory in others:
            memory.cleanup()


def test_guard_numbers_tries_again(folder, unguarded, monkeypatch):
    """Another program registers the free number between the look and the registration, twice."""
    stolen = []

    class Late(SharedMemory):
        def __init__(self, name, create, size=0):
            if create and len(stolen) < 2:
                stolen.append(SharedMemory(name, True, 8))
            super().__init__(name, create, size)

    monkeypatch.setattr(prefix, 'SharedMemory', Late)
    touched.guard_numbers(nullcontext)
    made = StreamingDataset(local=str(folder), batch_size=2)
    assert len(stolen) == 2 and touched.run_number(made) not in [int(memory.shm.name[:6]) for memory in stolen]
    for memory in [made._locals_shm, *stolen]:
        memory.cleanup()


class Thief(SharedMemory):
    """Another program that registers the free number between the look and the registration, twice."""

    stolen: ClassVar[list[SharedMemory]] = []

    def __init__(self, name, create, size=0):
        if create and len(self.stolen) < 2:
            self.stolen.append(SharedMemory(name, True, 8))
        super().__init__(name, create, size)


def look_elsewhere_once(*args):
    """Another run ended between the looks of two ranks."""
    prefix._check_and_find = look
    return look(*args) + 50


look = prefix._check_and_find


def take_numbers(rank, folder, begin, ranks):
    prefix._each_prefix_int = lambda: itertools.count(begin)
    if rank == 0:
        prefix.SharedMemory = Thief
    else:
        prefix._check_and_find = look_elsewhere_once
    touched.guard_numbers(nullcontext)
    initialize_dist(get_device('cpu'))  # as a Trainer and llm-foundry do, of one process too
    made = StreamingDataset(local=str(folder), batch_size=2)
    refuse_differences({'number': touched.run_number(made)}, 'take the same')
    left = [path.name for path in Path('/dev/shm').glob(f'{str(begin)[:4]}*_locals')]
    assert len(left) == 3, left
    assert sorted(number for sample in made for number in sample['tokens'][:1]) == list(range(rank, 10, ranks))
    torch.distributed.barrier()
    made._locals_shm.cleanup()
    for memory in Thief.stolen:
        memory.cleanup()


@pytest.mark.parametrize('ranks', [1, 2])
def test_all_ranks_try_again(folder, ranks):
    on_ranks(ranks, take_numbers, folder, next(FREE), ranks)


def test_readers(folder):
    index = json.loads((folder / touched.get_index_basename()).read_text())
    reader = touched.MDSReader.from_json(str(folder), None, index['shards'][0])
    assert isinstance(reader, touched.MDSReader) and isinstance(reader, touched.Reader)
    raw, packed = reader.file_pairs[0]
    assert isinstance(raw, touched.FileInfo) and (reader.raw_data, reader.zip_data) == (raw, packed)
    assert (reader.samples, len(reader), reader.dirname, reader.split) == (10, 10, str(folder), '')
    assert (reader.column_names, reader.column_encodings, reader.column_sizes) == (
        ['tokens'],
        ['ndarray:uint16:4'],
        [8],
    )
    reader.validate(allow_unsafe_types=False)
    data = touched.decompress('zstd', (folder / packed.basename).read_bytes())
    (folder / raw.basename).write_bytes(data)
    assert reader[7]['tokens'].tolist() == [7] * 4
    starts = np.frombuffer(data, np.uint32, reader.samples + 1, 4)
    assert reader.decode_sample(data[starts[2] : starts[3]])['tokens'].tolist() == [2] * 4


def test_compression_and_hashes(folder):
    index = json.loads((folder / 'index.json').read_text())['shards'][0]
    packed = (folder / index['zip_data']['basename']).read_bytes()
    raw = touched.decompress(index['compression'], packed)
    assert len(raw) == index['raw_data']['bytes'] and np.frombuffer(raw, np.uint32, 1)[0] == 10
    assert touched.get_hash('sha1', packed) == index['zip_data']['hashes']['sha1']
    assert touched.is_compression('zstd:3') and 'zstd:3' in touched.get_compressions()
    assert touched.is_hash('sha1') and 'sha1' in touched.get_hashes()
    assert touched.bytes_to_int('64mb') == 1 << 26


def test_uploader(tmp_path):
    assert {'', 's3', 'gs'} <= touched.writable_schemes()
    (tmp_path / 'from').mkdir()
    uploader = touched.CloudUploader.get((str(tmp_path / 'from'), str(tmp_path / 'to')), keep_local=True)
    (tmp_path / 'from' / 'a').write_text('x')
    uploader.upload_file('a')
    assert (tmp_path / 'to' / 'a').read_text() == 'x' and (tmp_path / 'from' / 'a').exists()


class StoreDownloader(CloudDownloader):
    """Fetches from a folder, and says in S3's way what there is not."""

    @staticmethod
    def _client_identifier():
        return 'canary'

    def clean_up(self):
        pass

    def _download_file_impl(self, remote, local, timeout):
        path = Path(remote.removeprefix('canary:/'))
        if not path.exists():
            raise ClientError({'Error': {'Code': '403' if 'secret' in remote else '404'}}, 'HeadObject')
        shutil.copy(path, local)


def test_read_remote_text(tmp_path, monkeypatch):
    monkeypatch.setitem(download_module.DOWNLOADER_MAPPINGS, 'canary', StoreDownloader)
    (tmp_path / 'a.json').write_text('{}')
    assert touched.read_remote_text(f'canary:/{tmp_path}/a.json') == '{}'
    assert touched.read_remote_text(f'canary:/{tmp_path}/b.json') is None
    with pytest.raises(ValueError, match='cannot tell whether there is a canary:.*secret'):
        touched.read_remote_text(f'canary:/{tmp_path}/secret.json')


def test_every_touch_has_a_canary():
    text = Path(__file__).read_text()
    assert [name for name in touched.__all__ if f'touched.{name}' not in text and name != 'distributed'] == []


def test_distributed():
    """Without other ranks; with them, `tests/data/test_dynamic_text.py` runs on two and four."""
    assert touched.distributed.get_local_rank() == 0
    touched.distributed.barrier()
    assert callable(touched.distributed.maybe_init_dist)


def test_told_of_failures_ends_a_round_whose_thread_died(tmp_path):
    """A shard that cannot be fetched, seen only by the thread that fetches ahead, ends the round in an error."""
    with MDSWriter(out=str(tmp_path / 'data'), columns={'x': 'int'}, size_limit=1024) as writer:
        for number in range(640):
            writer.write({'x': number})

    class Failing(touched.ToldOfFailures):
        def prepare_shard(self, shard_id, blocking=True):
            if shard_id == len(self.shards) - 1 and threading.current_thread() is not threading.main_thread():
                raise OSError('no such shard')
            super().prepare_shard(shard_id, blocking)

    where = dict(remote=str(tmp_path / 'data'), local=str(tmp_path / 'cache'))
    dataset = Failing(**where, shuffle=False, batch_size=1, predownload=640)
    with pytest.raises((RuntimeError, OSError), match='[Bb]ackground thread|no such shard'):
        list(dataset)
