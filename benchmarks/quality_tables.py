"""The results of ``quality.py`` as markdown: by arm, and by domain."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from quality_source import DOMAINS

from llmshearing.utils.markdown import markdown_table

__all__ = ['domain_table', 'mean', 'table']


def mean(values: Mapping[str, float]) -> float:
    return statistics.fmean(values.values())


def _by_arm(records: list[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    """Seeds of one arm, source, budget and learning rate together."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for record in records:
        source = record.get('source', 'source')
        name = record['arm'] if source == 'source' else f'{record["arm"]}, {source}'
        name += ', bfloat16' * record.get('bfloat16', False)
        groups.setdefault((name, record['steps'], record.get('rate', '')), []).append(record)
    return groups


def domain_table(records: list[dict[str, Any]], source: Mapping[str, float]) -> str:
    """Losses at the end by domain as markdown: means over seeds, the best first."""
    rows = [('source', '', '', source)]
    for (name, steps, rate), group in _by_arm(records).items():
        rows.append((name, steps, rate, {d: statistics.fmean(r['final'][d] for r in group) for d in DOMAINS}))
    rows.sort(key=lambda row: mean(row[-1]))
    cells = [[*map(str, arm), *(f'{losses_at_end[d]:.2f}' for d in DOMAINS)] for *arm, losses_at_end in rows]
    return markdown_table(['arm', 'steps', 'rate', *DOMAINS], cells)


def table(records: list[dict[str, Any]], source: Mapping[str, float]) -> str:
    """The results as markdown: means over seeds and domains."""
    by_arm = _by_arm(records)
    header = ['arm', 'steps', 'rate', 'seeds', 'soft', 'finished', 'end, mean', 'between seeds', 'nats per byte']
    header += ['spread of gaps', 'TFLOP']
    rows = []
    ordered = sorted(by_arm.items(), key=lambda item: statistics.fmean(mean(r['final']) for r in item[1]))
    for (name, steps, rate), group in ordered:
        ends = [mean(r['final']) for r in group]
        soft = f'{statistics.fmean(mean(r["soft"]) for r in group):.3f}' if 'soft' in group[0] else ''
        gaps = statistics.fmean(statistics.pstdev(r['final'][d] - source[d] for d in DOMAINS) for r in group)
        cost = statistics.fmean(r['prune_flops'] + r['continue_flops'] for r in group) / 1e12
        finished = statistics.fmean(mean(r['finished']) for r in group)
        end, between = f'{statistics.fmean(ends):.3f}', f'{max(ends) - min(ends):.3f}' if len(ends) > 1 else ''
        measured = [mean(r['nats_per_byte']) for r in group if 'nats_per_byte' in r]
        byte = f'{statistics.fmean(measured):.4f}' if measured else ''
        arm = [name, str(steps), str(rate), str(len(group))]
        rows.append([*arm, soft, f'{finished:.3f}', end, between, byte, f'{gaps:.3f}', f'{cost:.2f}'])
    return markdown_table(header, rows)
