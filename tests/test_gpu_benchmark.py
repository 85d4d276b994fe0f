"""The GPU's command: rows that tell what went wrong, going on where it stopped, and all parts in quick mode."""

import json
import logging
import os
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.gpu import cases as running
from benchmarks.gpu import timing
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.cases import STOPPED, Case, NotThere, refuse_others, run_cases, write_table
from benchmarks.gpu.settings import Settings

ROOT = Path(__file__).parents[1]


def raising(error):
    def run(rows):
        raise error

    return run


def test_every_failure_is_a_row_and_the_others_run(tmp_path):
    cases = [
        Case('broken', raising(ValueError('two | bars\nand more'))),
        Case('missing', raising(NotThere('a GPU'))),
        Case('ends', raising(SystemExit(3))),
        Case('wrong', lambda rows: {'difference': 0.5, 'bound': 0.1}),
        Case('unknown', lambda rows: {'difference': float('nan'), 'bound': 0.1}),
        Case('right', lambda rows: {'difference': 0.0, 'bound': 0.0, 'seen': len(rows)}),
    ]
    rows = run_cases('part', cases, tmp_path, time.time() + 60)
    assert [row['result'] for row in rows.values()] == [
        'failed: ValueError: two | bars',
        'not there: a GPU',
        'failed: the program ended with 3',
        'failed: 0.5 is above 0.1',
        'failed: nan is above 0.1',
        'passed',
    ]
    assert rows['right']['seen'] == 5 and 'Traceback' in rows['broken']['traceback']
    table = write_table(tmp_path, ['part', 'not run yet'])
    assert '| broken | failed: ValueError: two / bars |' in table and 'Traceback' not in table


def test_finished_cases_are_kept_and_the_rest_goes_on(tmp_path):
    calls = []

    def counting(name):
        return Case(name, lambda rows: calls.append(name) or {})

    failing = Case('c', raising(ValueError('no')))
    assert run_cases('part', [counting('a'), counting('b')], tmp_path, deadline=0)['a']['result'].startswith('not run')
    run_cases('part', [counting('a'), failing], tmp_path, time.time() + 60)
    run_cases('part', [counting('a'), counting('b'), counting('c')], tmp_path, time.time() + 60)
    assert calls == ['a', 'b']
    run_cases('part', [counting('a'), counting('c')], tmp_path, time.time() + 60, again=True)
    assert calls == ['a', 'b', 'c']


@pytest.mark.parametrize('before, runs', [(1, True), (2, False)])
def test_a_case_in_which_the_command_was_stopped_runs_once_more(before, runs, tmp_path):
    def stopped(rows):
        raise KeyboardInterrupt

    for _ in range(before):
        with pytest.raises(KeyboardInterrupt):
            run_cases('part', [Case('long', stopped)], tmp_path, time.time() + 60)
    rows = run_cases('part', [Case('long', lambda rows: {'difference': 0, 'bound': 1})], tmp_path, time.time() + 60)
    assert rows['long']['result'] == ('passed' if runs else STOPPED)


def test_what_was_not_there_is_looked_for_again_and_ratios_are_of_the_rows_that_there_are(tmp_path):
    run_cases('part', [Case('flash', raising(NotThere('flash_attn')))], tmp_path, time.time() + 60)
    ratios = Case('ratios', lambda rows: {'seen': len(rows)}, cheap=True)
    rows = run_cases('part', [ratios, Case('flash', lambda rows: {})], tmp_path, time.time() + 60)
    assert rows['flash']['result'] == 'measured' and rows['ratios']['seen'] == 1
    rows = run_cases('part', [Case('more', lambda rows: {}), ratios], tmp_path, deadline=0)
    assert rows['ratios']['seen'] == 2


def test_a_case_that_would_end_too_late_is_left_to_a_call_that_begins_with_it(tmp_path):
    def long(name):
        return Case(name, lambda rows: {}, lambda rows: 100.0)

    rows = run_cases('part', [long('a'), long('b'), Case('short', lambda rows: {})], tmp_path, time.time() + 60)
    assert [row['result'] for row in rows.values()] == ['measured', 'not run: no time left', 'measured']
    assert run_cases('part', [long('a'), long('b')], tmp_path, time.time() + 60)['b']['result'] == 'measured'


def test_a_process_for_a_broken_device_has_the_minutes_that_are_left(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(running, '_device_works', lambda: False)
    monkeypatch.setattr(os, 'execv', lambda path, arguments: started.append(arguments))
    monkeypatch.setattr(sys, 'argv', ['gpu', 'right', '--minutes', '9', '--again'])
    run_cases('part', [Case('a', lambda rows: {})], tmp_path, time.time() + 120)
    *arguments, minutes = started[0][3:]
    assert arguments == ['right', '--minutes', '9', '--minutes'] and 1.8 < float(minutes) < 2


def test_a_folder_holds_the_results_of_one_machine(tmp_path):
    quick = {'mode': 'quick', 'card': None, 'torch': '2.14', 'transformers': '5.24', 'date': 'today'}
    run_cases('fast', [Case('a', lambda rows: {})], tmp_path, time.time() + 60, machine=quick)
    refuse_others(tmp_path, ['fast', 'big'], {**quick, 'date': 'tomorrow'})
    with pytest.raises(ValueError, match=r'results of mode quick \(now full\), card None \(now H200\); one folder'):
        refuse_others(tmp_path, ['fast', 'big'], {**quick, 'mode': 'full', 'card': 'H200'})


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['faster'], 'unknown part faster; possible: right, fast, good, big.'),
        (['--source', 'nowhere'], '--source: there is no nowhere.'),
        (['--steps', '0'], '--steps and --seeds are 1 or more.'),
        (['--output', '/proc/gpu'], '--output: /proc/gpu cannot be written'),
        (['fast', '--only', 'none'], "--only: no case has 'none' in its name"),
        (['big'], 'big: not run: lost is not installed;'),
    ],
)
def test_a_wrong_call_and_a_missing_library_are_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logging, 'disable', lambda level: None)
    monkeypatch.setattr(warnings, 'filterwarnings', lambda action: None)
    monkeypatch.setattr(os, 'environ', dict(os.environ))
    monkeypatch.setitem(sys.modules, 'benchmarks.gpu.fast', types.SimpleNamespace(cases=lambda settings: []))
    lost = types.SimpleNamespace(cases=raising(ModuleNotFoundError("No module named 'lost'", name='lost')))
    monkeypatch.setitem(sys.modules, 'benchmarks.gpu.big', lost)
    given = ['--quick', '--work', str(tmp_path / 'w'), '--output', str(tmp_path / 'out'), *arguments]
    try:
        code = main(given)
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err
    assert code and message in said and 'Traceback' not in said


def test_the_time_that_the_host_waits_is_told_without_the_profilers_own():
    def event(name, start, end, device=DeviceType.CPU):
        return types.SimpleNamespace(
            name=name, time_range=types.SimpleNamespace(start=start, end=end), device_type=device
        )

    events = [
        event('nvjet', 0.0, 6000.0, DeviceType.CUDA),
        event('indexSelect', 8000.0, 10000.0, DeviceType.CUDA),
        event('cudaStreamSynchronize', 1000.0, 4000.0),
        event('cudaDeviceSynchronize', 1000.0, 9000.0),
    ]
    found = timing._kernels_of(types.SimpleNamespace(events=lambda: events))
    assert found['waiting ms'] == 3.0 and found['kernels'] == 2 and found['idle share'] == pytest.approx(0.2)
    assert found['kernel shares'] == {'matrix products': 0.75, 'rows and columns taken and put back': 0.25}


def test_experts_are_among_the_axes_that_are_compared(tmp_path, monkeypatch):
    from benchmarks.gpu import right

    seen, masks = [], right.uniform_soft_masks
    monkeypatch.setattr(right, 'uniform_soft_masks', lambda config, axes: seen.append(axes) or masks(config, axes))
    settings = Settings('cpu', False, tmp_path)
    assert right.masked_against_exported('mixtral', torch.float32, settings, {})['difference'] <= 1e-5
    assert ('expert',) in seen and ('hidden',) in seen


def test_another_source_or_text_has_another_folder(tmp_path):
    from benchmarks.gpu.good import expected, folder_of

    given = [
        Settings('cpu', False, tmp_path, *both) for both in ((None, None), (Path('a'), None), (Path('a'), Path('b')))
    ]
    assert [folder_of(settings).name for settings in given] == ['good', 'good-a', 'good-a-b']
    rows = {'x': {'took': 50.0, 'record': {'steps': 100}}, 'source': {'took': 900.0}}
    assert expected(400, rows) == 200.0 and expected(400, {}) == 0.0


def test_all_parts_run_in_quick_mode(tmp_path):
    (tmp_path / 'without').mkdir()
    missing = "raise ModuleNotFoundError('not on a machine that is lent', name='pytest')"
    (tmp_path / 'without' / 'pytest.py').write_text(missing)
    command = [
        sys.executable,
        '-m',
        'benchmarks.gpu',
        '--quick',
        '--minutes',
        '30',
        '--output',
        tmp_path / 'out',
        '--work',
        os.path.relpath(tmp_path / 'w', ROOT),
    ]
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path / "without"}{os.pathsep}{ROOT}'}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    parts = {path.stem: json.loads(path.read_text())['cases'] for path in (tmp_path / 'out').glob('*.json')}
    failed = {name: row for rows in parts.values() for name, row in rows.items() if row['result'].startswith('failed')}
    assert done.returncode == 0 and not failed, (failed, done.stderr[-2000:])
    assert set(parts) == {'right', 'fast', 'good', 'big'}
    assert parts['right']['killed and resumed, bit for bit']['difference'] == 0
    assert any('at target / target model' in row.get('ratios', {}) for row in parts['fast'].values())
    assert any('cut, from folder to folder' in name for name in parts['big'])
    assert all(row['loss at the end'] > 0 for row in parts['good'].values())
    assert len((tmp_path / 'out' / 'table.md').read_text().splitlines()) > sum(map(len, parts.values()))
