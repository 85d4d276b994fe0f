"""The demo's report: every number reaches the page, and the page can be made again."""

from __future__ import annotations

from llmshearing.cli import main
from llmshearing.demo.run import write_report
from tests.metrics.logs import write_run


def results():
    domains = ('code', 'docs', 'law')

    def facts(scale, layers):
        return {
            'parameters': int(1e8 * scale),
            'bytes_on_disk': int(4e8 * scale),
            'forward_tokens_per_second': 800 / scale,
            'generate_tokens_per_second': 30 / scale,
            'shape': {'num_hidden_layers': layers, 'hidden_size': 64 * layers},
        }

    def losses(*values):
        return dict(zip(domains, values))

    return {
        'source_name': 'Tiny',
        'models': {'source': facts(1.0, 12), 'result': facts(0.4, 8)},
        'losses': {
            'source': losses(1.0, 2.0, 3.0),
            'pruned': losses(5.111, 6.222, 7.333),
            'continued': losses(2.5, 3.5, 6.0),
            'scratch': losses(6.5, 6.0, 5.5),
        },
        'tokens': {'pruning': 4096, 'continued': 81920, 'scratch': 81920},
        'samples': {
            'source': [{'prompt': 'one ', 'continuation': 'two'}],
            'continued': [{'prompt': 'code ', 'continuation': '```python\nx<y\n```'}],
        },
        'seconds': {'harvest': 4.25, 'prune': 61.0, 'continue': 120.5},
        'peak_memory_bytes': 5_250_000_000,
    }


def test_the_page_holds_the_numbers_and_the_runs(tmp_path):
    write_run(tmp_path)
    page = write_report(tmp_path, results())
    text = page.read_text(encoding='utf-8')

    def row(*cells):
        return '<tr>' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>'

    for words in (
        row('num hidden layers', '12', '8', '0.67'),
        row('bytes on disk', '400.00 MB', '160.00 MB', '0.40'),
        row('forward tokens per second', '800', '2,000', '2.50'),
        row('docs', '2.000', '6.222', '3.500', '6.000'),
        row('mean', '2.000', '6.222', '4.000', '6.000'),
        # Honest where continuing did not help: law is worse than from scratch.
        'Better than the same shape from random weights in 2 of 3 domains.',
        'Mean loss 4.000 against 6.000, and +2.000 nats per token away from the source. Pruning alone leaves 6.222',
        'pruning: 4,096; continued: 81,920; scratch: 81,920',
        row('total', '3 min 06 s'),
        row('harvest', '4.2 s'),
        '5.25 GB',
        'one |two',
        'x&lt;y',
        'Exported at its target.',
    ):
        assert words in text, words
    # The saved data gives the same page again.
    assert main(['report', str(tmp_path), '--out', str(tmp_path / 'again')]) == 0
    assert (tmp_path / 'again' / 'report.html').read_bytes() == page.read_bytes()
    assert (tmp_path / 'again' / 'models_models.svg').is_file()
