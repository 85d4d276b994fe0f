"""Runs of this suite as points for the law: from the metrics file and what lies beside it, to a prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmshearing.cli import main
from llmshearing.compat.transformers import TRANSFORMERS_5
from llmshearing.metrics.run_log import mean_loss
from llmshearing.models.shapes import shape_of
from llmshearing.scaling.law_file import read_law
from llmshearing.scaling.run_logs import cost_per_token, curve_of_log, post_training_log, read_all_runs, read_entry
from tests.metrics.logs import DOMAINS, TOKENS_PER_BATCH, eval_loss, write_log, write_run
from tests.models.tiny import tiny_model


def p2(size, rate, source, tokens):
    return source + rate**1.1 * (0.12 * (size / 1e6) ** -0.3 + 30 * tokens**-0.35)


def case_of(run):
    return run.params_before, run.pruning_rate, run.source_loss


def write_lawful_run(folder, size, rate, source):
    """A run whose evaluation loss follows the law, noted by run_report; two evaluators, around the mean."""
    folder.mkdir(parents=True)
    with (folder / 'continue_metrics.jsonl').open('w') as file:
        for batch in range(101):
            file.write(json.dumps({'batch': batch, 'time/token': 4096 * batch}) + '\n')
            if batch and batch % 20 == 0:
                for name, offset in (('code', -0.5), ('web', 0.5)):
                    loss = p2(size, rate, source, 4096 * batch) + offset
                    file.write(json.dumps({'batch': batch, f'metrics/eval/{name}/LanguageCrossEntropy': loss}) + '\n')
    (folder / 'continue_run.json').write_text(
        json.dumps({'version': 1, 'source': {'parameters': size}, 'result': {'parameters': size * (1 - rate)}})
    )
    (folder / 'reference_losses.json').write_text(
        json.dumps(
            {'reference_losses': {'code': source - 0.5, 'web': source + 0.5}, 'source': 'measured', 'params': size}
        )
    )


@pytest.fixture
def folders(tmp_path):
    cases = [(size, rate, 3.0 + 0.2 * i) for i, size in enumerate((1e6, 2e6, 4e6)) for rate in (0.3, 0.6)]
    for i, case in enumerate(cases):
        write_lawful_run(tmp_path / f'run{i}', *case)
    return [str(tmp_path / f'run{i}') for i in range(len(cases))]


def test_small_runs_predict_a_large_one(tmp_path, folders, capsys):
    law = str(tmp_path / 'law.json')
    assert main(['budget', 'fit', *folders, '--output', law]) == 0
    assert 'run3/continue: 5 points' in capsys.readouterr().out
    predicted = float(read_law(law)[0].predict(16e6, 0.5, 2.5, 2e6))
    assert predicted == pytest.approx(p2(16e6, 0.5, 2.5, 2e6), rel=0.002)
    # The same runs by their metrics files, or named in RUNS.json, are the same points.
    (tmp_path / 'runs.json').write_text(
        json.dumps({'runs': [{'log': f'run{i}/continue_metrics.jsonl'} for i in range(6)]})
    )
    by_folder, by_list = read_all_runs(folders), read_all_runs([str(tmp_path / 'runs.json')])
    by_file = read_all_runs([f'{folder}/continue_metrics.jsonl' for folder in folders])
    for one, two, three in zip(by_folder, by_list, by_file):
        assert one.losses.tolist() == two.losses.tolist() == three.losses.tolist()
        assert one.name == two.name == three.name
        assert case_of(one) == case_of(two)


def test_losses_per_token_of_two_vocabularies_are_not_fitted_together(tmp_path, folders, capsys):
    for folder, vocabulary in zip(folders, ['a', 'a', None, 'b']):
        note = Path(folder) / 'continue_run.json'
        note.write_text(json.dumps({**json.loads(note.read_text()), 'tokenizer': {'vocabulary': vocabulary}}))
    assert main(['budget', 'fit', *folders, '--output', str(tmp_path / 'law.json')]) == 1
    assert 'run0/continue and run3/continue have different vocabularies' in capsys.readouterr().err
    (tmp_path / 'runs.json').write_text(
        json.dumps({'runs': [{'log': f'run{i}/continue_metrics.jsonl'} for i in range(6)]})
    )
    assert main(['budget', 'fit', str(tmp_path / 'runs.json'), '--output', str(tmp_path / 'law.json')]) == 1
    assert 'fit a law to those of each' in capsys.readouterr().err
    assert len(read_all_runs([*folders[:3], *folders[4:]])) == 5


def test_a_run_counts_once(tmp_path, folders, capsys):
    """By its folder and by its log, as a copy, and in a list that names the log twice with other numbers."""

    def error_of(*sources):
        assert main(['budget', 'fit', *sources, '--output', str(tmp_path / 'law.json')]) == 1
        return capsys.readouterr().err

    log = f'{folders[1]}/continue_metrics.jsonl'
    assert f'{log} is given twice' in error_of(*folders, log)
    copy = shutil.copytree(folders[2], tmp_path / 'copy')
    words = f'{folders[2]}/continue_metrics.jsonl and {copy}/continue_metrics.jsonl are the same run'
    assert words in error_of(*folders, str(copy))
    rows = [{'log': 'run0/continue_metrics.jsonl'}, {'log': 'run0/../run0/continue_metrics.jsonl', 'pruning_rate': 0.4}]
    (tmp_path / 'runs.json').write_text(json.dumps({'runs': rows}))
    assert 'run0/continue_metrics.jsonl is given twice' in error_of(str(tmp_path / 'runs.json'))


def test_the_curve(tmp_path):
    write_run(tmp_path)
    run = curve_of_log(tmp_path / 'continue_metrics.jsonl')
    assert run.tokens.tolist() == [TOKENS_PER_BATCH * b for b in (10, 20, 30, 40)]
    assert run.losses == pytest.approx([np.mean([eval_loss(b, i) for i in range(3)]) for b in (10, 20, 30, 40)])
    assert case_of(run) == (1e6, pytest.approx(0.6), 2.5)


def test_the_curve_ends_where_the_run_that_goes_on_is(tmp_path):
    write_run(tmp_path)
    path = tmp_path / 'continue_metrics.jsonl'
    again = [line for line in path.read_text().splitlines() if 20 <= json.loads(line)['batch'] < 25]
    path.write_text(path.read_text() + '\n'.join(again) + '\n')
    assert curve_of_log(path).tokens.tolist() == [TOKENS_PER_BATCH * b for b in (10, 20)]


def test_the_mean_takes_batches_where_all_were_measured():
    losses = {'a': (np.array([1.0, 2, 4]), np.array([1.0, 2, 3])), 'b': (np.array([2.0, 3, 4]), np.array([4.0, 9, 5]))}
    batches, values = mean_loss(losses)
    assert batches.tolist() == [2, 4] and values.tolist() == [3, 4]
    assert mean_loss({'a': (np.array([1.0]), np.array([1.0])), 'b': (np.array([2.0]), np.array([1.0]))}) is None
    assert mean_loss({}) is None


def test_parameters_from_the_pruned_folder(tmp_path):
    """Without run_report's note the counts come from the exported folder, and are those of the models themselves."""
    log = write_log(tmp_path / 'continue_metrics.jsonl', pruning=False)
    target = tiny_model('llama', num_hidden_layers=2, intermediate_size=24)
    models = {'source': tiny_model('llama'), 'target': target}
    target.config.save_pretrained(tmp_path / 'pruned')
    (tmp_path / 'pruned' / 'pruning.json').write_text(
        json.dumps({f'{name}_shape': shape_of(model.config).as_dict() for name, model in models.items()})
    )
    counts = [sum(p.numel() for p in model.parameters()) for model in models.values()]
    row = {'log': log.name, 'pruned': 'pruned', 'source_losses': dict.fromkeys(DOMAINS, 2.0)}
    run = read_entry(row, 'here', tmp_path)
    assert case_of(run) == (counts[0], pytest.approx(1 - counts[1] / counts[0]), 2.0)
    # What is given goes before what is found.
    run = read_entry({**row, 'params_before': 7.0, 'pruning_rate': 0.25, 'source_loss': 1.5}, 'here', tmp_path)
    assert case_of(run) == (7.0, 0.25, 1.5)


def test_a_record_of_a_newer_release_is_no_place_to_count_by(tmp_path):
    log = write_log(tmp_path / 'continue_metrics.jsonl', pruning=False)
    (tmp_path / 'pruned').mkdir()
    (tmp_path / 'pruned' / 'pruning.json').write_text('{"version": 2}')
    with pytest.raises(ValueError, match='pruning.json is of version 2; this release reads version 1'):
        read_entry({'log': log.name, 'pruned': 'pruned', 'source_loss': 2.0}, 'here', tmp_path)


def test_which_log_of_a_folder(tmp_path):
    write_run(tmp_path)
    write_log(tmp_path / 'scratch_metrics.jsonl', pruning=False)
    assert post_training_log(tmp_path).name == 'continue_metrics.jsonl'  # run_report noted that it had a source
    (tmp_path / 'continue_run.json').unlink()
    with pytest.raises(ValueError, match='found .*continue_metrics.jsonl.*; name the file'):
        post_training_log(tmp_path)


@pytest.mark.parametrize(
    'change, words',
    [
        ({'log': 'prune_metrics.jsonl'}, 'is a log of pruning'),
        ({'log': 'none.jsonl'}, 'no such file'),
        ({'log': 3}, '"log" must be the path'),
        ({'curve': []}, 'beside "log": unknown key \'curve\''),
        ({'source_losses': 'none.json'}, 'the loss of the source is missing'),
        ({'source_losses': {'law': 2.0}}, "has no loss of the source for 'code'"),
        ({'source_losses': 'predicted.json'}, 'predicted for a target'),
        ({'log': 'bare.jsonl', 'pruned': 'nowhere'}, 'pruning.json: no such file'),
        ({'log': 'two/bare.jsonl', 'source_loss': 2}, 'how many parameters were there'),
        ({'log': 'noeval.jsonl'}, 'LanguageCrossEntropy of all its evaluators'),
    ],
)
def test_what_is_missing_is_asked_for(tmp_path, change, words):
    write_run(tmp_path)
    (tmp_path / 'predicted.json').write_text('{"reference_losses": {}, "extrapolation": {}}')
    for path in ('bare.jsonl', 'two/bare.jsonl'):
        write_log(tmp_path / path, pruning=False)
    (tmp_path / 'noeval.jsonl').write_text('{"batch": 0, "time/token": 0}\n{"batch": 1, "time/token": 10}\n')
    with pytest.raises(ValueError, match=words):
        read_entry({'log': 'continue_metrics.jsonl', **change}, 'row', tmp_path)


def test_costs_measured_in_runs(tmp_path, folders, capsys):
    write_run(tmp_path / 'both')
    prune, after = (str(tmp_path / 'both' / f'{name}_metrics.jsonl') for name in ('prune', 'continue'))
    # time/total is 40 / 80 after the last batch, the 40th of 1024 tokens each; and 25 / 80 after the 25th of a run that
    # was killed in the 26th.
    assert cost_per_token(prune) == pytest.approx(1 / 80 / TOKENS_PER_BATCH)
    killed = write_log(tmp_path / 'killed' / 'm.jsonl', pruning=True, batches=25, ended=False)
    with killed.open('a') as file:
        file.write(json.dumps({'batch': 25, 'time/token': 25 * TOKENS_PER_BATCH}) + '\n')
    assert cost_per_token(killed) == pytest.approx(1 / 80 / TOKENS_PER_BATCH)
    law = str(tmp_path / 'law.json')
    assert main(['budget', 'fit', *folders, '--output', law]) == 0
    case = ['budget', 'plan', law, '--params-before', '2e6', '--pruning-rate', '0.5']
    case += ['--source-loss', '3', '--total-cost', '1e6']
    capsys.readouterr()
    assert main([*case, '--pruning-cost', prune, '--continue-cost', after]) == 0
    output = capsys.readouterr().out
    assert output.startswith('cost per token: 1.221e-05 pruning, 1.221e-05 continued (x1), measured')
    assert 'total cost 1e+06' in output
    assert main([*case, '--pruning-cost', prune]) == 1
    assert 'different units' in capsys.readouterr().err
    assert main([*case, '--pruning-cost', 'much']) == 1
    assert "must be a positive number or a metrics file (.jsonl), got 'much'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="add Composer's callback speed_monitor"):
        cost_per_token(f'{folders[0]}/continue_metrics.jsonl')


def test_the_cost_is_that_of_a_real_run(tmp_path):
    """The time and the tokens that Composer itself counted, of a run that has ended."""
    from composer.callbacks import SpeedMonitor

    from llmshearing.metrics.logger import MetricsFile
    from tests.tiny_run import tiny_source, tiny_trainer

    path = tmp_path / 'continue_metrics.jsonl'
    trainer = tiny_trainer(
        tiny_source(tmp_path / 'source'),
        None,
        batches=2,
        loggers=[MetricsFile(str(path))],
        callbacks=[SpeedMonitor(time_unit='seconds')],
    )
    trainer.fit()
    trainer.close()
    timestamp = trainer.state.timestamp
    assert cost_per_token(path) == pytest.approx(timestamp.total_wct.total_seconds() / timestamp.token.value, rel=1e-3)


def test_a_source_with_layers_of_several_kinds_is_counted_or_asked_for(tmp_path):
    """The cut model's layers do not say of which kinds those were that went."""
    log = write_log(tmp_path / 'continue_metrics.jsonl', pruning=False)
    kinds = ['linear_attention', 'full_attention'] * 2
    target = tiny_model('qwen3_5_text', num_hidden_layers=2, layer_types=kinds[:2]) if TRANSFORMERS_5 else None
    if target is None:
        pytest.skip('transformers 4 has no family with layers of several kinds')
    shape = shape_of(target.config)
    shapes = {'source_shape': {**shape.as_dict(), 'num_hidden_layers': 4}, 'target_shape': shape.as_dict()}
    target.config.save_pretrained(tmp_path / 'pruned')
    row = {'log': log.name, 'pruned': 'pruned', 'source_losses': dict.fromkeys(DOMAINS, 2.0)}
    (tmp_path / 'pruned' / 'pruning.json').write_text(json.dumps(shapes))
    with pytest.raises(ValueError, match='kinds of the layers that went .* give "params_before"'):
        read_entry(row, 'here', tmp_path)
    (tmp_path / 'pruned' / 'pruning.json').write_text(json.dumps({**shapes, 'source_parameters': 123456}))
    assert read_entry(row, 'here', tmp_path).params_before == 123456
