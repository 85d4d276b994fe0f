"""A search on a tiny source: as `cut` measures, going on where it was killed, shared by processes, told in words."""

from __future__ import annotations

import gc
import json
import re
import threading
import weakref
from contextlib import nullcontext
from functools import partial
from statistics import mean
from unittest import mock

import numpy as np
import pytest
import torch
from composer.utils import get_device

from llmshearing import cli
from llmshearing.config.source import read_source
from llmshearing.cut import plan as plans
from llmshearing.cut.cut_source import cut_source
from llmshearing.cut.plan import plan_cut
from llmshearing.cut.settings import CutSettings
from llmshearing.models.shapes import ModelShape
from llmshearing.rotation.check import LARGEST_RAISE
from llmshearing.search import search_shapes as stages
from llmshearing.search import training
from llmshearing.search.candidates import name_of, propose_shapes, target_of
from llmshearing.search.extrapolation import extrapolate
from llmshearing.search.records import SearchFolder
from llmshearing.search.result import Candidate, pareto_front
from llmshearing.search.search_shapes import search_shapes
from llmshearing.search.settings import SearchSettings
from llmshearing.utils import files
from tests.cut.test_cut_source import SMALL, make_source
from tests.rotation.test_command import make_text

BUDGET = '22K'
COMMON = {'candidates': 4, 'multiple_of': 4, 'tolerance': 0.1, 'uneven': 3.0, 'batch_size': 2}


def settings(**more) -> SearchSettings:
    return SearchSettings(**{**COMMON, 'cut': CutSettings(**SMALL), **more})


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('search')
    make_source(folder / 'source')
    make_source(folder / 'tied', tie_word_embeddings=True)
    make_text(folder / 'text.jsonl', 300)
    return folder


@pytest.fixture
def known_speed(monkeypatch):
    """Spares what generation takes, where speed is not what a test is about."""
    monkeypatch.setattr(stages, 'speed_of', lambda *_: {'forward': 1000.0, 'generate': 100.0})


def run(place, output, source='source', **more):
    return search_shapes(place / source, [BUDGET], [place / 'text.jsonl'], output, settings(**more), 'cpu')


@pytest.mark.parametrize('source', ['source', 'tied'])
def test_candidates_lose_what_cut_loses(place, tmp_path, source):
    result = run(place, tmp_path / 'search', source)
    assert len(result.candidates) == 4 and sum(each.proportional for each in result.candidates) == 1
    assert [each.cut_loss for each in result.candidates] == sorted(each.cut_loss for each in result.candidates)
    for each in result.candidates:
        output = tmp_path / name_of(each.shape)
        cut = cut_source(
            place / source, target_of(each.shape), [place / 'text.jsonl'], output, CutSettings(**SMALL), 'cpu'
        )
        before, after = cut.losses['text']
        # All are cut in one basis, which is another computation where the LM head is tied.
        is_turned = source == 'tied' and each.shape.hidden_size == cut.plan.config.hidden_size
        assert each.losses['text'] == pytest.approx(after, abs=LARGEST_RAISE if is_turned else 2e-4)
        assert result.source_losses['text'] == pytest.approx(before, abs=1e-6)
        assert each.parameters == cut.plan.parameters and each.speed['generate'] > 0
    assert (tmp_path / 'search' / 'loss.svg').read_text().count('<circle') >= 2 * 4


def test_the_best_are_trained_and_what_was_done_is_not_done_again(place, tmp_path, monkeypatch, known_speed):
    first = run(place, tmp_path / 'search', steps=6, train=2, tokens=10**6)
    trained = [each for each in first.candidates if each.curve]
    assert len(trained) in (2, 3) and any(each.proportional for each in trained)
    for each in trained:
        assert [point['step'] for point in each.curve] == [1, 2, 3, 4, 6]
        assert each.curve[-1]['tokens'] == 6 * 2 * 20 and each.trained_loss < each.cut_loss
    assert first.candidates[: len(trained)] == sorted(trained, key=lambda each: each.trained_loss)
    words = '\n'.join(first.lines())
    assert (first.order_agreement(BUDGET) is None) == (len(trained) < 3)
    assert f'hidden_size: {first.candidates[0].shape.hidden_size}' in words and 'times more tokens' in words
    monkeypatch.setattr(stages, 'Judge', lambda *_: pytest.fail('measured again'))
    monkeypatch.setattr(stages, 'cut_source', lambda *_: pytest.fail('cut again'))
    assert run(place, tmp_path / 'search', steps=6, train=2, tokens=10**6) == first
    fast = run(place, tmp_path / 'search', steps=6, train=2, tokens=10**6, latency=1e-6)  # what is told may change
    assert fast.best(BUDGET) is None and 'no candidate is fast enough' in '\n'.join(fast.lines())
    longer = run(place, tmp_path / 'search', steps=8, train=1)  # cuts serve any training
    assert next(each for each in longer.candidates if each.curve).curve[-1]['step'] == 8
    assert run(place, tmp_path / 'search', steps=6, train=2, tokens=10**6) == first
    with pytest.raises(ValueError, match='a search that differs in cut, text; choose another folder'):
        run(place, tmp_path / 'search', steps=6, cut=CutSettings(**{**SMALL, 'seed': 5}))


def test_one_training_is_in_memory_at_a_time(place, tmp_path, monkeypatch, known_speed):
    alive, built = [], training.ComposerHFCausalLM

    def build(**arguments):
        alive.append(sum(model() is not None for model in models))
        model = built(**arguments)
        models.append(weakref.ref(model))
        return model

    models: list[weakref.ref] = []
    monkeypatch.setattr(training, 'ComposerHFCausalLM', build)
    gc.disable()  # which large tensors do not hurry
    try:
        run(place, tmp_path / 'search', steps=1, train=3)
    finally:
        gc.enable()
    assert len(alive) >= 3 and not any(alive)


def test_what_is_too_slow_to_be_proposed_is_not_trained():
    def candidate(loss, speed, proportional=False):
        shape = ModelShape(2, 32, 4, 2, 64, 8)
        return Candidate(shape, '1M', 1000, {'text': loss}, {'generate': speed}, proportional, [])

    slow, fast, slower, even = candidate(1.0, 50), candidate(2.0, 200), candidate(3.0, 20), candidate(4.0, 10, True)
    found = [slower, even, fast, slow]
    assert stages._to_train(found, '1M', settings(train=2)) == [slow, fast, even]
    assert stages._to_train(found, '1M', settings(train=2, latency=20)) == [slow, fast, even]
    assert stages._to_train(found, '1M', settings(train=2, latency=10)) == [fast, even]
    assert stages._to_train(found, '2M', settings(train=2)) == []


def test_a_killed_search_goes_on(place, tmp_path, monkeypatch, known_speed):
    whole = run(place, tmp_path / 'whole')
    measure, calls = stages.speed_of, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(stages, 'speed_of', dying)
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path / 'search')
    assert len(list((tmp_path / 'search' / 'candidates').glob('*.json'))) == 2
    result = run(place, tmp_path / 'search')
    assert len(calls) == 3 + 2  # the third is measured again, the first two are not
    assert [(each.shape, each.losses) for each in result.candidates] == [
        (each.shape, each.losses) for each in whole.candidates
    ]


def test_stopped_in_training_it_goes_on_with_the_cuts_that_are_there(place, tmp_path, monkeypatch, known_speed):
    curve = [{'step': 2, 'tokens': 80, 'losses': {'text': 4.0}}]
    monkeypatch.setattr(training, 'train_candidate', mock.Mock(side_effect=[curve, KeyboardInterrupt, curve]))
    steps = {'candidates': 2, 'train': 2, 'steps': 2}
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path / 'search', **steps)
    assert len(list((tmp_path / 'search' / 'models').iterdir())) == 2
    monkeypatch.setattr(stages, 'cut_source', lambda *_: pytest.fail('cut again'))
    monkeypatch.setattr(stages, 'Judge', lambda *_: pytest.fail('measured again'))
    result = run(place, tmp_path / 'search', **steps)
    assert [each.trained_loss for each in result.candidates] == [4.0, 4.0]


def test_two_at_once_share_the_candidates(place, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, 'WAIT', 0.05)
    folder = SearchFolder(tmp_path / 'search', {'a': 1})
    work = [stages._Work(*[None] * 3, folder, *[None] * 4) for _ in range(2)]
    began, others_done, made = threading.Event(), threading.Event(), []

    def slow():
        began.set()
        assert others_done.wait(20)  # by the other one, while this one is at it
        return {'by': 'first'}

    def quick(name):
        made.append(name)
        if len(made) == 2:
            others_done.set()
        return {'by': 'second'}

    names = ('a', 'b', 'c')
    first = threading.Thread(target=work[0].share, args=({**dict.fromkeys(names, lambda: {'by': 'first'}), 'a': slow},))
    first.start()
    assert began.wait(20)
    second = threading.Thread(target=work[1].share, args=({name: partial(quick, name) for name in names},))
    second.start()
    first.join(20)
    second.join(20)
    assert made == ['b', 'c'] and {name: folder.read(name)['by'] for name in names} == {
        'a': 'first',
        'b': 'second',
        'c': 'second',
    }


def test_a_large_source_is_said_to_be_held_whole_beside_its_copy(place, monkeypatch):
    shapes = propose_shapes(read_source(str(place / 'source')), BUDGET, settings())
    small = stages._plan_all(place / 'source', shapes, settings())
    monkeypatch.setattr(plans, 'WHOLE_UP_TO', 10_000)  # a cut has the weights in a file, a search in memory
    large = stages._plan_all(place / 'source', shapes, settings())
    assert large.scratch and large.memory == small.memory > 2 * 4 * small.source_parameters


def test_the_folder_of_something_else_is_refused(place, tmp_path):
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'file').write_text('')
    with pytest.raises(ValueError, match='exists already and holds no search'):
        run(place, tmp_path / 'other')


def test_a_budget_that_is_given_twice_is_told_once(place, tmp_path, monkeypatch, known_speed):
    monkeypatch.setattr(
        stages, 'Judge', lambda *_: mock.Mock(losses_at=lambda shape: {'t': 2.0}, source_losses={'t': 1})
    )
    twice = [BUDGET, BUDGET]
    result = search_shapes(place / 'source', twice, [place / 'text.jsonl'], tmp_path / 'search', settings(), 'cpu')
    assert len(result.candidates) == 4


def test_a_folder_that_is_there_may_lie_in_one_that_cannot_be_written(place, tmp_path, monkeypatch):
    """Such as the own folder on a disk of many."""
    (tmp_path / 'disk' / 'mine').mkdir(parents=True)
    asked = []
    monkeypatch.setattr(files.tempfile, 'TemporaryDirectory', lambda prefix, dir: asked.append(dir) or nullcontext())
    monkeypatch.setattr(stages, '_read_texts', mock.Mock(side_effect=InterruptedError))
    for folder in ('mine', 'new'):
        with pytest.raises(InterruptedError):
            run(place, tmp_path / 'disk' / folder)
    assert asked == [tmp_path / 'disk' / 'mine', tmp_path / 'disk']


def test_too_little_text_for_the_steps_is_said_before_any_work(place, tmp_path):
    with pytest.raises(ValueError, match=r'has 1,\d+ sequences of 20 tokens .* enough for \d+ steps') as error:
        run(place, tmp_path / 'search', steps=10**4)
    possible = int(re.search(r'enough for (\d+) steps', str(error.value)).group(1))
    plan = plan_cut(place / 'source', {'num_hidden_layers': 2}, CutSettings(**SMALL))
    assert stages._read_lessons([place / 'text.jsonl'], plan, settings(steps=possible))
    assert not (tmp_path / 'search').exists()


def test_tokens_that_training_sees_already_are_said_before_any_work(place, tmp_path):
    seen = 6 * 2 * 20
    with pytest.raises(ValueError, match=f'--tokens {seen}: .* sees {seen} tokens already; give those of the real run'):
        run(place, tmp_path / 'search', steps=6, tokens=seen)
    assert not (tmp_path / 'search').exists()


def test_the_command_tells_what_to_ask_for(place, tmp_path, capsys):
    shapes = ['--candidates', '2', '--multiple-of', '4', '--tolerance', '0.1', '--uneven', '3', '--seq-len', '20']
    limits = ['--limit', 'num_hidden_layers=2:', '--latency', '1000']
    text = ['--text', str(place / 'text.jsonl'), '--output', str(tmp_path / 'out'), '--device', 'cpu']
    assert cli.main(['search', str(place / 'source'), '--params', BUDGET, *text, *shapes, *limits]) == 0
    printed = capsys.readouterr().out
    assert f'{BUDGET}: the best is L' in printed and '    target:' in printed
    assert re.search(r'guidance: \d+% of the parameters go in one step.*arXiv', printed)
    record = json.loads((tmp_path / 'out' / 'result.json').read_text())
    assert len(record['candidates']) == 2
    assert cli.main(['search', str(place / 'source'), '--params', BUDGET, *text, '--pin', 'hidden_size']) == 1
    assert '--pin: expected KEY=VALUE' in capsys.readouterr().err
    assert cli.main(['search', str(place / 'source'), '--params', BUDGET, '--output', str(tmp_path / 'no')]) == 1
    assert 'name some text with --text' in capsys.readouterr().err


def test_a_search_goes_on_with_the_kind_of_device_that_it_began_with(place, tmp_path, monkeypatch, known_speed):
    run(place, tmp_path / 'search')
    monkeypatch.setattr(stages, 'usable_device', lambda name: 'cuda:1')
    with pytest.raises(ValueError, match='a search that differs in device; choose another folder'):
        run(place, tmp_path / 'search')


@pytest.fixture
def tf32():
    libraries = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [library.allow_tf32 for library in libraries]
    yield libraries
    for library, value in zip(libraries, before):
        library.allow_tf32 = value


def test_candidates_are_trained_where_they_are_cut_and_leave_tf32_off(place, monkeypatch, tf32):
    current = [torch.device('cuda:2')]
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: current[-1].index)
    monkeypatch.setattr(torch.cuda, 'set_device', current.append)

    class Asked(Exception):
        pass

    def trainer(device, **settings):
        raise Asked(get_device(device).tensor_to_device)

    monkeypatch.setattr(training, 'Trainer', trainer)
    lessons = [mock.Mock(seen=np.ones((4, 20), dtype=np.int64))]
    for name, number in (('cuda:1', 1), ('cuda', 1), ('cuda:3', 3)):  # without a number, the current one
        with pytest.raises(Asked) as asked:
            training.train_candidate(place / 'source', lessons, settings(steps=1), name)
        assert str(asked.value.args[0].__self__._device) == f'cuda:{number}' == str(current[-1])
        assert not any(library.allow_tf32 for library in tf32)


def test_a_mixture_of_experts_is_searched(place, tmp_path, known_speed):
    source = make_source(tmp_path / 'source', 'mixtral')
    text = [place / 'text.jsonl']
    more = settings(multiple_of=8, pins={'num_experts': 2}, candidates=2, tolerance=0.3)
    result = search_shapes(source, ['30K'], text, tmp_path / 'out', more, 'cpu')
    assert len(result.candidates) == 2 and all(each.shape.num_experts == 2 for each in result.candidates)
    assert '      num_experts: 2' in result.lines()


def test_the_front_is_what_no_other_beats_in_both():
    speeds, losses = [1.0, 2.0, 3.0, 2.5], [2.0, 3.0, 4.0, 5.0]
    assert pareto_front(speeds, losses, larger_is_better=True) == [0, 1, 2]
    assert pareto_front(speeds, losses, larger_is_better=False) == [0]


def test_a_power_law_is_continued():
    def point(tokens):
        return {'tokens': tokens, 'losses': {'a': 3 + 40 * tokens**-0.4, 'b': 3 + 40 * tokens**-0.4}}

    curve = [point(tokens) for tokens in (1e3, 2e3, 4e3, 8e3, 16e3, 32e3)]
    found = extrapolate(curve, 10**8, 5 * 10**7, 3.0, 10**6)
    assert found['loss'] == pytest.approx(mean(point(1e6)['losses'].values()), abs=0.02)
    assert found['low'] <= found['loss'] <= found['high'] and found['factor'] == pytest.approx(1e6 / 32e3)
    rising = [{'tokens': t, 'losses': {'a': 3 + t / 1e4}} for t in (1e3, 2e3, 4e3)]
    assert extrapolate(rising, 10**8, 5 * 10**7, 3.0, 10**6) is None
