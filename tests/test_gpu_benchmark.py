"""The GPU's command: rows that tell what went wrong, going on where it stopped, and all parts in quick mode."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.cases import Case, NotThere, run_cases, write_table

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


def test_all_parts_run_in_quick_mode(tmp_path):
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
        tmp_path / 'w',
    ]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    parts = {path.stem: json.loads(path.read_text())['cases'] for path in (tmp_path / 'out').glob('*.json')}
    failed = {name: row for rows in parts.values() for name, row in rows.items() if row['result'].startswith('failed')}
    assert done.returncode == 0 and not failed, (failed, done.stderr[-2000:])
    assert set(parts) == {'right', 'fast', 'good', 'big'}
    assert parts['right']['killed and resumed, bit for bit']['difference'] == 0
    assert any('at target / target model' in row.get('ratios', {}) for row in parts['fast'].values())
    assert all(row['loss at the end'] > 0 for row in parts['good'].values())
    assert len((tmp_path / 'out' / 'table.md').read_text().splitlines()) > sum(map(len, parts.values()))
