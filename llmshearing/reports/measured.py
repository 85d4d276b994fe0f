"""What was measured on the finished models, as ``llmshearing demo`` leaves it in ``report/report.json``.

Losses, sizes and speeds of source and result, what they write, and what it took.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmshearing.metrics.run_log import NATS
from llmshearing.reports.bars import bar_panel
from llmshearing.reports.blocks import Block, Code, Picture, Section, Table, Verdict, duration, number
from llmshearing.utils.numbers import with_unit

__all__ = ['MODEL_NAMES', 'measured_sections']

MODEL_NAMES = {
    'source': 'source',
    'pruned': 'pruned, as exported',
    'continued': 'pruned, then continued',
    'scratch': 'same shape from random weights',
}


def measured_sections(measured: Mapping[str, Any]) -> list[Section]:
    """Sections of what is there, in the order in which a person asks; none where nothing was measured."""
    sections = {
        'Measured on the finished models': _losses(measured.get('losses') or {}) + _facts(measured.get('models') or {}),
        'Generated text': _samples(measured.get('samples') or {}),
        'Time and memory': _costs(measured),
    }
    return [Section(title, blocks) for title, blocks in sections.items() if blocks]


def _losses(losses: Mapping[str, Mapping[str, float]]) -> list[Block]:
    models = [name for name in MODEL_NAMES if name in losses]
    if not models:
        return []
    domains = list(losses[models[0]])
    bars = {MODEL_NAMES[name]: [losses[name].get(domain, float('nan')) for domain in domains] for name in models}
    mean = {name: sum(losses[name].values()) / max(len(losses[name]), 1) for name in models}
    blocks: list[Block] = []
    if {'source', 'continued', 'scratch'} <= set(models):
        better = sum(losses['continued'][domain] < losses['scratch'][domain] for domain in domains)
        blocks.append(
            Verdict(
                f'Better than the same shape from random weights in {better} of {len(domains)} domains.',
                f'Mean loss {mean["continued"]:.3f} against {mean["scratch"]:.3f}, and '
                f'{mean["continued"] - mean["source"]:+.3f} {NATS} away from the source.'
                + (f' Pruning alone leaves {mean["pruned"]:.3f}.' if 'pruned' in mean else ''),
                'good' if better == len(domains) else 'open',
            )
        )
    rows = [[domain, *(f'{values[i]:.3f}' for values in bars.values())] for i, domain in enumerate(domains)]
    rows.append(['mean', *(f'{mean[name]:.3f}' for name in models)])
    panel = bar_panel('held-out loss', domains, bars, NATS)
    return [
        *blocks,
        Picture('models', 'Held-out loss of source and results, per domain.', panel),
        Table([['held-out loss', *bars], *rows]),
    ]


def _facts(models: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    if not {'source', 'result'} <= set(models):
        return []
    source, result = ({**facts, **(facts.get('shape') or {})} for facts in (models['source'], models['result']))

    def text(key: str, value: float) -> str:
        return with_unit(value, 'B') if key.startswith('bytes') else number(value)

    rows = [
        [key.replace('_', ' '), text(key, old), text(key, result[key]), f'{result[key] / old:.2f}' if old else '-']
        for key, old in source.items()
        if isinstance(old, (int, float)) and result.get(key)
    ]
    return [Table([['measured on this machine', 'source', 'result', 'ratio'], *rows])]


def _samples(samples: Mapping[str, list[Mapping[str, str]]]) -> list[Block]:
    blocks: list[Block] = ['Greedy continuations; the bar | marks the end of the prompt.'] if samples else []
    for model, items in samples.items():
        blocks.append(f'{MODEL_NAMES.get(model, model)}:')
        blocks += [Code(f'{item["prompt"]}|{item["continuation"]}') for item in items]
    return blocks


def _costs(measured: Mapping[str, Any]) -> list[Block]:
    seconds, peak = measured.get('seconds') or {}, measured.get('peak_memory_bytes')
    blocks: list[Block] = []
    if seconds:
        rows = [[phase, duration(value)] for phase, value in seconds.items()]
        blocks.append(Table([['phase', 'time'], *rows, ['total', duration(sum(seconds.values()))]]))
    if measured.get('tokens'):
        blocks.append(f'Training tokens: {"; ".join(f"{k}: {v:,}" for k, v in measured["tokens"].items())}.')
    return blocks + ([f'Peak memory of any one process: {peak / 1e9:.2f} GB.'] if peak else [])
