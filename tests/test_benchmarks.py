"""Each benchmark runs in its quick mode and writes the numbers it promises.

Those that measure memory, or start processes of their own, run in a process of their own; the others in the tests'.
"""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.models.tiny import tiny_model
from tests.tiny_run import tiny_trainer

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


def run_alone(script: str, *arguments) -> str:
    """Runs a script in a process of its own; what it printed."""
    command = [sys.executable, str(BENCHMARKS / script), '--quick', *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def run_quick(monkeypatch, capsys):
    """Runs a script in this process, which has imported already what takes a script ten seconds; what it printed."""

    def run(script: str, *arguments) -> str:
        monkeypatch.setattr(sys, 'argv', [script, '--quick', *map(str, arguments)])
        try:
            runpy.run_path(str(BENCHMARKS / script), run_name='__main__')
        except SystemExit as end:
            assert not end.code, end.code
        return capsys.readouterr().out

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_prune_step(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    run_quick(
        'prune_step.py',
        '--family',
        'all',
        '--tokens',
        '128',
        '--rounds',
        '1',
        '--course',
        '--threads',
        '1',
        '--output',
        out,
    )
    results = json.loads(out.read_text())['results']
    assert {result['family'] for result in results} == {'llama', 'llama-gqa', 'gpt_neox', 'phi3'}
    for result in results:
        assert result['seconds']['pruning, at target']['median'] > 0
        assert set(result['ratios']) >= {
            'all kept / dense source',
            'at target / target model',
            'whole run / activation-masked run',
            'evaluation, at target / target model',
            '4 micro-batches, frozen / target model',
        }


def test_distillation_step(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    run_quick('distillation_step.py', '--tokens', '128', '--rounds', '1', '--threads', '1', '--output', out)
    result = json.loads(out.read_text())
    ways = {'whole vocabulary', 'top 64', 'stored draws', 'stored top'}
    assert set(result['seconds']) == {'student', 'teacher forward'} | ways
    assert result['ratios']['whole vocabulary / student'] > 0 and result['tokens'] == 128


@pytest.mark.slow
def test_stored_teacher(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    run_quick('stored_teacher.py', '--work', tmp_path, '--steps', '4', '--top-k', '--output', out)
    result = json.loads(out.read_text())
    assert all(result[way]['loss'] > 0 for way in ('plain', 'live', 'stored draws', 'stored top'))


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason="peak memory is read from Linux's /proc")
def test_init_memory(tmp_path):
    out = tmp_path / 'results.json'
    run_alone('init_memory.py', '--output', out)
    modes = json.loads(out.read_text())['modes']
    # every way gives the same model
    assert len({rank['sum_of_weights'] for ranks in modes.values() for rank in ranks}) == 1
    assert modes['mixed'][1]['peak_models'] < modes['cpu'][1]['peak_models']


def test_teacher_checks(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    assert 'hash of a shard' in run_quick('teacher_checks.py', '--output', out)
    for steps in json.loads(out.read_text()).values():
        assert len(steps) == 3 and all(seconds > 0 for seconds in steps.values())


def test_cut_cost(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    printed = run_quick('cut_cost.py', '--work', tmp_path / 'work', '--sequences', '2', '--output', out)
    result = json.loads(out.read_text())
    cuts = {(cut['axes'], cut['scores']): cut for cut in result['cuts']}
    assert ('layer', 'perplexity') in cuts and all('compensated' in cut for cut in cuts.values())
    whole = cuts['all', 'block importance + activation']
    assert whole['cut'] != whole['compensated'] and whole['cut'] != result['source']
    assert '| all | block importance + activation |' in printed
    run_quick(
        *('cut_cost.py', '--work', tmp_path / 'work', '--sequences', '2', '--scores', 'activation', '--rotate'),
        *('--output', out),
    )
    rotated = {(cut['axes'], cut['scores']): cut['cut'] for cut in json.loads(out.read_text())['cuts']}
    assert rotated['hidden', 'activation'] != cuts['hidden', 'activation']['cut']


def test_compensation_tokens(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    printed = run_quick('compensation_tokens.py', '--work', tmp_path / 'work', '--output', out)
    for source in json.loads(out.read_text()):
        losses = [record['loss'] for record in source['compensated']]
        assert len(losses) == 8 and len({source['cut'], *losses}) == 9
    assert '| rotated | rotation |' in printed


def test_step_memory(tmp_path):
    out = tmp_path / 'results.json'
    run_alone('step_memory.py', '--tokens', '256', '--output', out)
    results = json.loads(out.read_text())
    assert results['pruning, at target']['peak'] < results['activation masking']['peak']


def test_step_profile(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    run_quick('step_profile.py', '--tokens', '256', '--output', out)
    results = json.loads(out.read_text())
    operators = [shares.pop('operators') for shares in results.values()]
    assert operators[1] > operators[2] > operators[3]  # learned masks, frozen ones, the target model
    for shares in results.values():
        whole = sum(share for name, share in shares.items() if not name.startswith(('of everything else', '(within')))
        assert whole == pytest.approx(1, abs=1e-6) and shares['matrix products'] > 0.05


def test_quality(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    arms = [
        'random initialisation',
        'one-shot taylor',
        'progressive',
        'progressive to 20%, one run',
        'mixture sheared',
        'truncation',
        'lagrangian, fading noise',
        'lagrangian, hard counts',
        'lagrangian, noise per micro-batch',
        'progressive to 20%, one run, from activation, depth first',
        'one-shot activation in three stages, compensated, 4% more steps',
    ]
    printed = run_quick('quality.py', '--work', tmp_path / 'work', '--seeds', '1', '--output', out, '--arms', *arms)
    records = json.loads(out.read_text())['records']
    assert [record['arm'] for record in records] == arms
    scratch, one_shot, progressive, *_ = (record['prune_flops'] + record['continue_flops'] for record in records)
    assert scratch < one_shot < progressive  # one step on the source, some steps on the way
    assert all(set(record['final']) == set(record['finished']) and len(record['final']) == 5 for record in records)
    assert '| one-shot taylor | 8 | 0.002 | 1 |' in printed
    assert '| source |  |  | ' in printed  # the losses by domain
    again = ('quality.py', '--work', tmp_path / 'work', '--seeds', '1', '--arms', arms[3])
    rotated = run_quick(*again, '--rotate')
    assert f'| {arms[3]}, rotated | 8 | 0.002 | 1 |' in rotated and f'| {arms[3]} | 8 ' in rotated
    assert f'| {arms[3]}, rotated, learned in 2 steps | 8 |' in run_quick(*again, '--learn', '2')


@pytest.mark.parametrize(
    ('variant', 'kept'),
    [('kept scores', {'hidden', 'layer'}), ('as it is', {'hidden'}), ('gradients of hidden dimensions', set())],
)
def test_for_which_scores_gradients_count(tmp_path, monkeypatch, variant, kept):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from quality_variants import VARIANTS

    tiny_model().save_pretrained(tmp_path)
    pruning = VARIANTS[variant]({'hidden_size': 36, 'num_hidden_layers': 2}, warmup='4ba')
    trainer = tiny_trainer(tmp_path, [pruning], batches=2)  # without evaluation data, so these scores are its own
    pruning.learner.start_from({axis: torch.rand(plan.mask_shape) for axis, plan in pruning.plans.items()})
    before = {axis: value.clone() for axis, value in pruning.learner.importance.items()}
    trainer.fit()
    assert {axis for axis, value in pruning.learner.importance.items() if torch.equal(value, before[axis])} == kept


def test_quality_after_trimming_the_vocabulary(tmp_path, run_quick):
    common, arm = ('--work', tmp_path / 'work', '--seeds', '1', '--output', tmp_path / 'out.json'), 'one-shot taylor'
    found = {}
    for tokens in ([], ['--tokens', '448']):
        run_quick('quality.py', *common, *tokens, '--arms', arm)
        (record,) = json.loads((tmp_path / 'out.json').read_text())['records']
        found[len(tokens)] = record['nats_per_byte']
    below = tmp_path / 'work' / '448-tokens'
    assert json.loads((below / 'pruned' / 'config.json').read_text())['vocab_size'] == 448
    texts = [json.loads((folder / 'held_out.json').read_text()) for folder in (below.parent, below)]
    assert texts[0] == texts[1] and found[0].keys() == found[2].keys() == texts[0].keys()
    assert found[0] != found[2] and all(0 < loss < 5 for losses in found.values() for loss in losses.values())


def test_quality_of_experts(tmp_path, run_quick):
    out, arms = tmp_path / 'results.json', ['experts, reap', 'experts to 20%, one run, from frequency']
    merged = 'experts, reap, partly merged'
    common = ('--work', tmp_path / 'work', '--seeds', '1', '--mixture', '--output', out)
    printed = run_quick('quality.py', *common, '--arms', *arms, merged)
    one_shot, progressive, taken_over = json.loads(out.read_text())['records']
    assert json.loads((tmp_path / 'work' / 'pruned' / 'config.json').read_text())['num_experts'] == 2
    # A token's way through the model costs the same whatever experts there are, but for the router.
    costs = [record['prune_flops'] + record['continue_flops'] for record in (one_shot, progressive)]
    assert costs[0] == pytest.approx(costs[1] * 9 / 8, rel=0.02)  # one shot has one step more, to choose in
    assert f'| {arms[1]} | 8 | 0.002 | 1 |' in printed
    assert taken_over['soft'] != one_shot['soft']  # the same experts, with others in them


def test_budget_error(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    run_quick('budget_error.py', '--work', tmp_path / 'work', '--output', out)
    results = json.loads(out.read_text())
    assert len(results['runs']) == 6 and all(len(run['curve']) == 6 for run in results['runs'])
    assert 0 < results['larger model']['median'] <= results['larger model']['largest']
    assert 0 < results['later tokens']['median'] <= results['later tokens']['largest']


def test_stacks(tmp_path):
    """Both sides are this interpreter."""
    out, sides = tmp_path / 'results.json', ('--stock', sys.executable, '--current', sys.executable)
    printed = run_alone('stacks.py', *sides, '--only', 'prune_step.py', 'export_memory.py', '--output', out)
    table = {row['measure']: row for row in json.loads(out.read_text())['table']}
    assert {'dense source, s', 'pruning, all kept, s', 'pruning, at target, s', 'export, peak MB'} <= set(table)
    assert 0.5 < table['export, peak MB']['current / stock'] < 2
    assert '| export, peak MB | ' in printed


def test_cut_quality(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    printed = run_quick('cut_quality.py', '--work', tmp_path / 'work', '--output', out)
    result = json.loads(out.read_text())
    assert len(result['cuts']) == 3 * (5 + 7)
    losses = {
        tuple(cut['loss'] for cut in result['cuts'] if (cut['way'], cut['hidden']) == (way, 'cut'))
        for way in ('cut', 'without rotation', 'without any compensation')
    }
    assert len(losses) == 3
    assert '| by magnitude, without either |' in printed


def test_search_order(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    printed = run_quick(
        'search_order.py', '--work', tmp_path / 'work', '--candidates', 3, '--seeds', 17, 18, '--output', out
    )
    result = json.loads(out.read_text())
    trained = [row['trained'] for row in result['candidates']]
    assert len(trained) == 3 and trained == sorted(trained) and result['seeds']['best']['17'] == trained[0]
    assert set(result['seeds']['proportional']) == {'17', '18'} and '| proportional | ' in printed


def test_cut_memory(tmp_path):
    out = tmp_path / 'results.json'
    printed = run_alone('cut_memory.py', '--output', out)
    numbers = json.loads(out.read_text())
    assert 0.2 * numbers['said'] < numbers['peak'] < numbers['said'] and '| memory, as said |' in printed
    run_alone('cut_memory.py', '--command', 'rotate', '--output', out)
    assert json.loads(out.read_text())['peak'] > numbers['weights']


def test_vocabulary(tmp_path, run_quick):
    out = tmp_path / 'results.json'
    printed = run_quick('vocabulary.py', '--work', tmp_path / 'work', '--output', out)
    source, larger, smaller, again = json.loads(out.read_text())
    assert [row['vocabulary'] for row in (source, larger, smaller)] == [512, 384, 320]
    assert source['parameters'] > larger['parameters'] > smaller['parameters']
    for name, length in source['tokens_per_byte'].items():
        assert length < larger['tokens_per_byte'][name] < smaller['tokens_per_byte'][name] < 1
        assert source['nats_per_byte'][name] == again['nats_per_byte'][name] > 0
    assert larger['checked']['words_kept'] > smaller['checked']['words_kept'] > 0
    assert '| 384 | ' in printed
