"""``llmshearing teach``: what is in the column, the same bytes however the work is shared, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from llmfoundry.data.text_data import StreamingTextDataset
from streaming import MDSWriter

from llmshearing import cli
from llmshearing.data.mds import read_index
from llmshearing.data.stored_teacher import read_note, tag_of
from llmshearing.prepare.check import check
from llmshearing.teacher import shard as shards_module
from llmshearing.teacher import teach as stages
from llmshearing.teacher import work as work_module
from llmshearing.teacher.folders import list_shards
from llmshearing.teacher.model import LoadedTeacher
from llmshearing.teacher.work import Work
from llmshearing.utils.processes import read_rank
from tests.interruptions import Stop, stop_after
from tests.teacher.world import LENGTH, content, make_world, rows, samples_of, taught, teacher_logits, write
from tests.tiny_run import tiny_source, tiny_tokenizer

FIVE_SHARDS = ['train/a', 'train/b']


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp('teach'))


@pytest.fixture(scope='module')
def done(world):
    return taught(world, 'done')


def test_the_output_is_the_data_with_two_columns(world, done):
    for folder in FIVE_SHARDS:
        before, after = samples_of(world / 'data' / folder), samples_of(done / folder)
        assert [row['tokens'].tolist() for row in after] == [row['tokens'].tolist() for row in before]
        sizes = [[reader.samples for reader in read_index(place / folder)] for place in (world / 'data', done)]
        assert sizes[0] == sizes[1] and len(sizes[0]) > 2
        note = read_note(done / folder)
        assert all(row['teacher'].shape == (LENGTH, 64) for row in after) and note.bytes_per_token == 64
        assert all(row['teacher_of'] == tag_of(row['tokens'], note.key, row['teacher']) for row in after)
    assert content(done / 'eval') == content(world / 'data' / 'eval')
    manifest = json.loads((done / 'manifest.json').read_text())
    assert manifest['teacher']['teacher_hash'] == note.teacher_hash and len(note.teacher_hash) == 64
    assert manifest['teacher']['data']['train/b'] == note.data and manifest['key'] == 'tiny'
    assert check(done)['train/a']['samples'] == 23


def test_the_column_holds_what_the_teacher_predicts(world):
    """Its top of all tokens, against logits computed here; and its entropy beside draws."""
    whole = taught(world, 'whole', top_k=97)
    stored = samples_of(whole / 'train/b')
    log_p = torch.log_softmax(teacher_logits(world / 'teacher', [row['tokens'] for row in stored]), -1)
    form = read_note(whole / 'train/b').format
    rest, ids, log_probs = form.unpack(torch.from_numpy(np.concatenate([row['teacher'] for row in stored])))
    expected = log_p.flatten(0, 1).gather(-1, ids)
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=6e-4)  # steps of 1/1024
    assert rest.eq(float('-inf')).all() and (log_probs.diff() <= 0).all()
    draws = samples_of(taught(world, 'three', draws=3) / 'train/b')
    form, rows = read_note(world / 'three/train/b').format, torch.from_numpy(draws[0]['teacher'].copy())
    head, ids, _ = form.unpack(rows)
    assert form.unpack(rows[:1])[0] == head[:1]  # a single position
    torch.testing.assert_close(head, -(log_p[0].exp() * log_p[0]).sum(-1))
    assert ids.shape == (LENGTH, 3) and (ids.diff() >= 0).all()


def test_plain_readers_see_the_tokens(done):
    dataset = StreamingTextDataset(tiny_tokenizer(), LENGTH, local=str(done / 'train/b'), batch_size=1)
    assert [dataset[i].tolist() for i in range(12)] == rows(12, 1).tolist()


@pytest.mark.parametrize('ranks', [2, 3])
def test_any_number_of_ranks_writes_the_same_bytes(world, done, ranks, monkeypatch):
    """Each rank does one shard at a time, in turn; the last completes the output."""
    monkeypatch.setattr(stages, 'teach_shard', one_shard_each(stages.teach_shard))
    output, settings = world / f'by-{ranks}', stages.TeachSettings(batch_tokens=3 * LENGTH)
    calls = 0
    while not output.exists():
        try:
            stages.teach(world / 'data', str(world / 'teacher'), output, settings, 'cpu', calls % ranks, ranks)
        except Stop:
            pass
        calls += 1
        assert calls < 30
    assert calls > 9 and content(output) == content(done)


def one_shard_each(teach_shard):
    def once(*arguments):
        teach_shard(*arguments)
        raise Stop

    return once


def test_a_stopped_call_goes_on_and_leaves_nothing_behind(world, done, monkeypatch):
    calls, original = [], stages.teach_shard
    stop_after(monkeypatch, stages, 'teach_shard', 4, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        taught(world, 'stopped')
    assert not (world / 'stopped').exists()
    hidden = world / '.stopped.teaching'
    damaged = next((hidden / 'data').rglob('*.mds'))
    damaged.write_bytes(damaged.read_bytes()[:-1])  # as after a loss of power
    monkeypatch.setattr(stages, 'teach_shard', lambda task, *rest: calls.append(task) or original(task, *rest))
    assert content(taught(world, 'stopped')) == content(done)
    assert len(calls) == 9 - 4 + 1 and not hidden.exists()
    calls.clear()
    assert content(taught(world, 'stopped')) == content(done) and not calls  # complete: nothing to do


def test_a_finished_shard_that_changes_before_the_last_one_is_made_again(world, done, monkeypatch):
    stop_after(monkeypatch, stages, 'teach_shard', 4, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        taught(world, 'changed')
    monkeypatch.undo()
    shard = sorted((world / '.changed.teaching' / 'data').rglob('*.mds'))[2]
    changed = bytearray(shard.read_bytes())
    changed[-50] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(ValueError, match=rf'{shard.name} has changed since it was written; repeat the call'):
        taught(world, 'changed')
    assert content(taught(world, 'changed')) == content(done)


def test_work_that_an_older_version_began_is_finished(world, done, monkeypatch):
    """Its tags do not cover the column."""
    stop_after(monkeypatch, stages, 'teach_shard', 4, KeyboardInterrupt)
    monkeypatch.setattr(shards_module, 'tag_of', lambda tokens, key, column=None: tag_of(tokens, key))
    with pytest.raises(KeyboardInterrupt):
        taught(world, 'older')
    monkeypatch.undo()
    for folder in FIVE_SHARDS:
        rows = samples_of(taught(world, 'older') / folder)
        assert [row['teacher'].tolist() for row in rows] == [
            row['teacher'].tolist() for row in samples_of(done / folder)
        ]
    assert check(world / 'older')['train/a']['samples'] == 23


def test_what_another_process_holds_is_left_to_it(world):
    tasks, _ = list_shards(world / 'data', FIVE_SHARDS)
    work = Work(world / 'held')
    work.folder.mkdir()
    with work.taken(tasks[0]) as first, Work(world / 'held').taken(tasks[0]) as second:
        assert first and not second
        settings = stages.TeachSettings(batch_tokens=3 * LENGTH)
        assert not stages.teach(world / 'data', str(world / 'teacher'), world / 'held', settings, 'cpu')
    assert not (world / 'held').exists()
    assert content(taught(world, 'held')).keys()


def test_a_folder_that_another_process_removes_while_its_lock_is_taken(tmp_path, monkeypatch):
    gone, hold = [2], work_module.hold_lock

    def removed(path, **settings):
        if gone[0]:
            gone[0] -= 1
            shutil.rmtree(path.parent, ignore_errors=True)
            raise FileNotFoundError(path)
        return hold(path, **settings)

    monkeypatch.setattr(work_module, 'hold_lock', removed)
    work = work_module.Work(tmp_path / 'out')
    work.begin({'seed': 1})
    assert (work.folder / 'plan.json').is_file()
    gone[0] = 1
    with work.finishing() as mine:
        assert not mine


def test_processes_at_the_same_time_write_the_same_bytes(world, done):
    spawn = get_context('spawn')  # a fork of a process that has trained before may not compute
    processes = [spawn.Process(target=taught, args=(world, 'at once', 'data', rank, 2)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    assert content(world / 'at once') == content(done)


@pytest.mark.slow
def test_two_processes_of_the_command_write_the_same_bytes(world, done):
    command = [sys.executable, '-m', 'llmshearing.cli', 'teach', str(world / 'data'), '--teacher']
    options = [str(world / 'teacher'), '--output', str(world / 'two'), '--batch-tokens', '48', '-n', '2']
    process = subprocess.run([*command, *options], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert content(world / 'two') == content(done)


@pytest.mark.parametrize('encoding, options', [('bytes', {}), ('ndarray:uint32', {'compression': 'zstd:3'})])
def test_other_encodings_and_compressed_shards(world, tmp_path, encoding, options):
    tokens = rows(11, 5)
    if encoding == 'bytes':
        write(tmp_path / 'data', tokens, 'bytes')
    else:
        with MDSWriter(out=str(tmp_path / 'data'), columns={'tokens': encoding}, size_limit=500, **options) as mds:
            for row in tokens:
                mds.write({'tokens': row.astype(np.uint32)})
    taught(world, tmp_path / 'out', tmp_path / 'data')
    names = {path.name for path in (tmp_path / 'data').iterdir()}
    assert {path.name for path in (tmp_path / 'out').iterdir()} == names
    assert len(samples_of(tmp_path / 'out')) == 11 and check(tmp_path / 'out')['.']['samples'] == 11


def test_seeds_and_draws_change_the_bytes_and_the_key(world, done):
    keys = {read_note(done / 'train/a').key}
    for settings in ({'seed': 18}, {'draws': 4}, {'temperature': 2.0}, {'top_k': 4}, {'batch_tokens': LENGTH}):
        other = taught(world, 'other', **settings)
        keys.add(read_note(other / 'train/a').key)
        shutil.rmtree(other)
    assert len(keys) == 6


def refusal(capsys, world, *arguments, data='data', output='never', teacher='teacher') -> str:
    """The one line of a call that does not begin; leaves nothing behind."""
    before = sorted(world.iterdir())
    place = [str(world / data), '--teacher', str(world / teacher), '--output', str(world / output)]
    capsys.readouterr()  # of whoever made the teacher
    assert cli.main(['teach', *place, *map(str, arguments)]) == 1
    line = capsys.readouterr().err
    assert line.count('\n') == 1 and sorted(world.iterdir()) == before, line
    return line


def test_what_does_not_fit_is_one_line_before_any_work(world, done, capsys, tmp_path):
    assert 'no such folder' in refusal(capsys, world, data='nowhere')
    assert 'no Hugging Face model folder' in refusal(capsys, world, teacher='data')
    assert 'give one' in refusal(capsys, world, '--draws', 3, '--top-k', 3)
    assert 'from 1 to 97, got 98' in refusal(capsys, world, '--top-k', 98)
    assert 'from 2 to 97, got 98' in refusal(capsys, world, '--shared-vocab-size', 98)
    assert 'no such folder; it has eval/a, eval/b, train/a' in refusal(capsys, world, '--splits', 'prune')
    assert "has a teacher's column already" in refusal(capsys, world, data='done')
    assert 'exists and is not what this call would make' in refusal(capsys, world, '--seed', 1, output='done')
    assert 'lies in the data' in refusal(capsys, world, output='data/plus')
    assert '--temperature: expected a number above 0' in refusal(capsys, world, '--temperature', 0)


def test_data_of_another_tokenizer_or_cut_short_are_refused_by_name(world, capsys):
    shutil.copytree(world / 'data', world / 'data-cut')
    shard = world / 'data-cut/train/b/shard.00001.mds'
    shard.write_bytes(shard.read_bytes()[:-3])
    assert 'data-cut/train/b/shard.00001.mds has' in refusal(capsys, world, data='data-cut')
    tiny_source(world / 'stranger')
    tokenizer = world / 'stranger' / 'tokenizer.json'
    tokenizer.write_text(tokenizer.read_text().replace('"w7"', '"other"'))
    assert 'was made with another tokenizer' in refusal(capsys, world, teacher='stranger')
    shutil.rmtree(world / 'stranger')
    shutil.rmtree(world / 'data-cut')


def test_an_odd_sample_is_named_before_any_work(world, capsys):
    folder = world / 'data-odd' / 'train' / 'a'
    with MDSWriter(out=str(folder), columns={'tokens': 'bytes'}) as writer:
        for length in (16, 16, 15, 16):
            writer.write({'tokens': np.arange(length).tobytes()})
    said = refusal(capsys, world, data='data-odd')
    assert 'train/a/shard.00000.mds: sample 2 has 120 bytes of tokens where the others have 128' in said
    shutil.rmtree(world / 'data-odd')


def test_a_folder_without_samples_is_copied(world, tmp_path):
    shutil.copytree(world / 'data', tmp_path / 'data')
    empty = tmp_path / 'data' / 'train' / 'c' / 'index.json'
    empty.parent.mkdir()
    empty.write_text('{"version": 2, "shards": []}')
    out = tmp_path / 'out'
    assert cli.main(['teach', str(tmp_path / 'data'), '--teacher', str(world / 'teacher'), '--output', str(out)]) == 0
    assert (out / 'train' / 'c' / 'index.json').read_text() == empty.read_text()


def test_samples_are_no_longer_than_the_teacher_s_positions(world, capsys):
    tiny_source(world / 'short', max_position_embeddings=8)
    assert 'samples have 16 tokens, and short has 8 positions' in refusal(capsys, world, teacher='short')
    shutil.rmtree(world / 'short')


@pytest.mark.parametrize('number', [float('nan'), float('inf')])
@pytest.mark.parametrize('kind', [{'draws': 3}, {'top_k': 3}])
def test_a_teacher_of_bad_weights_stops_with_the_sample(world, number, kind, monkeypatch):
    original = LoadedTeacher.logits

    def broken(self, tokens):
        found = original(self, tokens)
        found[-1, 3, 5] = number
        return found

    monkeypatch.setattr(LoadedTeacher, 'logits', broken)
    with pytest.raises(ValueError, match=r'a/shard.00000.mds: for sample 2 the teacher predicts NaN or infinity'):
        taught(world, 'broken', **kind)
    assert not (world / '.broken.teaching').exists()  # whoever corrects the call begins anew


def test_work_of_another_call_is_not_mixed_in(world, monkeypatch):
    monkeypatch.setattr(stages, 'teach_shard', one_shard_each(stages.teach_shard))
    with pytest.raises(Stop):
        taught(world, 'begun')
    with pytest.raises(ValueError, match='holds work of another call: its seed is 17, here 3'):
        taught(world, 'begun', seed=3)


def test_numbers_of_processes_that_are_none(world, tmp_path, monkeypatch, capsys):
    for value in ('', '1'):
        monkeypatch.setenv('WORLD_SIZE', value)
        monkeypatch.setenv('RANK', '')
        assert read_rank() == (0, 1)
    for name, value, least in (('RANK', '-1', 0), ('WORLD_SIZE', 'two', 1), ('WORLD_SIZE', '0', 1)):
        monkeypatch.setenv(name, value)
        output = str(tmp_path / 'out')
        arguments = ['teach', str(world / 'data'), '--teacher', str(world / 'teacher'), '--output', output]
        assert cli.main([*arguments, '--device', 'cpu']) == 1
        assert f'{name}: expected a whole number of at least {least} in this environment' in capsys.readouterr().err
        monkeypatch.setenv(name, '1')
