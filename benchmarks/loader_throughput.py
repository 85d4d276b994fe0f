"""Samples per second of ``dynamic_text`` with changing weights beside a plain ``StreamingTextDataset``.

Same shards (uint16 tokens on the local disk), same workers, same collator, the loaders take turns. The plain loader
reads one long epoch; ``dynamic_text`` changes its weights after every round, so the pauses in between count against it
and are also stated alone: the time from the last batch of a round to the first of the next, less that of a batch.

    python benchmarks/loader_throughput.py [--quick] [--workers N] [--repeats N] [--out FILE.json]

Two minutes on 2 cores, some seconds with --quick.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from llmfoundry.data.text_data import build_text_dataloader
from streaming import MDSWriter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from llmshearing.compat.torch import shut_down_workers
from llmshearing.data.dynamic_text import build_dynamic_text_dataloader

DOMAINS = {'cc': 0.67, 'github': 0.045, 'book': 0.045, 'stackexchange': 0.02, 'wiki': 0.045, 'arxiv': 0.025, 'c4': 0.15}
VOCABULARY = 32_000


def write_shards(folder: Path, samples: int, max_seq_len: int) -> None:
    """One MDS folder per domain, of equal sizes, with random tokens, in shards of 8 MB."""
    rng = np.random.default_rng(0)
    for name in DOMAINS:
        with MDSWriter(
            out=str(folder / name), columns={'tokens': f'ndarray:uint16:{max_seq_len}'}, size_limit=8 << 20
        ) as writer:
            for _ in range(samples):
                writer.write({'tokens': rng.integers(0, VOCABULARY, max_seq_len).astype(np.uint16)})


def build(kind: str, folder: Path, settings: argparse.Namespace) -> DataLoader:
    """A fresh loader of one of the two kinds."""
    vocabulary = {f't{i}': i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token='t0')),
        unk_token='t0',
        pad_token='t0',
        eos_token='t1',
    )
    common = {
        'tokenizer': tokenizer,
        'device_batch_size': settings.batch_size,
        'drop_last': True,
        'num_workers': settings.workers,
        'pin_memory': False,
    }
    shared = {'max_seq_len': settings.max_seq_len, 'shuffle': True, 'shuffle_seed': 17}
    if kind == 'plain':
        streams = {name: {'local': str(folder / name)} for name in DOMAINS}
        return build_text_dataloader(dataset=shared | {'streams': streams}, **common).dataloader
    return build_dynamic_text_dataloader(
        dataset=shared
        | {
            'local': str(folder),
            'domains': list(DOMAINS),
            'proportions': DOMAINS,
            'round_batches': settings.round_batches,
        },
        **common,
    ).dataloader


def batches(kind: str, loader: DataLoader) -> Iterator[bool]:
    """Reads batches for ever. Tells whether a batch is the first of a round (or epoch)."""
    rng = np.random.default_rng(1)
    while True:
        for number, _ in enumerate(loader):
            yield number == 0
        if kind == 'dynamic':
            loader.dataset.rounds.set_next_weights(dict(zip(DOMAINS, rng.dirichlet(np.ones(7)), strict=True)))


def measure(kind: str, folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """Samples per second over so many rounds, after one round to warm up, and the pauses at the change of rounds."""
    loader = build(kind, folder, settings)
    stream, times, firsts = batches(kind, loader), [], []
    for _ in range(settings.round_batches):
        next(stream)
    began = last = time.perf_counter()
    for _ in range(settings.rounds * settings.round_batches):
        first = next(stream)
        now = time.perf_counter()
        (firsts if first else times).append(now - last)
        last = now
    seconds = last - began
    shut_down_workers(loader)
    samples = settings.rounds * settings.round_batches * settings.batch_size
    return {
        'samples_per_second': samples / seconds,
        'batch_seconds': statistics.median(times),
        'pauses': [first - statistics.median(times) for first in firsts],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='a small run that shows that all of it works')
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--rounds', type=int, default=4)
    parser.add_argument('--round-batches', type=int, default=400)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--max-seq-len', type=int, default=2048)
    parser.add_argument('--samples', type=int, default=12_000, help='samples per domain')
    parser.add_argument('--out', help='file for the numbers, JSON')
    settings = parser.parse_args(argv)
    if settings.quick:
        settings.repeats, settings.rounds, settings.round_batches = 1, 2, 10
        settings.batch_size, settings.max_seq_len, settings.samples = 4, 64, 200
    results: dict[str, list[dict[str, Any]]] = {'plain': [], 'dynamic': []}
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), settings.samples, settings.max_seq_len)
        for repeat in range(settings.repeats):
            for kind in ('plain', 'dynamic') if repeat % 2 == 0 else ('dynamic', 'plain'):
                results[kind].append(measure(kind, Path(folder), settings))
    speed = {kind: statistics.median(run['samples_per_second'] for run in runs) for kind, runs in results.items()}
    ratios = [
        dynamic['samples_per_second'] / plain['samples_per_second']
        for plain, dynamic in zip(results['plain'], results['dynamic'], strict=True)
    ]
    pauses = [pause for run in results['dynamic'] for pause in run['pauses']]
    summary = {
        'plain_samples_per_second': round(speed['plain']),
        'dynamic_samples_per_second': round(speed['dynamic']),
        'ratio': round(statistics.median(ratios), 3),
        'ratios': [round(ratio, 3) for ratio in sorted(ratios)],
        'batch_ms': {
            kind: round(1e3 * statistics.median(run['batch_seconds'] for run in runs), 2)
            for kind, runs in results.items()
        },
        'pause_at_change_of_round_ms': {
            'median': round(1e3 * statistics.median(pauses), 1),
            'largest': round(1e3 * max(pauses), 1),
        },
        'settings': {key: value for key, value in vars(settings).items() if key != 'out'},
    }
    text = json.dumps(summary, indent=2)
    if settings.out:
        Path(settings.out).write_text(text + '\n', encoding='utf-8')
    sys.stdout.write(text + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
