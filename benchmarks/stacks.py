"""Both stacks side by side: time and memory of a pruning step, a dense step, the loader, ``prepare`` and export.

Runs the benchmarks beside this file under either interpreter in turn, the order changed from round to round, so that a
noisy machine is noisy for both. Stated are medians, and the median of the ratios within rounds: below 1 the current
stack takes less.

usage: python benchmarks/stacks.py --stock .venv-stock/bin/python --current .venv/bin/python [--rounds N] [--quick]
           [--only SCRIPT ...] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEPS = ('dense source', 'pruning, all kept', 'pruning, at target', 'target model', 'optimizer on the source')
VERSIONS = 'import torch, transformers; print(f"torch {torch.__version__}, transformers {transformers.__version__}")'

Values = dict[str, float]


def step_seconds(result: Mapping[str, Any]) -> Values:
    """Seconds of the steps of prune_step.py."""
    return {f'{step}, s': result['results'][0]['seconds'][step]['median'] for step in STEPS}


def step_peaks(result: Mapping[str, Any]) -> Values:
    """Peaks of step_memory.py above the libraries."""
    return {f'{step}, peak MB': result[step]['peak'] / 2**20 for step in STEPS[:3]}


def loader_times(result: Mapping[str, Any]) -> Values:
    """Time of a thousand samples of loader_throughput.py."""
    kinds = ('plain', 'dynamic')
    return {f'{kind} loader, s per 1,000 samples': 1e3 / result[f'{kind}_samples_per_second'] for kind in kinds}


def prepare_times(result: Mapping[str, Any]) -> Values:
    """Time of a million tokens of prepare_throughput.py, and the peaks of its processes."""
    (ours,) = result['prepare']
    peaks = {f'prepare, {kind} process MB': ours[f'{kind}_mb'] for kind in ('main', 'worker')}
    return {'prepare, s per million tokens': 1e6 / ours['tokens_per_second'], **peaks}


def export_costs(result: Mapping[str, Any]) -> Values:
    """Seconds and peak of export_memory.py."""
    return {'export, s': result['seconds'], 'export, peak MB': result['peak_mb']}


# script: (arguments, arguments of the quick mode, option for the file with its numbers, what is taken from it)
SCRIPTS: dict[str, tuple[list[str], list[str], str, Callable[[Mapping[str, Any]], Values]]] = {
    'prune_step.py': (['--tokens', '2048', '--rounds', '3'], ['--tokens', '128'], '--output', step_seconds),
    'step_memory.py': (['--tokens', '2048'], ['--tokens', '256'], '--output', step_peaks),
    'loader_throughput.py': (['--repeats', '1'], [], '--out', loader_times),
    'prepare_throughput.py': (['--alone', '--repeats', '1'], ['--alone'], '--out', prepare_times),
    'export_memory.py': (['--model', 'small'], ['--model', 'small'], '--out', export_costs),
}
NO_QUICK_MODE = ('export_memory.py',)


def run(python: str, script: str, quick: bool) -> Values:
    """What one interpreter takes for one script.

    Raises:
        RuntimeError: If the script fails, with the end of what it wrote.
    """
    arguments, quick_arguments, option, take = SCRIPTS[script]
    arguments = quick_arguments + ['--quick'] * (script not in NO_QUICK_MODE) if quick else arguments
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / 'numbers.json', Path(folder) / 'log'
        command = [python, str(HERE / script), *arguments, option, str(out)]
        with log.open('w') as file:
            process = subprocess.Popen(
                command, env={**os.environ, 'PYTHONPATH': str(HERE.parent)}, stdout=file, stderr=subprocess.STDOUT
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f'{" ".join(command)} failed:\n{log.read_text()[-3000:]}')
        values = take(json.loads(out.read_text()))
    if script == 'loader_throughput.py':
        values['loader, largest process MB'] = usage.ru_maxrss / 2**10
    return values


def table(rounds: list[dict[str, Values]]) -> list[dict[str, Any]]:
    """Medians by stack, and the median of current / stock within rounds, by measure."""
    rows = []
    for name in rounds[0]['stock']:
        stock, current = ([values[stack][name] for values in rounds] for stack in ('stock', 'current'))
        ratio = statistics.median(new / old for old, new in zip(stock, current))
        row = {'stock': statistics.median(stock), 'current': statistics.median(current), 'current / stock': ratio}
        rows.append({'measure': name, **row})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stock', required=True, help='interpreter of the stock environment')
    parser.add_argument('--current', required=True, help='interpreter of the current environment')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--only', nargs='+', choices=SCRIPTS, default=list(SCRIPTS), metavar='SCRIPT')
    parser.add_argument('--quick', action='store_true', help='toy sizes and one round, to see that it runs')
    parser.add_argument('--output', type=Path, help='write all numbers as JSON')
    arguments = parser.parse_args(argv)
    pythons = {'stock': arguments.stock, 'current': arguments.current}
    versions = {
        stack: subprocess.check_output([python, '-c', VERSIONS], text=True).strip() for stack, python in pythons.items()
    }
    rounds: list[dict[str, Values]] = []
    for number in range(1 if arguments.quick else arguments.rounds):
        taken: dict[str, Values] = {'stock': {}, 'current': {}}
        for script in arguments.only:
            for stack in sorted(pythons, reverse=number % 2 == 0):
                taken[stack] |= run(pythons[stack], script, arguments.quick)
        rounds.append(taken)
        sys.stderr.write(f'round {number + 1} done\n')
    rows = table(rounds)
    sys.stdout.write(
        f'{date.today().isoformat()}, {platform.machine()}, {os.cpu_count()} cores, {len(rounds)} rounds\n'
    )
    sys.stdout.write(
        f'\n| measure | stock ({versions["stock"]}) | current ({versions["current"]}) | current / stock |\n'
    )
    sys.stdout.write('|---|---|---|---|\n')
    for row in rows:
        sys.stdout.write(
            f'| {row["measure"]} | {row["stock"]:.3g} | {row["current"]:.3g} | {row["current / stock"]:.3f} |\n'
        )
    if arguments.output:
        whole = {'date': date.today().isoformat(), 'versions': versions, 'rounds': rounds, 'table': rows}
        arguments.output.write_text(json.dumps(whole, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
