"""``llmshearing rotate`` on two gloo ranks: what one process computes, looked at by both, told and refused by one."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmshearing import cli
from llmshearing.rotation import rotate_source as stages
from tests.dynamic_text_world import on_ranks
from tests.interruptions import Stop, stop_after
from tests.rotation.models import make_text, save_source, source_model
from tests.rotation.test_command import SIZES
from tests.tiny_run import tiny_tokenizer


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('ranks')
    save_source(folder / 'source', source_model('llama-tied', torch.float32, 0.01), tiny_tokenizer())
    make_text(folder / 'text.jsonl')
    return folder


def command(place: Path, output: str, *options: str) -> list[str]:
    paths = [str(place / 'source'), '--data', str(place / 'text.jsonl'), '--output', str(place / output)]
    return ['rotate', *paths, *SIZES, *options]


def run_a_rank(rank: int, place: Path, arguments: list[str], damaged: int | None) -> None:
    """Runs the command and writes down how it ended, what it said, and how many batches it looked at."""
    seen, stream_moments = [], stages.stream_moments

    def looking(model, batches):
        if rank == damaged:
            raise ValueError('no such batch')
        seen.extend(batches)
        return stream_moments(model, batches)

    stages.stream_moments = looking
    with open(place / f'{rank}.txt', 'w') as told, contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = cli.main(arguments)
    (place / f'{rank}.json').write_text(json.dumps([code, (place / f'{rank}.txt').read_text(), len(seen)]))


def on_two_ranks(place: Path, arguments: list[str], damaged: int | None = None) -> list[list]:
    """Exit code, text and batches of each rank."""
    on_ranks(2, run_a_rank, place, arguments, damaged)
    return [json.loads((place / f'{rank}.json').read_text()) for rank in range(2)]


@pytest.mark.parametrize('stopped', [False, True], ids=['anew', 'going on'])
def test_two_ranks_compute_what_one_does(place, monkeypatch, stopped):
    monkeypatch.setattr(stages, 'SAVE_EVERY', 2)
    options = ('--fixed-axes', '5', '--keep', '32', '--learn', '3ba')
    if not (place / 'one').exists():
        assert cli.main(command(place, 'one', *options)) == 0
    arguments = command(place, f'two-{stopped}', *options)
    if stopped:  # with four of fifteen batches saved, by one process
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_after(patch, stages, 'stream_moments', 2)
            cli.main(arguments)
    (code, told, seen), (other_code, other_told, other_seen) = on_two_ranks(place, arguments)
    assert (code, other_code, other_told) == (0, 0, '') and told.count('checked in') == 1
    assert (seen, other_seen) == ((6, 5) if stopped else (8, 7))
    one, two = (load_file(place / name / 'model.safetensors') for name in ('one', f'two-{stopped}'))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    one, two = (json.loads((place / name / 'rotation.json').read_text()) for name in ('one', f'two-{stopped}'))
    assert two['energy'] == pytest.approx(one['energy']) and two['tokens'] == one['tokens'] == 600
    assert two['fixed_axes'] == one['fixed_axes'] and two['learned']['steps'] == one['learned']['steps'] == 3
    assert not list(place.glob('.*'))


@pytest.mark.parametrize(
    'damaged, options, message',
    [
        pytest.param(None, ('--learn', '3ba'), '--learn needs --keep', id='on both'),
        pytest.param(None, ('--fixed-axes', '3'), 'with 3 fixed axes and one gain', id='on the first alone'),
        pytest.param(1, (), 'On rank 1 (', id='on the second alone'),
    ],
)
def test_an_error_ends_both_and_is_told_once(place, monkeypatch, damaged, options, message):
    monkeypatch.setattr('llmshearing.rotation.check.LARGEST_RAISE', -1.0)
    (code, told, _), (other_code, other_told, _) = on_two_ranks(place, command(place, 'never', *options), damaged)
    assert (code, other_code, other_told) == (1, 1, '')
    assert told.count('llmshearing rotate: ') == 1 and message in told
    assert not (place / 'never').exists()
