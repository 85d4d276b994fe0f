"""What the checks of a stored teacher cost: seconds of one core per million tokens, by step and vocabulary.

    python benchmarks/teacher_checks.py [--quick] [--output FILE.json]

Takes ten seconds and 60 MB of disk; ``--quick`` takes one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming import MDSWriter

from llmshearing.data.mds import read_index
from llmshearing.data.shard_checks import verify_shard
from llmshearing.data.stored_teacher import TeacherNote, read_column, tag_of
from llmshearing.data.teacher_column import ColumnFormat, most_tokens

LENGTH = 4096


def measure(vocab_size: int, samples: int, repeats: int) -> dict[str, float]:
    """The median of each check over so many repeats."""
    form = ColumnFormat('draws', most_tokens('draws', vocab_size), vocab_size)
    note = TeacherNote('key', '', '', 'draws', form.count, vocab_size, 1.0, 17, form.width, {}, '', {})
    random = np.random.default_rng(0)
    column = form.pack(torch.rand(LENGTH), torch.from_numpy(random.integers(0, vocab_size, (LENGTH, form.count))))
    tokens = random.integers(0, vocab_size, LENGTH).astype(np.uint32)
    sample = {'tokens': tokens, 'teacher': column, 'teacher_of': tag_of(tokens, note.key, column)}
    columns = {'tokens': f'ndarray:uint32:{LENGTH}', 'teacher': form.encoding(LENGTH), 'teacher_of': 'uint64'}
    with tempfile.TemporaryDirectory() as folder:
        with MDSWriter(out=folder, columns=columns, hashes=['sha1'], size_limit=None) as writer:
            for _ in range(samples):
                writer.write(sample)
        (shard,) = read_index(folder)
        steps: dict[str, Callable[[], Any]] = {
            'hash of a shard': lambda: verify_shard(shard, 'sha1'),
            'tag of its samples': lambda: [tag_of(tokens, note.key, column) for _ in range(samples)],
            'all of its samples': lambda: [read_column(sample, tokens, note, str) for _ in range(samples)],
        }
        return {
            name: float(np.median([timed(step) for _ in range(repeats)])) / (samples * LENGTH / 1e6)
            for name, step in steps.items()
        }


def timed(step: Callable[[], Any]) -> float:
    """Processor seconds of a call."""
    began = time.process_time()
    step()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='a small run that shows that all of it works')
    parser.add_argument('--output', type=Path, help='file for the numbers, JSON')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples, repeats = (4, 1) if arguments.quick else (200, 5)
    result = {str(size): measure(size, samples, repeats) for size in (32_000, 151_936)}
    for size, steps in result.items():
        print(f'{size} tokens:', ', '.join(f'{name} {seconds:.3f} s' for name, seconds in steps.items()))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
