"""The benchmark runs, and measures the same tokens on both sides."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path


def test_quick_benchmark(tmp_path):
    path = Path(__file__).parents[2] / 'benchmarks' / 'prepare_throughput.py'
    specification = importlib.util.spec_from_file_location('prepare_throughput', path)
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    result = benchmark.main(['--quick', '--out', str(tmp_path / 'result.json')])
    assert json.loads((tmp_path / 'result.json').read_text()) == result
    (ours,), (theirs,) = result['prepare'], result['foundry']
    assert ours['tokens'] == theirs['tokens'] > 500_000
    assert result['ratio']['foundry'] > 0 and ours['worker_mb'] < ours['main_mb']
