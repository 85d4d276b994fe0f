"""Runs of different vocabularies are compared by byte of text, or not at all; all others as they were logged."""

import json

import pytest

from llmshearing.cli import main
from llmshearing.metrics.run_log import STATE_VERSION
from tests.metrics.logs import DOMAINS, write_log
from tests.reports.pages import Page

SIZES = dict.fromkeys(DOMAINS, 4.0)


def compared(folder, *notes):
    for name, note in zip('ab', notes):
        write_log(folder / name / 'x_metrics.jsonl', pruning=False, offset=float(name == 'b'))
        (folder / name / 'LAW.json').write_text('{}')
        (folder / name / 'reference_losses.json').write_text('{"reference_losses": {"law": 3.5}}')
        if note is not None:
            (folder / name / 'x_run.json').write_text(json.dumps({'version': STATE_VERSION, 'tokenizer': note}))
    assert main(['report', str(folder / 'a'), '--compare', str(folder / 'b'), '--out', str(folder / 'out')]) == 0
    return Page((folder / 'out' / 'report.html').read_text())


def test_losses_are_by_byte_where_both_know_the_bytes(tmp_path):
    page = compared(
        tmp_path,
        {'vocabulary': 'one', 'bytes_per_token': SIZES},
        {'vocabulary': 'other', 'bytes_per_token': dict.fromkeys(DOMAINS, 5.0)},
    )
    assert [text for tag, text in page.headings if tag == 'h2'] == ['x (a) and x (b)']
    assert 'x (a) and x (b) have different vocabularies, so losses are per byte' in page.words
    losses = [float(page.row('law', f'x ({run})')[4]) for run in 'ab']
    plain = [4 + offset + 3 * 41**-0.5 for offset in (0, 1)]
    assert losses == pytest.approx([plain[0] / 4, plain[1] / 5], abs=1e-4)
    assert page.row('law', 'x (a)')[2] == page.row('law', 'x (a)')[-1] == f'{3.5 / 4:.4f}'
    assert 'nats per byte of text' in page.words and 'nats per token' not in page.words
    assert {'x_eval_loss', 'x_domain_losses', 'x_domain_gaps'} <= set(page.pictures)
    assert 'x_loss' not in page.pictures and 'Projected end' not in page.words


@pytest.mark.parametrize('sizes', [{}, {'law': 5.0}, None])
def test_losses_that_cannot_be_compared_are_drawn_apart(tmp_path, sizes):
    page = compared(
        tmp_path, {'vocabulary': 'one', 'bytes_per_token': SIZES}, {'vocabulary': 'other', 'bytes_per_token': sizes}
    )
    assert [text for tag, text in page.headings if tag == 'h2'] == ['x (a)', 'x (b)']
    assert 'their losses cannot be compared' in page.words and 'nats per token' in page.words


@pytest.mark.parametrize('other', [{'vocabulary': 'one', 'bytes_per_token': {}}, None])
def test_one_vocabulary_or_none_that_is_noted_is_compared_as_it_is(tmp_path, other):
    page = compared(tmp_path, {'vocabulary': 'one', 'bytes_per_token': SIZES}, other)
    assert [text for tag, text in page.headings if tag == 'h2'] == ['x (a) and x (b)']
    assert 'vocabularies' not in page.words and 'x_loss' in page.pictures
