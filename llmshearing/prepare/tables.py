"""Tables of what prepare wrote and of what its check found, as text."""

from __future__ import annotations

from typing import Any

__all__ = ['check_table', 'feeding_table']


def feeding_table(manifest: dict[str, Any], batch_size: int) -> str:
    """A table of what each split holds and how long it lasts.

    Args:
        manifest (dict[str, Any]): From :func:`llmshearing.prepare.pipeline.prepare`.
        batch_size (int): Sequences in a global batch.

    Returns:
        str: One row per domain and one for the total, whose last column is the number of whole batches, that is of
        training steps, in one pass over the split when domains are drawn in proportion to their size. Then how many
        documents of which domains spell special tokens, if any do.
    """
    head = ('split', 'domain', 'documents', 'tokens', 'budget', 'sequences', f'steps of {batch_size}')
    rows: list[tuple[str, ...]] = [head]
    for split, total in manifest['splits'].items():
        for name, domain in manifest['domains'].items():
            entry = domain['splits'].get(split)
            if entry is None:
                continue
            budget = entry['budget_tokens']
            missed = f'{entry["tokens"] / budget:.0%} of {budget:,}' if budget else ''
            met = '-' if budget is None else 'met' if entry['budget_met'] else missed
            rows.append(_row(split, name, entry, met, batch_size))
        rows.append(_row(split, 'all', total, '', batch_size))
    counts = {name: domain.get('special_tokens', {}).get('documents') for name, domain in manifest['domains'].items()}
    spelled = ', '.join(f'{name} {count:,}' for name, count in counts.items() if count)
    return _aligned(rows, 'llrrrrr') + (f'\ndocuments that spell special tokens: {spelled}' if spelled else '')


def check_table(found: dict[str, dict[str, Any]]) -> str:
    """One row for each folder of :func:`llmshearing.prepare.check.check`."""
    rows = [('folder', 'samples', 'shards', 'bytes', 'columns', 'checked', 'largest id')]
    for name, facts in found.items():
        columns = ', '.join(f'{column} {encoding}' for column, encoding in facts['columns'].items())
        checked = ', '.join(['size', *facts['hashes']])
        largest = '-' if facts['largest_id'] is None else f'{facts["largest_id"]:,}'
        rows.append(
            (name, f'{facts["samples"]:,}', f'{facts["shards"]:,}', f'{facts["bytes"]:,}', columns, checked, largest)
        )
    return _aligned(rows, 'lrrrllr')


def _row(split: str, domain: str, held: dict[str, Any], budget: str, batch_size: int) -> tuple[str, ...]:
    documents, tokens, samples = (held[name] for name in ('documents', 'tokens', 'samples'))
    return split, domain, f'{documents:,}', f'{tokens:,}', budget, f'{samples:,}', f'{samples // batch_size:,}'


def _aligned(rows: list[tuple[str, ...]], sides: str) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if side == 'l' else cell.rjust(width) for cell, width, side in zip(row, widths, sides)
        ).rstrip()
        for row in rows
    )
