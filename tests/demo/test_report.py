"""The report: every number reaches the page, pictures are drawn, bad data is refused before anything is written."""

import copy
import json

import pytest
from matplotlib.image import imread

from llmshearing.demo.report import _fenced, write_report
from llmshearing.demo.report_plots import plot_masks


def report_data():
    steps = list(range(0, 41, 4))
    domains = ('code', 'docs', 'law')

    def axis(source, target):
        schedule = [source - (source - target) * min(1.0, step / 20) for step in steps]
        return {
            'source': source,
            'target': target,
            'schedule': schedule,
            'expected': [count + 0.125 for count in schedule],
            'hard': [count + 0.25 for count in schedule],
        }

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

    results = {
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
            'continued': [{'prompt': 'code ', 'continuation': '```python\nx\n```'}],
        },
        'seconds': {'harvest': 4.25, 'prune': 61.0, 'continue': 120.5},
        'peak_memory_bytes': 5_250_000_000,
    }
    metrics = {
        'pruning_steps': steps,
        'axes': {'layer': axis(12, 8), 'hidden': axis(768, 512), 'kv_group': axis(3, 2)},
        'mixture': {
            'continued': {
                'steps': [0, 10, 20],
                'weights': {'code': [0.5, 0.3, 0.2], 'docs': [0.3, 0.3, 0.3], 'law': [0.2, 0.4, 0.5]},
            }
        },
    }
    return results, metrics


def test_the_page_holds_the_numbers(tmp_path):
    page = write_report(tmp_path / 'report', *report_data()).read_text(encoding='utf-8')
    for line in (
        '# Tiny, pruned to 40,000,000 parameters',
        "40% of the source's 100,000,000 parameters",
        '| num_hidden_layers | 12 | 8 | 0.67 |',
        '| size on disk, MB | 400 | 160 | 0.40 |',
        '| reading, tokens/s | 800 | 2,000 | 2.50 |',
        '| docs | 2.000 | 6.222 | 3.500 | 6.000 |',
        '| **mean** | **2.000** | **6.222** | **4.000** | **6.000** |',
        # Honest where continuing did not help: law is worse than from scratch.
        'in 2 of 3 domains (mean 4.000 against 6.000), and +2.000 nats per token away from the source',
        'Pruning alone leaves 6.222',
        'pruning: 4,096; continued: 81,920; scratch: 81,920',
        '| hidden | 768 | 512 | 512.1 | 512.2 |',
        '| law | 0.200 | 0.500 |',
        '| **total** | **3 min 05 s** |',
        '| harvest | 4.2 s |',
        '5.25 GB',
    ):
        assert line in page, line


def test_pictures_are_there_and_not_empty(tmp_path):
    page = write_report(tmp_path, *report_data()).read_text(encoding='utf-8')
    for name in ('losses.png', 'masks.png', 'mixture.png'):
        assert f']({name})' in page
        image = imread(tmp_path / name)
        assert image.shape[1] > 800 and (image[..., :3].min(axis=-1) < 0.9).mean() > 0.02
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'losses.png',
        'masks.png',
        'mixture.png',
        'report.json',
        'report.md',
    ]


@pytest.mark.parametrize('series', ['schedule', 'expected', 'hard'])
def test_every_series_of_the_masks_is_drawn(tmp_path, series):
    metrics = report_data()[1]
    plot_masks(tmp_path / 'before.png', metrics['pruning_steps'], metrics['axes'])
    metrics['axes']['layer'][series][5] -= 0.5
    plot_masks(tmp_path / 'after.png', metrics['pruning_steps'], metrics['axes'])
    assert (imread(tmp_path / 'before.png') != imread(tmp_path / 'after.png')).any()


def test_the_saved_data_gives_the_same_report(tmp_path):
    first = write_report(tmp_path / 'a', *report_data())
    data = json.loads((tmp_path / 'a' / 'report.json').read_text(encoding='utf-8'))
    assert write_report(tmp_path / 'b', **data).read_bytes() == first.read_bytes()
    assert (tmp_path / 'a' / 'masks.png').read_bytes() == (tmp_path / 'b' / 'masks.png').read_bytes()


def test_fence_is_longer_than_the_backticks_inside():
    assert _fenced('a ```` b') == '`````text\na ```` b\n`````'
    assert _fenced('plain') == '```text\nplain\n```'


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda r, m: r.pop('tokens'), r"results lacks \['tokens'\]"),
        (lambda r, m: r['losses'].pop('scratch'), r"results\['losses'\] lacks \['scratch'\]"),
        (lambda r, m: r['losses']['pruned'].pop('law'), r"results\['losses'\]\['pruned'\] lacks \['law'\]"),
        (lambda r, m: r['models']['result'].pop('shape'), r"results\['models'\]\['result'\] lacks \['shape'\]"),
        (lambda r, m: m['axes']['hidden'].pop('hard'), r"metrics\['axes'\]\['hidden'\] lacks \['hard'\]"),
        (lambda r, m: m['axes']['layer']['expected'].pop(), r"\('layer', 'expected'\) has 10 values for 11 steps"),
        (lambda r, m: m['mixture']['continued']['weights']['law'].pop(), r"\('continued', 'law'\) has 2 values for 3"),
        (lambda r, m: m['mixture'].clear(), 'at least one domain, one pruned axis and one stage'),
    ],
)
def test_incomplete_data_is_refused(tmp_path, change, message):
    results, metrics = copy.deepcopy(report_data())
    change(results, metrics)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / 'report', results, metrics)
    assert not (tmp_path / 'report').exists()
