"""A made-up run with its page, which is read back; the fixture is imported by the tests that use it."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from llmshearing.cli import main
from tests.metrics.logs import write_run

SECTIONS = {
    'prune': [
        'Where it stands',
        'Source beside result',
        'Target, expected and hard counts',
        'Penalty and multipliers',
        'Masks, and what is kept',
        'Data mixture',
        'Training',
    ],
    'continue': ['Where it stands', 'Projected end', 'Source beside result', 'Data mixture', 'Training'],
}
OF_EVERY_RUN = (
    'mixture_weights domain_losses domain_gaps data_shares passes loss eval_loss learning_rate throughput eval_share'
)
OF_PRUNING = (
    'counts_layer counts_hidden counts_kv_group counts_intermediate sparsity penalty multipliers_lambda '
    'multipliers_phi masks_layers masks_kv_heads masks_heads masks_intermediate masks_hidden'
)
PICTURES = {'prune': f'{OF_PRUNING} {OF_EVERY_RUN}'.split(), 'continue': f'projection {OF_EVERY_RUN}'.split()}
VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}


class Page(HTMLParser):
    """Reads a page: its headings, tables and pictures; fails on tags that do not close."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.headings: list[tuple[str, str]] = []
        self.cells: list[list[str]] = []
        self.pictures: dict[str, dict] = {}
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.words = ''
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[key] for key in ('src', 'href') if key in attributes]
        self.ids += [attributes['id']] if 'id' in attributes else []
        if tag == 'figure':
            self.pictures[attributes['id']] = {}
        if tag == 'svg':
            list(self.pictures.values())[-1].update(attributes)
        if tag == 'tr':
            self.cells.append([])
        if tag in ('th', 'td'):
            self.cells[-1].append('')
        if tag in ('h2', 'h3'):
            self.headings.append((tag, ''))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        if self.open and self.open[-1] in ('th', 'td'):
            self.cells[-1][-1] += data
        if self.open and self.open[-1] in ('h2', 'h3'):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)

    def row(self, *start: str) -> list[str]:
        return next(row for row in self.cells if row[: len(start)] == list(start))


def law(folder, beta=0.35):
    """A law as `budget fit` writes it, around the made-up runs."""
    constants = {'N_C': 0.0, 'D_C': 30.0, 'E': 0.1, 'alpha': 0.3, 'beta': beta, 'gamma': 0.0, 'delta': 0.0}
    content = {
        'law': 'p2',
        'version': 1,
        'constants': constants,
        'leave_one_out': [],
        'single_size': False,
        'single_rate': False,
        'range': {'params_before': [5e5, 1e6], 'pruning_rate': [0.3, 0.7], 'tokens': [1e3, 4.096e4]},
    }
    (folder / 'LAW.json').write_text(json.dumps(content))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A run's folder with its report in ``run_report``."""
    folder = tmp_path_factory.mktemp('run')
    write_run(folder)
    law(folder)
    assert main(['report', str(folder)]) == 0
    return folder
