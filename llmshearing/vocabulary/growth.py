"""How many tokens a text takes with fewer of them: tokens per byte, measured by tokenizing, never estimated.

A byte of text is the same whatever the tokenizer is, a token is not. So tokens are told per byte, and losses of models
with different vocabularies are compared in nats per byte: the sum over a text's tokens by its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from llmshearing.reports.lines import Line, line_panel
from llmshearing.reports.svg import COLOURS, GREY, as_file
from llmshearing.utils.markdown import markdown_table
from llmshearing.vocabulary.choice import Ranking
from llmshearing.vocabulary.rewriting import with_new_ids_in_tokenizer
from llmshearing.vocabulary.text import DomainText

__all__ = ['growth_picture', 'growth_table', 'measure_growth', 'size_table', 'sizes_between', 'tokens_per_byte']

POINTS = 8


def tokens_per_byte(tokenizer: Tokenizer, text: DomainText) -> float:
    """Tokens by bytes of a domain's held-out passages."""
    encoded = tokenizer.encode_batch_fast(text.held_out, add_special_tokens=False)
    return sum(len(one) for one in encoded) / max(text.size, 1)


def sizes_between(least: int, present: int, chosen: int) -> list[int]:
    """Vocabulary sizes to measure, evenly spaced in their logarithms; the least, the chosen and the present too."""
    spaced = np.geomspace(max(least, 1), present, POINTS).round().astype(int)
    return sorted({least, chosen, present, *(int(size) for size in spaced if least <= size <= present)})


def measure_growth(
    content: Mapping[str, Any], ranking: Ranking, sizes: Sequence[int], texts: Sequence[DomainText]
) -> dict[str, list[float]]:
    """Tokens per byte of each domain at each size; ``content`` is the source's tokenizer as JSON."""
    result: dict[str, list[float]] = {text.name: [] for text in texts}
    for size in sizes:
        tokenizer = Tokenizer.from_str(json.dumps(with_new_ids_in_tokenizer(content, ranking.kept(size))))
        for text in texts:
            result[text.name].append(tokens_per_byte(tokenizer, text))
    return result


def growth_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Tokens per byte by domain as markdown, with the source's tokenizer and with the trimmed one."""
    rows = []
    for name, value in before.items():
        growth = 100 * (after[name] / value - 1) if value else 0.0
        rows.append([name, f'{value:.4f}', f'{after[name]:.4f}', f'{growth:+.2f} %'])
    return markdown_table(['domain', 'tokens per byte before', 'after', 'more tokens'], rows)


def size_table(sizes: Sequence[int], measured: Mapping[str, Sequence[float]]) -> str:
    """Tokens per byte by vocabulary size and domain as markdown, from :func:`measure_growth` at these sizes."""
    rows = [
        [f'{size:,}', *(f'{values[number]:.4f}' for values in measured.values())] for number, size in enumerate(sizes)
    ]
    return markdown_table(['tokens', *measured], rows)


def growth_picture(sizes: Sequence[int], measured: Mapping[str, Sequence[float]], chosen: int) -> str:
    """Tokens per byte against rising vocabulary sizes, as SVG, with the chosen size marked."""
    x = np.array(sizes, np.float64)
    lines = [
        Line(name, x, np.array(values, np.float64), COLOURS[number % len(COLOURS)], width=2.2)
        for number, (name, values) in enumerate(measured.items())
    ]
    highest = max(max(values) for values in measured.values())
    lines.append(Line(f'{chosen:,} tokens', np.array([chosen, chosen]), np.array([0.0, highest]), GREY, ':'))
    return as_file(line_panel('tokens per byte', lines, 'tokens per byte', from_zero=True, x_label='vocabulary size'))
