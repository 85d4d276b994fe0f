"""``llmshearing report``: the page holds what it must, is well formed, needs nothing else, and says what is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from llmshearing.cli import main
from llmshearing.metrics.names import mixture_name
from llmshearing.metrics.run_log import STATE_VERSION, RunLog, read_run
from llmshearing.reports.bars import bar_panel
from llmshearing.reports.blocks import Picture
from llmshearing.reports.kept import meaning
from llmshearing.reports.projection import projection_section
from llmshearing.reports.pruning_sections import counts_section, masks_section
from llmshearing.reports.training_sections import mixture_section, training_section
from tests.metrics.logs import pruning_record, write_log, write_run
from tests.reports.pages import PICTURES, SECTIONS, Page, folder, law  # noqa: F401


@pytest.fixture(scope='module')
def page(folder):
    return Page((folder / 'run_report' / 'report.html').read_text(encoding='utf-8'))


def test_everything_is_on_the_page(folder, page):
    chapters: dict[str, list[str]] = {}
    for tag, text in page.headings:
        if tag == 'h2':
            chapters[text] = []
        else:
            chapters[list(chapters)[-1]].append(text)
    assert chapters == SECTIONS
    files = {path.stem for path in (folder / 'run_report').glob('*.svg')}
    assert files == set(page.pictures) == {f'{run}_{name}' for run, names in PICTURES.items() for name in names}
    assert len(page.ids) == len(set(page.ids))


def test_the_page_needs_nothing_else(folder, page):
    assert page.addresses and all(a.startswith('#') and a[1:] in page.ids for a in page.addresses)
    text = (folder / 'run_report' / 'report.html').read_text()
    assert not re.search(r'https?:|src=|@import|url\(', text) and 'name="viewport"' in text
    # A picture's file is the picture of the page, and can be opened alone.
    file = (folder / 'run_report' / 'continue_projection.svg').read_text()
    assert ElementTree.fromstring(file).tag == '{http://www.w3.org/2000/svg}svg'
    assert file.replace(' xmlns="http://www.w3.org/2000/svg"', '') in text


def test_pictures_answer_to_the_mouse_with_the_logged_numbers(page):
    loss = json.loads(page.pictures['prune_eval_loss']['data-panel'])
    assert [line['n'] for line in loss['s']] == ['code', 'web <b>', 'law']
    assert loss['s'][2]['x'] == [10, 20, 30, 40] and loss['s'][2]['y'][-1] == float(f'{4 + 3 * 41**-0.5:.5g}')
    heads = json.loads(page.pictures['prune_masks_heads']['data-panel'])
    assert heads['v'][3] == [1, 1, 0, 0, 0, 0, 1, 1] and heads['g'] == [2, 4]


def test_the_numbers(page):
    assert page.row('layer', 'prune') == ['layer', 'prune', '6', '4', '4', '4.25', '4', '106.2 %']
    assert page.row('hidden_size') == ['hidden_size', '96', '64', '0.667']
    assert page.row('parameters') == ['parameters', '1,000,000', '400,000', '0.400']
    assert page.row('tokens') == ['tokens', '40,960']
    assert page.row('done') == ['done', '50.0 %'] and page.row('planned') == ['planned', '80ba']
    assert page.row('time in evaluation') == ['time in evaluation', '20.0 %']
    weight, loss = 3 / 6, 4.0 + 3.0 * 41**-0.5
    first = f'{4 + 3 * 11**-0.5:.4f}'
    assert page.row('law') == ['law', 'prune', '3.5000', first, f'{loss:.4f}', '40', f'{loss - 3.5:+.4f}', '3.5000']
    rows = [row for row in page.cells if row[:2] == ['law', 'continue'] and row[-1] == '1.2']
    assert rows == [['law', 'continue', f'{weight}', f'{loss:.5g}', '3.5', f'{loss - 3.5:.3g}', '50.0 %', '1.2']]
    assert 'Kept layers at batch 40: 0-1, 3, 5 (4 of 6; removed: 2, 4)' in page.words
    assert page.row('3', '0, 3') == ['3', '0, 3', '0-1, 6-7', '120']
    assert page.row('2') == ['2', 'removed', 'removed', 'removed']
    assert 'web <b>' in page.words  # a domain's name is text, not markup


def test_the_projected_end(page):
    # 80 batches are planned, so twice the tokens; the law's constants are above, the source's mean loss is 2.5.
    def predicted(tokens):
        return 2.5 + 0.1 + 30.0 * tokens**-0.35

    last = 3.0 + 3.0 * 41**-0.5
    row = page.row('continue', '81,920')
    assert row[2:5] == [f'{last:.4f}', f'{predicted(81920):.4f}', f'{last + predicted(81920) - predicted(40960):.4f}']
    assert row[5:] == ['2.5000', 'x2']


def test_what_a_projection_lacks_is_said(tmp_path):
    log = write_run(tmp_path)
    law(tmp_path)
    note = json.loads((tmp_path / 'continue_run.json').read_text())
    (tmp_path / 'continue_run.json').write_text(json.dumps({**note, 'elapsed_share': None}))
    projected = projection_section([read_run(log)], None)
    assert 'Nothing tells when continue is to end' in projected.blocks[-1]
    assert projected.blocks[-2].rows[1][1] == '40,960'  # at the last evaluation
    (tmp_path / 'reference_losses.json').unlink()
    projected = projection_section([read_run(log)], None)
    assert projected.blocks[0].startswith('No projection of continue: ') and 'source_losses' in projected.blocks[0]


def test_a_law_that_no_run_is_held_against_is_told(tmp_path, caplog):
    write_log(tmp_path / 'prune_metrics.jsonl', pruning=True)
    law(tmp_path)
    given = ['report', str(tmp_path), '--law', str(tmp_path / 'LAW.json')]
    assert main(given[:2]) == 0 and 'no effect' not in caplog.text
    assert main(given) == 0
    assert 'LAW.json has no effect: the law is of training after pruning, and there is none in prune_' in caplog.text
    caplog.clear()
    write_log(tmp_path / 'continue_metrics.jsonl', pruning=False)
    assert main(given) == 0 and 'no effect' not in caplog.text


def test_two_runs_in_the_same_panels(tmp_path, folder, capsys):
    other = tmp_path / 'other'
    write_run(other, offset=0.5)
    assert main(['report', str(folder), '--compare', str(other), '--out', str(tmp_path / 'both')]) == 0
    both = Page((tmp_path / 'both' / 'report.html').read_text())
    first, second = f'prune ({folder.name})', 'prune (other)'
    assert both.row('training loss')[1:] == ['4', '4.5'] and both.row('')[1:] == [first, second]
    assert both.row('layer', second)[2:4] == ['6', '4']
    assert {'prune_masks_layers_1', 'prune_masks_layers_2'} <= set(both.pictures)
    # The overlay has more ink than the single picture.
    assert (tmp_path / 'both' / 'prune_loss.svg').read_bytes() != (
        folder / 'run_report' / 'prune_loss.svg'
    ).read_bytes()
    write_log(tmp_path / 'third' / 'x_metrics.jsonl', pruning=False)
    capsys.readouterr()
    assert main(['report', str(folder), '--compare', str(tmp_path / 'third')]) == 1
    assert 'nothing to compare' in capsys.readouterr().err


def test_targets_of_two_runs_are_told_apart(tmp_path):
    for name in ('one', 'two'):
        write_log(tmp_path / f'{name}_metrics.jsonl', pruning=True)
    runs = [read_run(tmp_path / f'{name}_metrics.jsonl') for name in ('one', 'two')]
    pictures = [block for block in counts_section(runs).blocks if isinstance(block, Picture)]
    strokes = re.findall(r'stroke="(#\w+)"[^>]*stroke-dasharray="2 3"', pictures[0].svg)
    assert len(set(strokes)) == 2


def test_references_are_drawn_where_colours_tell_whose_they_are(tmp_path):
    for count, dotted in ((7, 7), (8, 0)):
        at = np.arange(3.0)
        metrics = {}
        for n in range(count):
            for kind in ('weight', 'loss', 'gap'):
                metrics[mixture_name(kind, f'd{n}')] = (at, at + n)
        run = RunLog('a', None, metrics, references={f'd{n}': 1.0 for n in range(count)})
        losses = next(b for b in mixture_section([run]).blocks if getattr(b, 'name', '') == 'domain_losses')
        assert losses.svg.count('stroke-dasharray="2 3"') == dotted
        assert losses.caption.endswith('dotted: its reference.' if dotted else 'which the table below has.')


def test_a_run_before_its_first_round_says_when_more_is_logged(tmp_path):
    write_log(tmp_path / 'x_metrics.jsonl', pruning=False, batches=1)
    lines = (tmp_path / 'x_metrics.jsonl').read_text().splitlines()
    early = [{k: v for k, v in json.loads(line).items() if 'mixture' not in k and 'time/' not in k} for line in lines]
    (tmp_path / 'x_metrics.jsonl').write_text('\n'.join(map(json.dumps, early)) + '\n')
    note = {'version': STATE_VERSION, 'batch': 0, 'elapsed_share': 0.0, 'references': {'code': 2.25, 'law': 'odd'}}
    (tmp_path / 'x_run.json').write_text(json.dumps(note))
    run = read_run(tmp_path / 'x_metrics.jsonl')
    assert run.references == {'code': 2.25}
    said = training_section([run]).blocks[-1]
    assert 'time in evaluation (dynamic_batch_loading logs it at the end of a mixing round)' in said


def test_what_only_one_of_two_runs_has_is_shown_too(tmp_path):
    for name, stages in (('one', ('prune', 'continue')), ('two', ('continue', 'distilled'))):
        for stage in stages:
            write_log(tmp_path / name / f'{stage}_metrics.jsonl', stage == 'prune', batches=12)
    assert main(['report', str(tmp_path / 'one'), '--compare', str(tmp_path / 'two')]) == 0
    page = Page((tmp_path / 'one' / 'run_report' / 'report.html').read_text())
    chapters = [text for tag, text in page.headings if tag == 'h2']
    assert sorted(chapters[:2]) == ['continue (one) and continue (two)', 'prune (one)']
    assert chapters[2:] == ['distilled (two)'] and 'distilled_loss' in page.pictures
    alone = page.words.split('chapters of their own: ')[1].split('.\n')[0]
    assert set(alone.split(', ')) == {
        str(tmp_path / 'one' / 'prune_metrics.jsonl'),
        str(tmp_path / 'two' / 'distilled_metrics.jsonl'),
    }


def test_little_is_enough_and_what_is_missing_is_said(tmp_path):
    log = tmp_path / 'm.jsonl'
    log.write_text('{"batch": 0, "loss/train/total": 3.5}\n{"batch": 1, "loss/train/total": NaN}\n')
    assert main(['report', str(log)]) == 0
    page = Page((tmp_path / 'm_report' / 'report.html').read_text())
    assert [text for _, text in page.headings] == ['m', 'Where it stands', 'Projected end', 'Training']
    assert page.row('training loss') == ['training loss', 'nan']
    for missing in ('lr_monitor', 'speed_monitor', 'LanguageCrossEntropy', 'No P2 law'):
        assert missing in page.words


@pytest.mark.parametrize('learning, words', [('progressive', 'the mask'), ('lagrangian', 'the probability')])
def test_a_mean_over_masks_is_not_called_a_probability(learning, words):
    record = {**pruning_record(live=True), 'mask_learning': learning}
    assert words in meaning(record) and ('probability' in meaning(record)) == (learning == 'lagrangian')
    captions = [block.caption for block in masks_section([RunLog('a', None, {}, pruning=record)]).blocks[1:6]]
    assert captions[0].endswith('of the parts, the mean over their units.')
    assert 'Intermediate of every layer' in captions[3] and captions[3].endswith('mean over neighbouring dimensions.')


def test_masks_of_a_running_run_come_from_its_note(tmp_path):
    log = write_log(tmp_path / 'prune_metrics.jsonl', pruning=True, batches=20)
    note = {
        'version': 1,
        'batch': 20,
        'tokens': 20480,
        'elapsed_share': 0.5,
        'max_duration': '40ba',
        'result': None,
        'source': {'parameters': 7, 'shape': None},
        'pruning': pruning_record(live=True),
    }
    (tmp_path / 'prune_run.json').write_text(json.dumps(note))
    assert main(['report', str(log)]) == 0
    words = Page((tmp_path / 'prune_report' / 'report.html').read_text()).words
    assert 'P(z > 0), the probability' in words and 'kept in the exported model' not in words


def test_every_log_has_pictures_and_anchors_of_its_own(tmp_path):
    """Names that share what stands before the first dot, that differ in marks alone, or that end like a picture."""
    names = ('llama2_1.3b', 'llama2_1.5b', 'llama2_1_3b', 'llama2_1.3b_eval')
    for name in names:
        line = {'batch': 1, 'loss/train/total': 3.5, 'metrics/eval/cc/LanguageCrossEntropy': 2.0}
        (tmp_path / f'{name}_metrics.jsonl').write_text(json.dumps(line) + '\n')
    assert main(['report', str(tmp_path)]) == 0
    page = Page((tmp_path / 'run_report' / 'report.html').read_text())
    assert len(page.ids) == len(set(page.ids)) and len(page.pictures) == 2 * len(names)
    files = sorted(path.stem for path in (tmp_path / 'run_report').glob('*.svg'))
    assert files == sorted(page.pictures) and {'llama2_1_3b_loss', 'llama2_1_5b_loss'} < set(files)


def test_metrics_are_named_as_they_are(tmp_path):
    """Marks of HTML are text on the page and in its pictures."""
    log = tmp_path / 'a_metrics.jsonl'
    odd = '<b>$\\frac{x$ &'
    metrics = [f'metrics/eval/{odd}/LanguageCrossEntropy', f'mixture/weight/{odd}', f'mixture/loss/{odd}', 'lr-$x_$']
    log.write_text(''.join(json.dumps({'batch': i, **dict.fromkeys(metrics, 0.5)}) + '\n' for i in range(3)))
    assert main(['report', str(log)]) == 0
    assert odd in Page((tmp_path / 'a_report' / 'report.html').read_text()).words
    ElementTree.fromstring(bar_panel('a', [odd, odd], {odd: [1.0, 2.0]}, 'nats'))


def test_errors_are_one_line(tmp_path, folder, capsys):
    for arguments, words in (
        (['report', str(tmp_path)], 'no *_metrics.jsonl in it'),
        (['report', str(folder), '--law', str(tmp_path / 'no.json')], 'no such file'),
        (['report', str(folder), '--out', __file__], '--out: expected a folder, and'),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert words in error and error.count('\n') == 1


def test_a_report_does_not_import_torch(folder, tmp_path):
    script = (
        'import sys; from llmshearing.cli import main; '
        f'main(["report", {str(folder / "continue_metrics.jsonl")!r}, "--out", {str(tmp_path)!r}]); '
        'sys.exit("torch" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', script], capture_output=True).returncode == 0
