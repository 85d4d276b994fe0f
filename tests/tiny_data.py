"""Prepared splits of tiny domains for :func:`tests.tiny_run.tiny_source`'s tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from llmshearing.prepare.pipeline import prepare

DOMAINS = ('python', 'api_docs', 'descriptions', 'licences')


def tiny_data(work: Path, max_seq_len: int = 16, domains: Sequence[str] = DOMAINS, documents: int = 150) -> Path:
    """Writes text of counted words per domain and prepares it with the tokenizer in ``work/source``."""
    text = work / 'text'
    text.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(domains):
        draw = random.Random(number)
        with (text / f'{name}.jsonl').open('w') as file:
            for _ in range(documents):
                start, step = draw.randrange(94), number + 1
                words = ' '.join(f'w{(start + step * i) % 94}' for i in range(draw.randrange(20, 60)))
                file.write(json.dumps({'text': words}) + '\n')
    prepare(
        {
            'tokenizer': str(work / 'source'),
            'max_seq_len': max_seq_len,
            'out': str(work / 'data'),
            'domains': {name: {'path': str(text / f'{name}.jsonl')} for name in domains},
            'splits': {'eval': {'fraction': 0.1}, 'prune': {'fraction': 0.45}, 'continue': {}},
        },
        progress=False,
    )
    return work / 'data'
