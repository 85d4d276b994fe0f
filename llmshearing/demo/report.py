"""The demo's report: one markdown page and three pictures from plain data.

The page is written from numbers that were measured elsewhere (``measure.py``, the training logs) and are JSON-able, so
a report can be written again from its saved data. It states what was reached and what was not in the same breath: the
loss that pruning alone leaves, and the same shape trained from random initialisation, stand beside the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from llmshearing.demo.report_plots import MODEL_COLOURS, MODEL_LABELS, plot_losses, plot_masks, plot_mixture

REPORT, DATA = 'report.md', 'report.json'
LOSSES_PNG, MASKS_PNG, MIXTURE_PNG = 'losses.png', 'masks.png', 'mixture.png'


class ModelFacts(TypedDict):
    """Size and speed of a model folder; ``shape`` has Hugging Face's names. From ``measure.describe_model``."""

    parameters: int
    bytes_on_disk: int
    forward_tokens_per_second: float
    generate_tokens_per_second: float
    shape: dict[str, int]


class Sample(TypedDict):
    """A prompt and its greedy continuation."""

    prompt: str
    continuation: str


class Results(TypedDict):
    """What came out.

    ``models`` has the keys ``source`` and ``result``. ``losses`` maps source, pruned, continued and scratch to domain
    to nats per token. ``tokens`` maps a stage to the tokens it was trained on. ``samples`` maps a model to its samples,
    and ``seconds`` a phase to its time, in the order in which they ran.
    """

    source_name: str
    models: dict[str, ModelFacts]
    losses: dict[str, dict[str, float]]
    tokens: dict[str, int]
    samples: dict[str, list[Sample]]
    seconds: dict[str, float]
    peak_memory_bytes: int


class AxisCounts(TypedDict):
    """Units of one prunable axis, per row: before, after, and three series over ``Metrics.pruning_steps``.

    ``schedule`` is the count the constraint asks for at that step, ``expected`` the mean over rows of the sum of
    P(z>0), ``hard`` the mean over rows of the number of gates above one half.
    """

    source: int
    target: int
    schedule: list[float]
    expected: list[float]
    hard: list[float]


class Mixture(TypedDict):
    """Domain weights of one stage: ``steps`` at which they begin to hold, and a series per domain."""

    steps: list[int]
    weights: dict[str, list[float]]


class Metrics(TypedDict):
    """What happened on the way: mask counts per axis, and mixture weights per stage."""

    pruning_steps: list[int]
    axes: dict[str, AxisCounts]
    mixture: dict[str, Mixture]


def check_report_data(results: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Checks keys and lengths before anything is drawn.

    Raises:
        ValueError: something is missing, or series that belong together differ in length; it is named.
    """

    def need(mapping: Mapping[str, Any], keys: Any, where: str) -> None:
        missing = [key for key in keys if key not in mapping]
        if missing:
            raise ValueError(f'report data: {where} lacks {missing}; it has {list(mapping)}')

    need(results, Results.__annotations__, 'results')
    need(metrics, Metrics.__annotations__, 'metrics')
    need(results['models'], ('source', 'result'), "results['models']")
    for name in ('source', 'result'):
        need(results['models'][name], ModelFacts.__annotations__, f"results['models'][{name!r}]")
    need(results['losses'], MODEL_COLOURS, "results['losses']")
    domains = list(results['losses']['source'])
    if not domains or not metrics['axes'] or not metrics['mixture']:
        raise ValueError(
            'report data: need at least one domain, one pruned axis and one stage with mixture weights, '
            f'got {domains}, {list(metrics["axes"])} and {list(metrics["mixture"])}'
        )
    for name in MODEL_COLOURS:
        need(results['losses'][name], domains, f"results['losses'][{name!r}]")
    series = {}
    for name, counts in metrics['axes'].items():
        need(counts, AxisCounts.__annotations__, f"metrics['axes'][{name!r}]")
        series |= {(name, key): (counts[key], metrics['pruning_steps']) for key in ('schedule', 'expected', 'hard')}
    for name, stage in metrics['mixture'].items():
        need(stage, Mixture.__annotations__, f"metrics['mixture'][{name!r}]")
        series |= {(name, domain): (weights, stage['steps']) for domain, weights in stage['weights'].items()}
    for where, (values, steps) in series.items():
        if len(values) != len(steps) or not steps:
            raise ValueError(f'report data: {where} has {len(values)} values for {len(steps)} steps; give one for each')


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table; all columns but the first are aligned right."""
    rule = ['---', *['---:'] * (len(header) - 1)]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [header, rule, *rows])


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    fence = '`' * max([3, *(len(run) + 1 for run in re.findall('`+', text))])
    return f'{fence}text\n{text}\n{fence}'


def _duration(seconds: float) -> str:
    return f'{int(seconds) // 60} min {int(seconds) % 60:02d} s' if seconds >= 60 else f'{seconds:.1f} s'


def _size_table(source: ModelFacts, result: ModelFacts) -> str:
    rows = [(key, source['shape'][key], result['shape'][key], '{:,.0f}') for key in source['shape']]
    rows += [
        ('parameters (tied embeddings once)', source['parameters'], result['parameters'], '{:,.0f}'),
        ('size on disk, MB', source['bytes_on_disk'] / 1e6, result['bytes_on_disk'] / 1e6, '{:,.0f}'),
        ('reading, tokens/s', source['forward_tokens_per_second'], result['forward_tokens_per_second'], '{:,.0f}'),
        ('generating, tokens/s', source['generate_tokens_per_second'], result['generate_tokens_per_second'], '{:,.1f}'),
    ]
    return _table(
        ['', 'source', 'result', 'ratio'],
        [[name, form.format(a), form.format(b), f'{b / a:.2f}'] for name, a, b, form in rows],
    )


def _loss_section(results: Results) -> list[str]:
    losses = results['losses']
    domains = list(losses['source'])
    rows = [[domain, *(f'{losses[model][domain]:.3f}' for model in MODEL_COLOURS)] for domain in domains]
    mean = {model: sum(losses[model][domain] for domain in domains) / len(domains) for model in MODEL_COLOURS}
    rows.append(['**mean**', *(f'**{mean[model]:.3f}**' for model in MODEL_COLOURS)])
    better = [domain for domain in domains if losses['continued'][domain] < losses['scratch'][domain]]
    verdict = (
        f'The result is better than the same shape from random initialisation in {len(better)} of '
        f'{len(domains)} domains (mean {mean["continued"]:.3f} against {mean["scratch"]:.3f}), and '
        f'{mean["continued"] - mean["source"]:+.3f} nats per token away from the source. Pruning alone leaves '
        f'{mean["pruned"]:.3f}.'
    )
    tokens = '; '.join(f'{stage}: {count:,}' for stage, count in results['tokens'].items())
    return [
        '## Loss on held-out text',
        verdict,
        f'Training tokens: {tokens}.',
        f'![losses]({LOSSES_PNG})',
        _table(['nats per token', *(MODEL_LABELS[model] for model in MODEL_COLOURS)], rows),
    ]


def _mask_section(metrics: Metrics) -> list[str]:
    rows = [
        [
            name,
            f'{counts["source"]:,}',
            f'{counts["target"]:,}',
            f'{counts["expected"][-1]:,.1f}',
            f'{counts["hard"][-1]:,.1f}',
        ]
        for name, counts in metrics['axes'].items()
    ]
    note = (
        "Units kept per row (a row is the hidden vector, the layers, or one layer's groups, heads or intermediate "
        'dimensions); the last two columns are from the last step of pruning, before exactly the target is cut.'
    )
    return [
        '## How the masks met their targets',
        f'![masks]({MASKS_PNG})',
        note,
        _table(['axis', 'source', 'target', 'expected count', 'gates above one half'], rows),
    ]


def _mixture_section(metrics: Metrics) -> list[str]:
    parts = ['## Mixture weights', f'![mixture weights]({MIXTURE_PNG})']
    for name, stage in metrics['mixture'].items():
        rows = [[domain, f'{weights[0]:.3f}', f'{weights[-1]:.3f}'] for domain, weights in stage['weights'].items()]
        parts.append(_table([name, 'first', 'last'], rows))
    return parts


def _sample_section(samples: Mapping[str, list[Sample]]) -> list[str]:
    parts = ['## Generated text', 'Greedy continuations; the bar `|` marks the end of the prompt.']
    for model, items in samples.items():
        parts.append(f'**{MODEL_LABELS.get(model, model)}**')
        parts += [_fenced(f'{item["prompt"]}|{item["continuation"]}') for item in items]
    return parts


def _cost_section(results: Results) -> list[str]:
    rows = [[phase, _duration(seconds)] for phase, seconds in results['seconds'].items()]
    rows.append(['**total**', f'**{_duration(sum(results["seconds"].values()))}**'])
    return [
        '## Time and memory',
        _table(['phase', 'time'], rows),
        f'Peak memory of any one process: {results["peak_memory_bytes"] / 1e9:.2f} GB.',
    ]


def write_report(out_dir: Path, results: Results, metrics: Metrics) -> Path:
    """Writes ``report.md``, its pictures and its data (``report.json``) into a folder.

    Args:
        out_dir: folder; files of the same names are replaced.
        results: losses, sizes, samples and costs, see ``Results``.
        metrics: series over the steps, see ``Metrics``.

    Returns:
        Path of the markdown page.

    Raises:
        ValueError: data missing or of differing lengths; nothing is written then.
    """
    check_report_data(results, metrics)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    data = json.dumps({'results': results, 'metrics': metrics}, indent=1)
    (out_dir / DATA).write_text(data + '\n', encoding='utf-8')
    plot_losses(out_dir / LOSSES_PNG, results['losses'])
    plot_masks(out_dir / MASKS_PNG, metrics['pruning_steps'], metrics['axes'])
    plot_mixture(out_dir / MIXTURE_PNG, metrics['mixture'])
    source, result = results['models']['source'], results['models']['result']
    share = result['parameters'] / source['parameters']
    parts = [
        f'# {results["source_name"]}, pruned to {result["parameters"]:,} parameters',
        f"{share:.0%} of the source's {source['parameters']:,} parameters. Speed: float32, two threads, batch 1, on "
        'the machine that made this report.',
        _size_table(source, result),
        *_loss_section(results),
        *_mask_section(metrics),
        *_mixture_section(metrics),
        *_sample_section(results['samples']),
        *_cost_section(results),
    ]
    page = out_dir / REPORT
    page.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')
    return page
