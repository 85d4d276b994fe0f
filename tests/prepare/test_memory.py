"""Memory of prepare does not follow the size of the input, neither here nor in the workers."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmshearing.prepare import pipeline
from llmshearing.prepare import plan as prepare_plan
from llmshearing.prepare.pipeline import prepare
from llmshearing.prepare.pool import WorkerPool
from tests.prepare.prepare_inputs import set_piece_bytes

WORDS = [f'counterproductivelylongword{i}' for i in range(1000)]


def _peak(pid: int | str) -> int:
    """Largest resident memory of a process, in bytes."""
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith('VmHWM'):
            return int(line.split()[1]) << 10
    raise ValueError('the system does not tell')


def _write(path: Path, size: int) -> str:
    rng, written = random.Random(size), 0
    with open(path, 'w') as file:
        while written < size:
            written += file.write(f'{{"text": "{written} {" ".join(rng.choices(WORDS, k=12))}"}}\n')
    return str(path)


def test_memory_is_flat(tmp_path, monkeypatch):
    reset = Path('/proc/self/clear_refs')
    try:
        reset.write_text('5')  # sets the peak to what is in use now
    except OSError:
        pytest.skip('peak memory cannot be reset on this system')
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(['</s>', *WORDS])}, unk_token='</s>'))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token='</s>').save_pretrained(tmp_path / 'tokenizer')
    in_workers, leave = [], WorkerPool.__exit__

    def watched(self, *error):
        in_workers.extend(_peak(process.pid) for process in self.processes)
        leave(self, *error)

    set_piece_bytes(monkeypatch, 1 << 17)
    monkeypatch.setattr(WorkerPool, '__exit__', watched)
    monkeypatch.setattr(prepare_plan, 'BLOCK', 4096)  # what is large for large inputs only, made small
    monkeypatch.setattr(pipeline, 'mark_duplicates', partial(prepare_plan.mark_duplicates, bucket=4096))
    spec = {'tokenizer': str(tmp_path / 'tokenizer'), 'max_seq_len': 64, 'shard_size': '64kb'}
    here = []
    for run, size in enumerate((1 << 20, 3 << 20, 15 << 20)):  # the first fills caches
        path = _write(tmp_path / f'{run}.jsonl', size)
        reset.write_text('5')
        before = _peak('self')
        prepare({**spec, 'out': str(tmp_path / f'out{run}'), 'domains': {'d': path}}, workers=1)
        here.append(_peak('self') - before)
    # Twelve megabytes more, 35,000 documents: a third of a byte for each byte, or 100 for each document, would show.
    assert here[2] - here[1] < 3 << 20
    assert in_workers[2] - in_workers[1] < 3 << 20
