"""What a search says of its candidates, against values by hand."""

import dataclasses

import pytest

from llmshearing.models.shapes import ModelShape
from llmshearing.search.result import Candidate, SearchResult


def result(losses):
    """A search whose candidates have such mean losses, cut and trained; None where one was not trained."""
    shape = ModelShape(2, 32, 4, 2, 64, 8)
    speed = {'forward': 1.0, 'generate': 1.0}
    curves = [[] if after is None else [{'step': 1, 'tokens': 1, 'losses': {'text': after}}] for _, after in losses]
    return SearchResult(
        [Candidate(shape, '1M', 1000, {'text': cut}, speed, False, curve) for (cut, _), curve in zip(losses, curves)],
        {'text': 1.0},
    )


@pytest.mark.parametrize(
    'losses, expected',
    [
        ([(5.0, 2.0), (6.0, 2.1), (7.0, 2.4), (8.0, 2.5)], 1.0),
        ([(5.0, 2.5), (6.0, 2.4), (7.0, 2.1), (8.0, 2.0)], -1.0),
        ([(5.0, 2.1), (6.0, 2.0), (7.0, 2.4), (8.0, 2.5)], 0.8),  # 1 - 6 * 2 / (4 * 15)
        ([(5.0, 2.1), (6.0, 2.0), (7.0, 2.4), (8.0, 2.5), (4.0, None)], 0.8),
        ([(5.0, 2.0), (5.0, 2.1), (7.0, 2.4)], 0.866),  # ranks 1.5, 1.5, 3 and 1, 2, 3
    ],
)
def test_the_correlation_of_both_orders_by_hand(losses, expected):
    found, low, high = result(losses).order_agreement('1M')
    assert found == pytest.approx(expected, abs=1e-3)
    assert -1 <= low <= found + 1e-9 and found - 1e-9 <= high <= 1
    assert low == high or abs(expected) < 1  # candidates drawn anew keep a perfect order


def test_the_interval_narrows_with_more_candidates():
    few = [(float(i), 0.1 * (i + (i % 2) * 3)) for i in range(5)]
    many = [(float(i), 0.1 * (i + (i % 2) * 3)) for i in range(40)]
    (_, low, high), (_, lower, higher) = result(few).order_agreement('1M'), result(many).order_agreement('1M')
    assert higher - lower < (high - low) / 2
    assert f'({lower:.2f} to {higher:.2f}' in '\n'.join(result(many).lines())


def test_two_candidates_have_no_order_to_compare():
    assert result([(5.0, 2.0), (6.0, 2.1)]).order_agreement('1M') is None


def test_training_that_does_harm_is_told():
    harmed = '\n'.join(result([(5.0, 2.0), (2.0, 2.5), (6.0, 2.1)]).lines())
    assert (
        '1 of the trained candidates ended above where their cuts began' in harmed and 'lower --learning-rate' in harmed
    )
    assert 'began' not in '\n'.join(result([(5.0, 2.0), (6.0, 2.1)]).lines())


def test_an_end_that_is_left_open_is_explained():
    trained = result([(5.0, 2.0), (6.0, 2.1)])
    assert 'left open' not in '\n'.join(trained.lines())  # nobody asked
    open_end = dataclasses.replace(trained, tokens=10**9)
    assert 'the end of 2 candidates is left open: their losses do not keep falling' in '\n'.join(open_end.lines())


def test_how_fast_the_fastest_is_where_none_is_fast_enough():
    slow = dataclasses.replace(result([(5.0, 2.0), (6.0, 2.1)]), latency=10.0)  # a token takes 1,000 ms
    assert '1M: no candidate is fast enough: the fastest takes 1,000.0 ms per token' in '\n'.join(slow.lines())


def test_the_orders_of_two_budgets_are_not_mixed():
    """A smaller budget loses more before and after training, which says nothing of the order within one."""
    large = result([(5.0, 2.5), (6.0, 2.4), (7.0, 2.1), (8.0, 2.0)])
    small = [
        dataclasses.replace(
            each,
            budget='2M',
            losses={'text': each.cut_loss - 4},
            curve=[{**each.curve[0], 'losses': {'text': each.trained_loss - 1}}],
        )
        for each in large.candidates
    ]
    both = dataclasses.replace(large, candidates=[*large.candidates, *small])
    assert both.order_agreement('1M')[0] == both.order_agreement('2M')[0] == pytest.approx(-1)
    said = [line for line in both.lines() if 'order of 4 candidates before and after training' in line]
    assert [line.partition(':')[0] for line in said] == ['1M', '2M']
    assert set(both.as_record()['order_agreement']) == {'1M', '2M'}


def test_what_others_measured_of_such_a_shape_stands_below_the_target():
    found = dataclasses.replace(result([(5.0, 2.0)]), source=ModelShape(4, 32, 4, 2, 64, 8), source_parameters=3000)
    *_, last, layers, parameters = found.lines()
    assert last == '      intermediate_size: 64'
    assert layers.startswith('guidance: 50% of the layers go') and 'arXiv' in layers
    assert parameters.startswith('guidance: 67% of the parameters go') and 'llmshearing search' not in layers


def test_the_columns_of_large_models_stand_below_their_heads():
    shape = ModelShape(24, 2048, 16, 16, 5504, 128)
    curve = [{'step': 1, 'tokens': 1, 'losses': {'text': 9.5}}]
    each = Candidate(shape, '1.3e9', 1_299_999_999, {'text': 10.25}, {'generate': 12.5}, True, curve)
    _, head, row = SearchResult([each], {'text': 1.0}).table()
    columns = {'parameters': '1,299,999,999', 'cut': '10.250', 'trained': '9.500', 'tokens/s': '12.5'}
    for title, value in columns.items():
        assert head.index(title) + len(title) == row.index(value) + len(value), title


def test_what_is_proposed_is_told_text_by_text():
    curve = [{'step': 2, 'tokens': 80, 'losses': {'code': 2.5, 'prose': 3.5}}]
    shape, speed = ModelShape(2, 32, 4, 2, 64, 8), {'forward': 1.0, 'generate': 1.0}
    both = Candidate(shape, '1M', 1000, {'code': 3.0, 'prose': 4.0}, speed, True, curve)
    source = {'code': 1.25, 'prose': 2.25}
    lines = SearchResult([both], source).lines()
    assert [line.split() for line in lines if line.startswith(('  code', '  prose'))] == [
        ['code', '1.250', 'to', '3.000,', 'trained', '2.500'],
        ['prose', '2.250', 'to', '4.000,', 'trained', '3.500'],
    ]
    cut = SearchResult([dataclasses.replace(both, curve=[])], source).lines()
    assert ['code', '1.250', 'to', '3.000'] in [line.split() for line in cut]
    assert not [line for line in result([(5.0, 2.0)]).lines() if line.startswith('  text')]  # in the table already


def test_losses_that_tie_have_no_order():
    assert result([(5.0, 2.0), (5.0, 2.0), (5.0, 2.0)]).order_agreement('1M') is None
