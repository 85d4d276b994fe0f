"""Reading POINTS and RUNS: every field, and one clear message for everything that is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmshearing.scaling.curves import read_curve_csv
from llmshearing.scaling.points import points_from_models, read_points
from llmshearing.scaling.run_logs import read_entry, read_runs

MODELS = [
    {'params': 7e7, 'losses': {'cc': 3.0, 'wiki': 2.8}},
    {'params': 4e8, 'losses': {'cc': 2.5, 'wiki': 2.2}},
    {'params': 1e9, 'losses': {'wiki': 2.0, 'cc': 2.3}},
]
RUN = {'params_before': 1e9, 'pruning_rate': 0.5, 'source_loss': 2.0, 'curve': [[1e8, 2.6], [2e8, 2.5]]}


def test_json_points_keep_the_order_of_models_and_domains(tmp_path):
    (tmp_path / 'points.json').write_text(json.dumps({'models': MODELS}))
    points = read_points([tmp_path / 'points.json'])
    assert list(points.losses) == ['cc', 'wiki'] and points.tokens is None
    assert points.params.tolist() == [7e7, 4e8, 1e9]
    assert points.losses['wiki'].tolist() == [2.8, 2.2, 2.0]
    assert list(read_points([tmp_path / 'points.json'], ['wiki']).losses) == ['wiki']


def test_csv_and_json_give_the_same_points_and_files_are_joined(tmp_path):
    (tmp_path / 'a.csv').write_text(
        'name, params, tokens, cc, wiki\nsmall, 70000000, 1e10, 3.0, 2.8\nmid, 400000000, 2e10, 2.5, 2.2\n'
    )
    (tmp_path / 'b.json').write_text(json.dumps({'models': [{**MODELS[2], 'tokens': 3e10, 'name': 'big'}]}))
    points = read_points([tmp_path / 'a.csv', tmp_path / 'b.json'])
    assert points.names == ['small', 'mid', 'big']
    assert points.tokens.tolist() == [1e10, 2e10, 3e10]
    assert points.losses['cc'].tolist() == [3.0, 2.5, 2.3]
    kept = points.subset([0, 2])
    assert kept.names == ['small', 'big'] and kept.losses['wiki'].tolist() == [2.8, 2.0]


def test_a_model_counts_once(tmp_path):
    """Given in two files, or written down twice; a second measurement of a size is another point."""
    (tmp_path / 'a.json').write_text(json.dumps({'models': MODELS}))
    (tmp_path / 'b.csv').write_text('name,params,cc,wiki\nother,70000000,3.1,2.9\nmid,400000000,2.5,2.2\n')
    with pytest.raises(ValueError, match=r'a.json: model 2 and .*b.csv: mid are the same model'):
        read_points([tmp_path / 'a.json', tmp_path / 'b.csv'])
    with pytest.raises(ValueError, match=r'a.json: model 1 and .*a.json: model 4 are the same.*give each model once'):
        read_points([tmp_path / 'a.json', tmp_path / 'a.json'])
    (tmp_path / 'b.csv').write_text('name,params,cc,wiki\nother,70000000,3.0,2.9\n')
    assert len(read_points([tmp_path / 'a.json', tmp_path / 'b.csv']).params) == 4


def test_models_measured_on_other_text_are_not_joined():
    measured = [{**model, 'name': f'm{i}', 'evaluation': {'cc': {'tokens': 5000}}} for i, model in enumerate(MODELS)]
    assert points_from_models(measured, 'here').names == ['m0', 'm1', 'm2']
    measured[2]['evaluation'] = {'cc': {'tokens': 3100}}
    with pytest.raises(ValueError, match="here: m0 was measured on 5000 tokens of 'cc' and m2 on 3100"):
        points_from_models(measured, 'here')
    assert points_from_models(measured, 'here', ['wiki']).names == ['m0', 'm1', 'm2']


def test_byte_order_marks_are_no_part_of_the_first_name(tmp_path):
    (tmp_path / 'a.csv').write_text('params,cc\n7e7,3.0\n', encoding='utf-8-sig')
    (tmp_path / 'a.json').write_text(json.dumps({'models': MODELS}), encoding='utf-8-sig')
    assert list(read_points([tmp_path / 'a.csv']).losses) == ['cc']
    assert list(read_points([tmp_path / 'a.json']).losses) == ['cc', 'wiki']


@pytest.mark.parametrize('tokens', [None, 2e10])
def test_models_of_one_size_differ_by_their_tokens(tmp_path, tokens):
    models = [{**MODELS[i], 'tokens': 1e10} for i in (0, 1)] + [{**MODELS[0], 'tokens': tokens or 1e10}]
    (tmp_path / 'a.json').write_text(json.dumps({'models': models}))
    if tokens:
        assert read_points([tmp_path / 'a.json']).tokens.tolist() == [1e10, 1e10, 2e10]
    else:
        with pytest.raises(ValueError, match='model 1 and .*model 3 are the same model'):
            read_points([tmp_path / 'a.json'])


def changed(index, **fields):
    models = [dict(model) for model in MODELS]
    models[index] |= fields
    return models


@pytest.mark.parametrize(
    'models, message',
    [
        ([], 'non-empty list'),
        ('text', 'non-empty list'),
        ([3], 'model 1: expected an object'),
        ([{'losses': {'cc': 1.0}}], "'params' is missing"),
        (changed(1, losses={'cc': 2.5}), "model 2 has no loss for domain 'wiki'"),
        (changed(1, losses={}), 'at least one domain'),
        (changed(1, token=3), "unknown key 'token'. Did you mean 'tokens'?"),
        (changed(1, tokens=3e9), 'model 1 has no "tokens" but model 2 has'),
        ([{**MODELS[0], 'name': '7b', 'tokens': 3e9}, {**MODELS[1], 'name': '7b'}], '7b has no "tokens" but 7b has'),
        (changed(1, params=-1), 'model 2: params must be finite and positive, got -1'),
        (changed(1, params='7B'), "model 2: params must be a positive number, got '7B'"),
        (changed(1, losses={'cc': -2.5, 'wiki': 1.0}), "model 2: loss of 'cc' must be finite and positive, got -2.5"),
        (changed(1, losses={'cc': float('nan'), 'wiki': 1.0}), "loss of 'cc' must be finite"),
        (changed(1, losses={'cc': True, 'wiki': 1.0}), "loss of 'cc' must be a positive number"),
    ],
)
def test_bad_points(models, message):
    with pytest.raises(ValueError, match=message):
        points_from_models(models, 'points')


def test_unknown_domain_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown domain 'arxiv'; the models have \['cc', 'wiki'\]"):
        points_from_models(MODELS, 'points', ['arxiv'])


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('p.json', '{"models": ', 'not JSON'),
        ('p.json', '[1]', 'expected a JSON object'),
        ('p.json', '{"runs": []}', 'got the fields'),
        ('p.csv', 'size,cc\n1,2\n', 'must name distinct columns'),
        ('p.csv', 'params,cc,cc\n1,2,3\n', 'must name distinct columns'),
        ('p.csv', 'params,cc\n1e9\n', 'line 2: expected 2 values'),
        ('p.csv', 'params,cc\n1e9,\n', "line 2: loss of 'cc' must be a positive number, got ''"),
        ('p.csv', 'params,cc\n1e9,2.0\n2e9,-1\n', "line 3: loss of 'cc'"),
        ('p.csv', '', 'must name distinct columns'),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_points([tmp_path / name])


@pytest.mark.parametrize('name', ['none.json', 'none.csv'])
def test_missing_files(tmp_path, name):
    with pytest.raises(ValueError, match='no such file'):
        read_points([tmp_path / name])


def test_runs_with_inline_and_csv_curves(tmp_path):
    (tmp_path / 'curve.csv').write_text('step,tokens,loss\n1,1e8,2.6\n2,1.5e8,\n3,2e8,2.5\n')
    content = {'runs': [RUN, {**RUN, 'curve': 'curve.csv', 'name': 'from csv'}]}
    (tmp_path / 'runs.json').write_text(json.dumps(content))
    inline, table = read_runs(tmp_path / 'runs.json')
    assert (inline.name, table.name) == ('run 1', 'from csv')
    np.testing.assert_array_equal(inline.tokens, table.tokens)
    np.testing.assert_array_equal(inline.losses, table.losses)
    assert read_curve_csv(tmp_path / 'curve.csv') == [[1e8, 2.6], [2e8, 2.5]]


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'pruning_rate': 50}, r'between 0 and 1; got 50, did you mean 0.5\?'),
        ({'pruning_rate': 1}, 'between 0 and 1'),
        ({'pruning_rate': -0.5}, 'pruning_rate must be finite and positive'),
        ({'source_loss': 0}, 'source_loss must be finite and positive'),
        ({'curve': []}, 'non-empty list'),
        ({'curve': [[1e8]]}, 'pairs'),
        ({'curve': [[0, 2.6], [1e8, 2.5]]}, 'tokens of curve point 1 must be finite and positive'),
        ({'curve': [[1e8, 2.6], [1e8, 2.5]]}, 'tokens must increase along the curve, but point 2'),
        ({'curve': [[1e8, 2.6], [2e8, -2.5]]}, 'loss of curve point 2 must be finite and positive, got -2.5'),
        ({'curve': 'missing.csv'}, 'no such file'),
        ({'params': 1e9}, "unknown key 'params'"),
    ],
)
def test_bad_runs(fields, message):
    with pytest.raises(ValueError, match=message):
        read_entry(RUN | fields, 'runs.json: run 1')


def test_runs_without_the_list_say_what_a_run_needs(tmp_path):
    (tmp_path / 'runs.json').write_text('{"models": []}')
    with pytest.raises(ValueError, match='params_before, pruning_rate, source_loss and curve'):
        read_runs(tmp_path / 'runs.json')


def test_curve_csv_needs_its_columns(tmp_path):
    (tmp_path / 'curve.csv').write_text('step,loss\n1,2.0\n')
    with pytest.raises(ValueError, match='columns named tokens and loss'):
        read_curve_csv(tmp_path / 'curve.csv')


@pytest.mark.parametrize(
    'content, message',
    [
        (
            '{"models": [{"params": ' + '9' * 400 + ', "losses": {"x": 2}}]}',
            ': model 1: params must be finite and positive',
        ),
        ('{"models": [{"params": ' + '9' * 5000 + ', "losses": {"x": 2}}]}', ' is not JSON .*digits'),
        ('[' * 100000, ' is not JSON .*recursion'),
        ('{"a":' * 100000, ' is not JSON .*recursion'),
    ],
)
def test_numbers_and_nesting_without_end(tmp_path, content, message):
    (tmp_path / 'points.json').write_text(content)
    with pytest.raises(ValueError, match=f'points.json{message}'):
        read_points([tmp_path / 'points.json'])
