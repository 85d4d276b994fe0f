"""What prepare does to a remote address at which there is something already.

A folder stands for the stores, and one store that can only fetch and put, as most of Streaming's can.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from streaming.base.storage import CloudDownloader, CloudUploader
from streaming.base.storage import download as download_module
from streaming.base.storage import upload as upload_module
from streaming.base.storage.upload import LocalUploader

from llmshearing.prepare import pipeline
from llmshearing.prepare.check import check
from llmshearing.prepare.pipeline import prepare
from llmshearing.prepare.remote import EMPTY_INDEX, read_remote
from tests.interruptions import Stop, stop_after
from tests.prepare.prepare_inputs import small_pieces, spec, tokenizer, tree  # noqa: F401


@pytest.fixture
def remote(tmp_path):
    return tmp_path / 'remote'


@pytest.fixture
def pair(spec, remote, tmp_path):
    """The spec with a folder of its own and the shared address."""
    return lambda name, **changes: {**spec, **changes, 'out': [str(tmp_path / name), str(remote)]}


def _indexes(folder: Path) -> dict[str, str]:
    return {name: text for name, text in tree(folder).items() if name.endswith('.json')}


def test_another_data_set_at_the_address_is_not_touched(pair, remote, tmp_path):
    prepare(pair('a'), workers=1)
    before = tree(remote)
    other = pair('b', seed=5)
    with pytest.raises(ValueError) as error:
        prepare(other, workers=1)
    assert tree(remote) == before and not tree(tmp_path / 'b')
    keys = json.loads((remote / 'manifest.json').read_text())['key'], 'that of this request'
    assert all(word in str(error.value) for word in (f'{remote} holds another data set', '--overwrite', *keys))
    prepare(other, workers=1, overwrite=True)
    assert _indexes(remote) == _indexes(tmp_path / 'b')
    assert tree(remote / 'prune') == tree(tmp_path / 'b' / 'prune')


def test_folders_of_the_other_data_set_are_emptied(pair, remote):
    prepare(pair('a'), workers=1)
    prepare(pair('b', domains={'code': pair('b')['domains']['code']}), workers=1, overwrite=True)
    for split in ('eval', 'prune', 'continue'):
        assert (remote / split / 'web' / 'index.json').read_text() == EMPTY_INDEX
    found = check(remote)
    assert [found[f'{split}/web']['samples'] for split in ('eval', 'prune', 'continue')] == [0, 0, 0]


def test_shards_without_a_manifest_are_not_touched(pair, remote):
    (remote / 'prune' / 'web').mkdir(parents=True)
    (remote / 'prune' / 'web' / 'index.json').write_text('{"version": 2, "shards": [{}]}')
    with pytest.raises(ValueError, match='remote/prune/web exists and is not of this run'):
        prepare(pair('a'), workers=1)
    assert list(tree(remote)) == ['prune/web/index.json']
    prepare(pair('a'), workers=1, overwrite=True)
    assert check(remote)['prune/web']['samples'] > 0


@pytest.mark.parametrize(
    'content',
    [
        '{"tokenizer": "gpt2"}',
        '[]',
        'no JSON',
        '{"key": "k", "domains": {"../../up": {"splits": {"eval": {"samples": 1}}}}}',
    ],
)
def test_a_manifest_of_something_else(pair, remote, content):
    remote.mkdir()
    (remote / 'manifest.json').write_text(content)
    with pytest.raises(ValueError, match='remote/manifest.json is not a manifest that prepare wrote .*--overwrite'):
        prepare(pair('a'), workers=1)
    assert (remote / 'manifest.json').read_text() == content
    prepare(pair('a'), workers=1, overwrite=True)
    assert check(remote)


def _stop_at_upload(monkeypatch, name, calls):
    put, left = LocalUploader.upload_file, [calls]

    def stopping(self, filename):
        if name in filename and self.remote:
            if not left[0]:
                raise Stop
            left[0] -= 1
        put(self, filename)

    monkeypatch.setattr(LocalUploader, 'upload_file', stopping)


@pytest.mark.parametrize(('name', 'calls'), [('shard', 0), ('shard', 3), ('index', 7), ('index', 10), ('manifest', 1)])
def test_nothing_old_stands_over_new_shards(pair, remote, tmp_path, monkeypatch, name, calls):
    prepare(pair('a'), workers=1)
    old = _indexes(remote)
    with monkeypatch.context() as patch:
        _stop_at_upload(patch, name, calls)
        with pytest.raises(Stop):
            prepare(pair('b', seed=5), workers=1, overwrite=True)
    stopped = _indexes(remote)
    assert not {stopped[file] for file in old} & set(old.values())
    with pytest.raises(ValueError, match='unfinished'):
        check(remote)
    with pytest.raises(ValueError, match='holds another data set'):  # also now
        prepare(pair('a'), workers=1)
    prepare(pair('b', seed=5), workers=1)  # its own, so it continues without --overwrite
    assert _indexes(remote) == _indexes(tmp_path / 'b')
    for folder in check(remote):
        assert tree(remote / folder).items() >= tree(tmp_path / 'b' / folder).items()


def test_finished_data_is_not_uploaded_again(pair, spec, remote, tmp_path, monkeypatch):
    prepare(spec, workers=1)
    here = {**spec, 'out': [spec['out'], str(remote)]}
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, 'scan', lambda *_: pytest.fail('nothing is to be done but uploading'))
        manifest = prepare(here, workers=1)
        assert tree(remote) == tree(Path(spec['out']))
        _stop_at_upload(patch, '', 0)
        assert prepare(here, workers=1) == manifest
    with monkeypatch.context() as patch:  # the other way round, for a machine that lacks the local copy
        _stop_at_upload(patch, 'shard', 0)
        prepare(pair('c'), workers=1)
    assert tree(tmp_path / 'c') == tree(remote)


# ---------------------------------------------------------------------------------------------- a store


class StoreDownloader(CloudDownloader):
    """Fetches from a folder, and says in S3's way what there is not."""

    @staticmethod
    def _client_identifier():
        return 'store'

    def clean_up(self):
        pass

    def _download_file_impl(self, remote, local, timeout):
        path = Path(remote.removeprefix('store:/'))
        if 'secret' in remote or not path.exists():
            raise ClientError({'Error': {'Code': '403' if 'secret' in remote else '404'}}, 'HeadObject')
        shutil.copy(path, local)


class StoreUploader(CloudUploader):
    """Puts into the same folder."""

    def upload_file(self, filename):
        path = Path(self.remote.removeprefix('store:/'), filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.join(self.local, filename), path)


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setitem(download_module.DOWNLOADER_MAPPINGS, 'store', StoreDownloader)
    monkeypatch.setitem(upload_module.UPLOADERS, 'store', 'StoreUploader')
    monkeypatch.setattr(upload_module, 'StoreUploader', StoreUploader, raising=False)


def test_a_store_that_can_only_fetch_and_put(spec, remote, tmp_path, store, monkeypatch):
    there = {**spec, 'out': f'store:/{remote}', 'work': str(tmp_path)}
    prepare({**spec, 'out': str(tmp_path / 'whole')}, workers=1)
    manifest = prepare(there, workers=1)
    assert tree(remote) == tree(tmp_path / 'whole')
    with pytest.raises(ValueError, match='holds another data set'):
        prepare({**there, 'seed': 5}, workers=1)
    assert prepare(there, workers=1) == manifest and tree(remote) == tree(tmp_path / 'whole')
    assert prepare({**there, 'seed': 5}, workers=1, overwrite=True) != manifest


def test_what_another_run_overwrote_is_made_again(spec, remote, tmp_path, store, monkeypatch):
    """The working folder remembers uploads that are there no more, or that went to another address."""
    there = {**spec, 'out': f'store:/{remote}', 'work': str(tmp_path)}
    with monkeypatch.context() as patch:
        stop_after(patch, pipeline, 'publish', 4)
        with pytest.raises(Stop):
            prepare(there, workers=1)
    prepare({**there, 'work': str(tmp_path / 'w'), 'seed': 5}, workers=1, overwrite=True)
    prepare(there, workers=1, overwrite=True)
    prepare({**spec, 'out': str(tmp_path / 'whole')}, workers=1)
    assert _indexes(remote) == _indexes(tmp_path / 'whole')
    for folder in check(remote):
        assert tree(remote / folder).items() >= tree(tmp_path / 'whole' / folder).items()


def test_what_cannot_be_looked_at_is_not_overwritten(spec, tmp_path, store):
    there = {**spec, 'out': f'store:/{tmp_path}/secret', 'work': str(tmp_path)}
    for overwrite in (False, True):
        with pytest.raises(ValueError, match='cannot tell whether there is a store:.*/secret/manifest.json .*403'):
            prepare(there, workers=1, overwrite=overwrite)
    assert not (tmp_path / 'secret').exists()


def test_how_stores_say_that_a_file_is_not_there(monkeypatch):
    class Answer:
        def __init__(self, status):
            self.status_code = status

    def failing(cause=None, **facts):
        def fail(*_):
            error = type('StoreError', (FileNotFoundError if cause else Exception,), facts)('as the store says')
            raise error from cause

        return fail

    client = [ClientError({'Error': {'Code': code}}, 'HeadObject') for code in ('403', '404')]
    cases = [
        ({'code': 404}, True),
        ({'code': 403}, False),
        ({'status': 404}, True),
        ({'status_code': 404}, True),
        ({'response': Answer(404)}, True),
        ({'response': Answer(401)}, False),
        ({}, False),
        ({'error_code': 'NOT_FOUND'}, True),
        ({'cause': client[0]}, False),
        ({'cause': client[1]}, True),
    ]
    for facts, missing in cases:
        monkeypatch.setattr(CloudDownloader, 'direct_download', failing(**facts))
        if missing:
            assert read_remote('s3://bucket', 'index.json') is None
        else:
            with pytest.raises(ValueError, match='s3://bucket/index.json .as the store says.*read and list'):
                read_remote('s3://bucket', 'index.json')
