"""Paths mean what a shell means by them, or are refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from llmshearing.utils.paths import expand_path, local_destination, names_a_path, refuse_existing


@pytest.mark.parametrize(
    'path',
    [
        '~',
        '~/data',
        '~root/x',
        'a~b',
        './~',
        '$PLACE/x',
        '${PLACE}x',
        '$HOME/$PLACE',
        's3://b/$PLACE',
        'a$',
        '$HIDDEN/a',
    ],
)
def test_a_path_is_what_a_shell_makes_of_it(path, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('PLACE', 'here')
    monkeypatch.setenv('HIDDEN', '~')  # a shell replaces no `~` that comes out of a variable
    shell = subprocess.run(['bash', '-c', f'printf %s {path}'], capture_output=True, text=True, check=True)
    assert expand_path('out', path) == shell.stdout


@pytest.mark.parametrize(
    ('path', 'words'),
    [
        (
            '$NOT_SET_AT_ALL/x',
            "out: '$NOT_SET_AT_ALL/x' has the environment variable 'NOT_SET_AT_ALL', which is not set",
        ),
        ('${NOT_SET_AT_ALL:-x}', "variable 'NOT_SET_AT_ALL:-x', which is not set"),
        ('$1', "variable '1', which is not set"),
        ('~nobody-of-that-name/x', "home folder of 'nobody-of-that-name', which is not known here"),
    ],
)
def test_what_a_shell_would_lose_is_refused(path, words):
    with pytest.raises(ValueError) as error:
        expand_path('out', path)
    assert words in str(error.value)


def test_a_file_with_a_dollar_in_its_name_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('cost$each.txt').touch()
    assert expand_path('--text', 'cost$each.txt') == 'cost$each.txt'
    monkeypatch.setenv('each', 's')
    assert expand_path('--text', 'cost$each.txt') == 'costs.txt'


def test_the_advice_for_a_folder_with_a_tilde_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expand_path('out', './~nobody-of-that-name') == './~nobody-of-that-name'
    assert not Path(expand_path('out', '~')).samefile(tmp_path)


def test_a_destination_where_nothing_can_be_written_is_refused_at_once(tmp_path):
    (tmp_path / 'file').touch()
    assert local_destination('out', tmp_path) == tmp_path
    for place in ('.', '/'):  # no folder above them
        assert local_destination('out', place) == Path(place)
    assert local_destination('out', tmp_path / 'new' / 'deep') == tmp_path / 'new' / 'deep'
    assert local_destination('out', 'relative/x.json', 'file') == Path('relative/x.json')
    for path, what, words in (
        (tmp_path, 'file', f'out: expected a file, and {tmp_path} is a folder'),
        (tmp_path / 'file', 'folder', 'out: expected a folder, and .*/file is a file'),
        (tmp_path / 'file' / 'x', 'folder', 'out: .*file/x cannot be made, as .*/file is no folder'),
        ('s3://bucket/x', 'folder', "out: expected a folder on this machine, got 's3://bucket/x'"),
    ):
        with pytest.raises(ValueError, match=words):
            local_destination('out', path, what)


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='there is no place that nobody can write')
@pytest.mark.parametrize('what', ['file', 'folder'])
def test_a_place_that_cannot_be_written_is_refused(what, monkeypatch):
    monkeypatch.setenv('RANK', '1')  # of a machine that may not have the place at all
    assert local_destination('out', '/proc/self/here', what)
    monkeypatch.delenv('RANK')
    with pytest.raises(ValueError, match='out: /proc/self/here cannot be written'):
        local_destination('out', '/proc/self/here', what)


def test_only_a_model_folder_is_replaced(tmp_path):
    folder = tmp_path / 'out'
    refuse_existing('export', folder, False)
    folder.mkdir()
    refuse_existing('export', folder, True)  # empty
    with pytest.raises(ValueError, match='exists already.*overwrite: true, --overwrite'):
        refuse_existing('export', folder, False)
    (folder / 'notes.txt').touch()
    with pytest.raises(ValueError, match='is no model folder .it holds notes.txt.'):
        refuse_existing('export', folder, True)
    (folder / 'config.json').touch()
    refuse_existing('export', folder, True, (tmp_path, tmp_path / 'other', 'organisation/name', None))
    for needed in (folder, folder / 'checkpoint.pt'):
        with pytest.raises(ValueError, match=f'is not replaced, as {needed} is needed'):
            refuse_existing('export', folder, True, (needed,))
    (folder / 'masks').mkdir()  # as `export --masks keep` writes
    refuse_existing('export', folder, True)
    (folder / 'checkpoints').mkdir()
    with pytest.raises(ValueError, match='is no model folder .it holds checkpoints.'):
        refuse_existing('export', folder, True)


@pytest.mark.parametrize(
    ('name', 'path'),
    [('gpt2', False), ('owner/name', False), ('a/b/c', True), ('./a', True), ('~/a', True), ('/a', True)],
)
def test_a_name_of_the_hub_has_an_owner_or_none(name, path):
    assert names_a_path(name) == path


def test_a_link_to_nothing_is_no_destination(tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path / 'away')
    with pytest.raises(ValueError, match='link is a link to .*away, which is not there'):
        refuse_existing('export', tmp_path / 'link', True)
