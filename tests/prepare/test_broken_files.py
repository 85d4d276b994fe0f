"""Broken, cut and missing content is named: the record, or the file with what to do."""

from __future__ import annotations

import gzip
import subprocess

import datasets
import pytest
from streaming import MDSWriter

from llmshearing.prepare.beginning import read_beginning
from tests.prepare.formats import TEXTS, _gz, _parquet, _read, _records, _zst, a_list_with_indents, domain_at
from tests.prepare.prepare_inputs import write_jsonl


def test_bad_records_have_a_file_and_a_number(tmp_path):
    lines = [
        b'{"text": "one"}',
        b'{"text": "broken',
        b'',
        b'{"txt": "two"}',
        b'[1]',
        b'{"text": null}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'   ',
        b'{"text": "three"}',
        b'7',
    ]
    path = tmp_path / 'a.jsonl'
    path.write_bytes(b'\n'.join(lines))
    for piece_bytes in (1, 30, 1000):
        found = _read(domain_at(path), piece_bytes)
        assert [f for f in found if isinstance(f, str)] == ['one', 'three']
        bad = [f for f in found if not isinstance(f, str)]
        assert [b.number for b in bad] == [2, 4, 5, 6, 7, 8, 11] and {b.path for b in bad} == {str(path)}
        reasons = [
            'Unterminated string',
            "no 'text'",
            'got list',
            'is null, not a string',
            'utf-8',
            'surrogates',
            'got int',
        ]
        assert all(reason in b.reason for reason, b in zip(reasons, bad))


def test_binary_file_in_a_folder_is_a_bad_record(tmp_path):
    (tmp_path / 'a.dat').write_bytes(b'\xff\xfe\x00')
    (tmp_path / 'b.dat').write_text('fine')
    bad, good = _read(domain_at(tmp_path))
    assert good == 'fine' and bad.path == str(tmp_path / 'a.dat') and 'not the UTF-16 or UTF-32' in bad.reason


@pytest.mark.parametrize('name', ['b.jsonl.gz', 'b.jsonl.zst'])
def test_truncated_and_broken_files(tmp_path, name):
    domain = (_gz if name.endswith('gz') else _zst)(tmp_path)
    data = (tmp_path / name).read_bytes()
    for broken in (data[:-9], data[:40] + b'garbage' + data[47:]):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=f'{name} is broken or truncated .*; fetch it again'):
            _read(domain)


def test_bytes_after_gzip_data_are_told_and_the_advice_leaves_them_out(tmp_path):
    write_jsonl(tmp_path / 'a.jsonl', ['x' * 50, 'y'])
    path, text = tmp_path / 'a.jsonl.gz', (tmp_path / 'a.jsonl').read_bytes()
    path.write_bytes(gzip.compress(text) + b'rest of a download')
    with pytest.raises(ValueError, match=r'a.jsonl.gz holds other bytes after its gzip data; .* gzip -dc FILE.gz > FI'):
        _read(domain_at(path))
    assert subprocess.run(['gzip', '-dc', path], capture_output=True).stdout == text


def test_truncated_parquet(tmp_path):
    domain = _parquet(tmp_path)
    data = (tmp_path / 'a.parquet').read_bytes()
    (tmp_path / 'a.parquet').write_bytes(data[:-20])
    with pytest.raises(ValueError, match='a.parquet cannot be read .*; fetch it again'):
        _read(domain)


@pytest.mark.parametrize('cut', [1, 200])
def test_a_json_list_that_is_broken(tmp_path, cut):
    data = a_list_with_indents(_records())
    for broken in (data[:-cut], data[: len(data) // 2] + b'"}}' + data[len(data) // 2 :]):
        (tmp_path / 'a.json').write_bytes(broken)
        with pytest.raises(ValueError, match=r'a.json is broken after \d+ records'):
            _read(domain_at(tmp_path / 'a.json'))


def test_text_without_a_byte_order_mark_in_utf_16(tmp_path):
    (tmp_path / 'a.txt').write_bytes('text'.encode('utf-16-le'))
    (tmp_path / 'lines').mkdir()
    (tmp_path / 'lines/a.jsonl').write_bytes('{"text": "a"}'.encode('utf-16-le'))
    for path in (tmp_path / 'a.txt', tmp_path / 'lines', tmp_path / 'lines/a.jsonl'):
        (bad,) = _read(domain_at(path))
        assert 'NUL bytes: it is no text, or UTF-16 without' in bad.reason


def test_a_zstd_window_that_is_too_large(tmp_path):
    """A frame as `zstd --long=31` begins it."""
    block = b'{"text": "a"}\n'
    head = b'\x28\xb5\x2f\xfd' + bytes([0, 31 - 10 << 3]) + (len(block) << 3 | 1).to_bytes(3, 'little')
    (tmp_path / 'a.jsonl.zst').write_bytes(head + block)
    with pytest.raises(ValueError, match='a window of more than 128 MB .*`zstd -d --long=31`'):
        _read(domain_at(tmp_path / 'a.jsonl.zst'))


POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'


@pytest.mark.parametrize('name', ['a.txt', 'a.jsonl', 'a.json', 'a.parquet', 'a.py', 'a.jsonl.zst'])
@pytest.mark.parametrize('settings', [{}, {'format': 'folder'}, {'format': 'txt'}, {'format': 'jsonl'}])
def test_files_that_git_has_not_fetched(tmp_path, name, settings):
    (tmp_path / name).write_text(POINTER)
    for place in (tmp_path, tmp_path / name, f'{tmp_path}/*'):
        with pytest.raises(ValueError, match=f'{name} is a pointer of git-lfs, .*; run `git lfs pull`'):
            _read(domain_at(place, **settings))
    with pytest.raises(ValueError, match=f'^--text {tmp_path}: .*{name} is a pointer of git-lfs'):
        list(read_beginning('--text', str(tmp_path), 'text', 100))  # also what cut, search and rotate read


def test_data_sets_that_git_has_not_fetched(tmp_path):
    datasets.Dataset.from_dict({'text': TEXTS}).save_to_disk(tmp_path / 'hf')
    next((tmp_path / 'hf').glob('*.arrow')).write_text(POINTER)
    with MDSWriter(out=str(tmp_path / 'mds'), columns={'text': 'str'}) as writer:
        writer.write({'text': 'a'})
    (tmp_path / 'mds' / 'shard.00000.mds').write_text(POINTER)
    for folder in ('hf', 'mds'):
        with pytest.raises(ValueError, match='is a pointer of git-lfs'):
            _read(domain_at(tmp_path / folder))
    (tmp_path / 'mds' / 'index.json').write_text(POINTER)
    with pytest.raises(ValueError, match='index.json is a pointer of git-lfs'):
        _read(domain_at(tmp_path / 'mds'))
