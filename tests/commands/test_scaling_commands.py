"""The two commands as users meet them: contracts of files and output lines, exit codes, one-line errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmshearing.cli import main
from llmshearing.scaling.law_file import read_law
from llmshearing.scaling.post_training import PostTrainingLaw
from tests.scaling.conftest import tiny_llama, write_domains  # noqa: F401

SIZES = (70e6, 410e6, 1.4e9, 6.9e9)


def reference_loss(params):
    return 1.7 + 0.6 * (params / 1e9) ** -0.3


def p2_loss(size, rate, source, tokens):
    return source + rate**1.1 * (0.12 * (size / 1e9) ** -0.3 + 0.5 * (tokens / 1e9) ** -0.35 + 0.06)


CASE = '--params-before 1.4e9 --pruning-rate 0.4 --source-loss 2.3'


def run(command: str) -> int:
    return main(command.split())


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = [
        {'params': size, 'losses': {'cc': reference_loss(size), 'wiki': reference_loss(size) - 0.4}} for size in SIZES
    ]
    (tmp_path / 'points.json').write_text(json.dumps({'models': models}))
    runs = [
        {
            'params_before': size,
            'pruning_rate': rate,
            'source_loss': source,
            'curve': [[tokens, p2_loss(size, rate, source, tokens)] for tokens in np.geomspace(1e8, 2e9, 8)],
        }
        for size, source in ((70e6, 3.3), (160e6, 2.95), (410e6, 2.6))
        for rate in (0.3, 0.5)
    ]
    (tmp_path / 'runs.json').write_text(json.dumps({'runs': runs}))
    return tmp_path


@pytest.fixture
def law(workspace, capsys):
    assert run('budget fit runs.json --output law.json') == 0
    capsys.readouterr()
    return 'law.json'


def test_fit_contract(workspace, capsys):
    assert run('reference-losses fit points.json --params 2700000000 --output out/ref.json') == 0
    references = json.loads((workspace / 'out/ref.json').read_text())['reference_losses']
    assert references == pytest.approx({'cc': reference_loss(2.7e9), 'wiki': reference_loss(2.7e9) - 0.4}, rel=1e-6)
    output = capsys.readouterr().out
    assert float(re.search(r'^cc +predicted loss: ([0-9.]+)', output, re.MULTILINE).group(1)) == pytest.approx(
        references['cc'], abs=1e-4
    )
    assert 'extrapolation factor 1 (inside the measured range)' in output


def test_fit_options(workspace, capsys):
    assert run('reference-losses fit points.json --params 13.8B --domains wiki --output ref.json') == 0
    report = json.loads((workspace / 'ref.json').read_text())
    assert list(report['reference_losses']) == ['wiki'] and report['interval_kind'] == 'leave-one-out'
    assert 'extrapolation factor 2 (1.00 octaves outside the measured range)' in capsys.readouterr().out


def test_measured_points_go_straight_into_fit(workspace, tiny_llama, capsys):
    write_domains()
    for layers in (1, 2, 3):
        tiny_llama(num_hidden_layers=layers).save_pretrained(f'm{layers}')
    options = '--domains web --max-sequences 2 --batch-size 1'
    assert run(f'reference-losses measure m1 m2 --data data {options} --tokens 1e9 2e9 --output points2.json') == 0
    points = json.loads((workspace / 'points2.json').read_text())
    assert points.keys() == {'models'} and [m['tokens'] for m in points['models']] == [1e9, 2e9]
    assert run(f'reference-losses measure m3 --data data {options} --output ref3.json') == 0
    reference = json.loads((workspace / 'ref3.json').read_text())
    assert reference['reference_losses'] == reference['models'][0]['losses']
    assert reference['models'][0]['evaluation']['web']['sequences'] == 2
    assert re.search(r'm3: \d+ parameters, web \d\.\d{4}\n', capsys.readouterr().out)
    # Random models do not follow a law: give the points losses that do, and keep everything else.
    for path in ('points2.json', 'ref3.json'):
        content = json.loads((workspace / path).read_text())
        for model in content['models']:
            model.pop('tokens', None)
            model['losses'] = {'web': 5 - 0.5 * int(model['name'][1])}
        (workspace / path).write_text(json.dumps(content))
    assert run('reference-losses fit points2.json ref3.json --params 20K --output r.json') == 0
    measured = json.loads((workspace / 'r.json').read_text())['measured_models']
    assert [model['name'] for model in measured] == ['m1', 'm2', 'm3']


def test_predict_says_that_no_run_had_such_a_rate_at_such_a_size(workspace, capsys):
    curves = json.loads(Path('runs.json').read_text())['runs']
    ends = [curves[0], curves[-1]]
    Path('two.json').write_text(json.dumps({'runs': ends}))
    assert run('budget fit two.json --output two-law.json') == 0
    assert 'sizes and pruning rates vary together' in capsys.readouterr().out
    beside = f'--params-before {ends[0]["params_before"]} --pruning-rate {ends[1]["pruning_rate"]} --source-loss 2.3'
    assert run(f'budget predict two-law.json {beside} --tokens 1e9') == 0
    assert 'no run had such a rate at such a size: x' in capsys.readouterr().out
    content = json.loads(Path('two-law.json').read_text())
    del content['pairs']  # as it was written before
    Path('two-law.json').write_text(json.dumps(content))
    assert run(f'budget predict two-law.json {beside} --tokens 1e9') == 0
    assert 'inside the range of the runs' in capsys.readouterr().out


def test_predict_contract(law, capsys):
    assert run(f'budget predict {law} {CASE} --tokens 5000000000') == 0
    output = capsys.readouterr().out
    assert output.count('\n') == 1 and output.startswith('predicted loss: ')
    value = float(re.search(r'predicted loss: ([0-9.]+)', output).group(1))
    assert value == pytest.approx(p2_loss(1.4e9, 0.4, 2.3, 5e9), rel=1e-3)
    assert 'extrapolation factor 3.41 (params_before x3.41, tokens x2.5)' in output
    low, high = map(float, re.search(r'90 % ([0-9.]+) to ([0-9.]+)', output).groups())
    assert low <= round(value, 4) <= high


def test_law_survives_its_file(law):
    one, others = read_law(law)
    assert isinstance(one, PostTrainingLaw) and len(others) == 6
    assert one.params_before == (70e6, 410e6) and one.tokens == (1e8, 2e9) and not one.single_size
    again = float(one.predict(1e9, 0.4, 2.3, 1e9))
    assert all(float(other.predict(1e9, 0.4, 2.3, 1e9)) == pytest.approx(again, rel=1e-3) for other in others)


def test_a_law_that_somebody_edited_is_named(law):
    content = json.loads(Path(law).read_text())
    content['constants'] = dict.fromkeys(content['constants'], 'big')
    Path(law).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'law.*\.json: not a law written by'):
        read_law(law)


def test_two_runs_have_no_interval(workspace, capsys):
    content = json.loads((workspace / 'runs.json').read_text())
    (workspace / 'runs.json').write_text(json.dumps({'runs': content['runs'][:2]}))
    assert run('budget fit runs.json --output law.json') == 0
    assert 'note: 1 size before pruning: the law holds for this size only' in capsys.readouterr().out
    case = '--params-before 70e6 --pruning-rate 0.4 --source-loss 3.3'
    assert run(f'budget predict law.json {case} --tokens 1e9') == 0
    assert 'no interval from fewer than three runs' in capsys.readouterr().out
    assert run(f'budget predict law.json {CASE} --tokens 1e9') == 1
    assert 'all runs had 7e+07' in capsys.readouterr().err


def test_plan(law, workspace, capsys):
    questions = '--target-loss 2.5 --more-tokens 1B --least-gain 0.005 --total-cost 1B --pruning-cost 4'
    assert run(f'budget plan {law} {CASE} {questions} --output plan.json') == 0
    output = capsys.readouterr().out
    plan = json.loads((workspace / 'plan.json').read_text())
    tokens = plan['answers']['target_loss']['tokens']
    assert p2_loss(1.4e9, 0.4, 2.3, tokens) == pytest.approx(2.5, rel=1e-3)
    assert f'tokens needed: {tokens:.6g} for a loss of 2.5' in output
    point = plan['answers']['diminishing']['tokens']
    assert p2_loss(1.4e9, 0.4, 2.3, point) - p2_loss(1.4e9, 0.4, 2.3, point + 1e9) == pytest.approx(0.005, rel=0.02)
    split = plan['answers']['total_cost']['split']
    assert 4 * split['pruning_tokens'] + split['continued_tokens'] == pytest.approx(1e9)
    assert output.count('split: ') == 3 and output.count('extrapolation factor') == 3
    assert output.startswith(f'floor: {plan["floor"]:.4f}')


def test_plan_when_nothing_is_worth_it(law, capsys):
    assert run(f'budget plan {law} {CASE} --more-tokens 1 --least-gain 100') == 0
    assert 'diminishing point: ' in capsys.readouterr().out


@pytest.mark.parametrize(
    'command, message',
    [
        ('reference-losses fit none.json --params 1e9 --output r.json', 'none.json: no such file'),
        ('reference-losses fit points.json --params 1e9 --domains arxiv --output r.json', "unknown domain 'arxiv'"),
        ('reference-losses fit points.json --params 1e9 --tokens 1e12 --output r.json', 'needs at least five models'),
        ('reference-losses fit bytes.csv --params 1e9 --output r.json', "bytes.csv: not a CSV ('utf-8"),
        ('reference-losses measure none --data none --output r.json', 'no such folder'),
        ('reference-losses measure a b --data d --tokens 1 --output r.json', '--tokens has 1 numbers for 2 models'),
        ('budget fit points.json --output l.json', 'expected {"runs": [...]}'),
        ('budget fit runs.json --output out', '--output: expected a file, and out is a folder; choose another place'),
        (f'budget plan law.json {CASE} --target-loss 2.5 --output out', '--output: expected a file, and out is a'),
        (f'budget predict runs.json {CASE} --tokens 1e9', 'not a law written by'),
        (
            'budget predict law.json --params-before 1.4e9 --pruning-rate 40 --source-loss 2.3 --tokens 1e9',
            '--pruning-rate is the fraction of the parameters removed, between 0 and 1; got 40, did you mean 0.4?',
        ),
        (
            'budget predict law.json --params-before 1.4e9 --pruning-rate 0.4 --source-loss -2 --tokens 1e9',
            '--source-loss must be',
        ),
        (f'budget plan law.json {CASE}', 'nothing to plan'),
        (f'budget plan law.json {CASE} --more-tokens 1e9', 'belong together'),
        (f'budget plan law.json {CASE} --target-loss 1.0', 'cannot be reached'),
        (f'budget plan law.json {CASE} --total-cost 1e9 --pruning-cost 0', '--pruning-cost must be'),
    ],
)
def test_errors_are_one_line_and_exit_code_one(law, workspace, capsys, command, message):
    (workspace / 'bytes.csv').write_bytes(b'\xff\xfe params')
    (workspace / 'out').mkdir()
    assert run(command) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count('\n') == 1 and captured.out == ''


@pytest.mark.parametrize(
    'command, message',
    [
        ('reference-losses fit points.json --params 7X --output r.json', "not a count: '7X'"),
        ('reference-losses measure a --data d --batch-size 1.5 --output r', 'a whole number'),
        (
            'reference-losses fit points.json --params 7B --domains , --output r.json',
            "argument --domains: expected names of domains such as web,code, got ','",
        ),
        ('budget predict law.json --pruning-rate 0.4 --source-loss 2.3 --tokens 1e9', 'required: --params-before'),
        ('budget', 'required: command'),
    ],
)
def test_wrong_usage(workspace, capsys, command, message):
    with pytest.raises(SystemExit) as stopped:
        run(command)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_fit_does_not_import_torch(workspace):
    code = (
        'import sys; from llmshearing.cli import main; '
        "main(['reference-losses', 'fit', 'points.json', '--params', '1e9', '--output', 'r.json']); "
        "main(['budget', 'fit', 'runs.json', '--output', 'l.json']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0
