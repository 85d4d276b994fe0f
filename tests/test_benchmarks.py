"""Each benchmark runs in its quick mode and writes the numbers it promises."""
import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


def test_prune_step(tmp_path):
    out = tmp_path / 'results.json'
    command = [sys.executable, str(BENCHMARKS / 'prune_step.py'), '--quick', '--family', 'all', '--tokens', '128', '--rounds', '1']
    subprocess.run([*command, '--threads', '1', '--output', str(out)], check=True, capture_output=True)
    results = json.loads(out.read_text())['results']
    assert {result['family'] for result in results} == {'llama', 'llama-gqa', 'gpt_neox', 'phi3'}
    for result in results:
        assert result['seconds']['pruning, at target']['median'] > 0
        assert set(result['ratios']) >= {'all kept / dense source', 'at target / target model'}


def test_distillation_step(tmp_path):
    out = tmp_path / 'results.json'
    command = [sys.executable, str(BENCHMARKS / 'distillation_step.py'), '--quick', '--tokens', '128', '--rounds', '1', '--threads', '1']
    subprocess.run([*command, '--output', str(out)], check=True, capture_output=True)
    result = json.loads(out.read_text())
    assert set(result['seconds']) == {'student', 'teacher forward', 'whole vocabulary', 'top 64'}
    assert result['ratios']['whole vocabulary / student'] > 0 and result['tokens'] == 128
