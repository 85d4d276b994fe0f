"""A student with a trimmed vocabulary: a teacher with all tokens, asked in its own ids, and one trimmed alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from llmshearing import cli
from llmshearing.data.stored_teacher import read_note
from llmshearing.prepare.pipeline import prepare
from tests.teacher.world import samples_of, teacher_logits
from tests.vocabulary.sources import make_source, make_text

SIZE = 448


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    """A student of 448 of 640 tokens, data in these, and a teacher with all of them."""
    folder = tmp_path_factory.mktemp('trimmed')
    text = make_text(folder / 'text')
    make_source(folder / 'source')
    make_source(folder / 'teacher', num_hidden_layers=3, seed=4)
    trim = ['trim-vocab', str(folder / 'source'), '--output', str(folder / 'student')]
    assert cli.main([*trim, '--data', str(text), '--size', str(SIZE)]) == 0
    spec = {'max_seq_len': 32, 'domains': {'pages': str(text / 'pages.jsonl')}, 'splits': {'train': {}}}
    prepare({**spec, 'tokenizer': str(folder / 'student'), 'out': str(folder / 'data')}, progress=False)
    return folder


def command(place, teacher, output, *options):
    paths = [str(place / 'data'), '--teacher', str(place / teacher), '--output', str(place / output)]
    return cli.main(['teach', *paths, *map(str, options)])


def test_a_teacher_with_all_tokens_is_mapped_and_renormalised(place):
    assert command(place, 'teacher', 'mapped', '--like', place / 'student', '--top-k', SIZE) == 0
    samples, note = samples_of(place / 'mapped/train/pages')[:3], read_note(place / 'mapped/train/pages')
    assert note.vocab_size == SIZE and note.vocabulary['vocab_size'] == SIZE
    kept = np.array(json.loads((place / 'student' / 'vocabulary.json').read_text())['kept'])
    logits = teacher_logits(place / 'teacher', [kept[row['tokens']] for row in samples])[..., torch.from_numpy(kept)]
    expected = torch.log_softmax(logits, -1).flatten(0, 1)
    _, ids, log_probs = note.format.unpack(torch.from_numpy(np.concatenate([row['teacher'] for row in samples])))
    torch.testing.assert_close(log_probs, expected.gather(-1, ids), rtol=0, atol=6e-4)


def test_a_teacher_that_was_trimmed_alike_says_the_same(place):
    trim = ['trim-vocab', str(place / 'teacher'), '--like', str(place / 'student')]
    assert cli.main([*trim, '--output', str(place / 'teacher-trimmed')]) == 0
    assert command(place, 'teacher-trimmed', 'alike') == 0
    assert command(place, 'teacher', 'mapped-draws', '--like', place / 'student') == 0
    ours, other = (samples_of(place / name / 'train/pages') for name in ('mapped-draws', 'alike'))
    form = read_note(place / 'alike/train/pages').format
    for mine, same in zip(ours, other, strict=True):
        heads = [form.unpack(torch.from_numpy(row['teacher'].copy()))[0] for row in (mine, same)]
        torch.testing.assert_close(*heads, rtol=0, atol=1e-4)  # entropies; the draws have other random numbers


def test_the_full_teacher_without_the_list_and_other_lists_are_refused(place, capsys, tmp_path):
    assert command(place, 'teacher', 'never') == 1
    assert 'was made with another tokenizer' in capsys.readouterr().err
    make_source(tmp_path / 'other', 'llama3')
    assert command(place, tmp_path / 'other', 'never', '--like', place / 'student') == 1
    assert 'was made from another tokenizer' in capsys.readouterr().err
    assert command(place, 'teacher', 'never', '--like', place / 'source') == 1
    assert 'expected a folder that trim-vocab wrote' in capsys.readouterr().err
    assert not (place / 'never').exists()
