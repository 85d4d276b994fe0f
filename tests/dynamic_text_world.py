"""A small world for the tests of data loading: domains on disk whose tokens tell where they come from.

Sample number i of domain d is the sequence [d + 1, i % BASE, i // BASE, 0, 0, ...]: a batch can be read back into
(domain, sample) pairs.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter
from streaming.base.shared import SharedMemory
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from llmshearing.data.dynamic_text import DynamicTextLoader, build_dynamic_text_dataloader

BASE = 64
LOADERS: list[DynamicTextLoader] = []  # what `close_loaders` closes after a test
MEMORY: list[SharedMemory] = []
SEQ_LEN = 8
FORK = get_context('fork')


def tiny_tokenizer(vocab_size: int = BASE) -> PreTrainedTokenizerFast:
    vocab = {f't{i}': i for i in range(vocab_size)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocab, unk_token='t0')), pad_token='t0', eos_token='t1', unk_token='t0'
    )


def tokens_of(domain: int, sample: int, seq_len: int = SEQ_LEN) -> np.ndarray:
    return np.array([domain + 1, sample % BASE, sample // BASE] + [0] * (seq_len - 3))


def write_domains(
    folder: Path,
    sizes: dict[str, int],
    shard_samples: int = 7,
    seq_len: int = SEQ_LEN,
    encoding: str = 'ndarray:uint16',
) -> Path:
    """Writes one MDS folder per domain. Shards hold about ``shard_samples`` samples."""
    for domain, (name, size) in enumerate(sizes.items()):
        width = seq_len * (8 if encoding == 'bytes' else 2) + 16
        with MDSWriter(
            out=str(folder / name),
            columns={'tokens': encoding},
            hashes=['xxh64'],
            size_limit=160 + shard_samples * width,
        ) as writer:
            for sample in range(size):
                tokens = tokens_of(domain, sample, seq_len)
                stored = tokens.tobytes() if encoding == 'bytes' else tokens.astype(encoding.split(':')[1])
                writer.write({'tokens': stored})
    return folder


def read_back(batch: Any) -> list[tuple[int, int]]:
    """(domain, sample) of each row of a batch."""
    rows = batch['input_ids'].tolist()
    return [(row[0] - 1, row[1] + BASE * row[2]) for row in rows]


def dynamic_loader(folder: Path, domains: Any, workers: int = 0, batch_size: int = 4, **dataset: Any) -> Any:
    """The loader of ``build_dynamic_text_dataloader`` over a folder of ``write_domains``."""
    config = {
        'local': str(folder),
        'domains': domains,
        'round_batches': 5,
        'max_seq_len': SEQ_LEN,
        'shuffle_seed': 17,
        'shuffle_block_size': 16,
    } | dataset
    loader = build_dynamic_text_dataloader(
        tiny_tokenizer(), batch_size, config, num_workers=workers, pin_memory=False
    ).dataloader
    LOADERS.append(loader)
    return loader


def close_loaders() -> None:
    """Ends the workers of all loaders made so far, and gives back all of Streaming's shared memory with its open files.

    Streaming does that when the process exits, which is right for training and too late for hundreds of tests.
    """
    while LOADERS:
        LOADERS.pop().shut_down()
    while MEMORY:
        memory = MEMORY.pop()
        memory.cleanup()
        atexit.unregister(memory.cleanup)


def _remember(memory: SharedMemory, *args: Any, **kwargs: Any) -> None:
    _make_memory(memory, *args, **kwargs)
    MEMORY.append(memory)


_make_memory = SharedMemory.__init__
SharedMemory.__init__ = _remember


def next_mixture(round_number: int) -> dict[str, float]:
    """A mixture of domains a, b, c that differs from round to round; some of them leave a domain out."""
    return {'a': 1 + round_number % 3, 'b': round_number % 2, 'c': 0.3}


def serve_rounds(loader: Any, rounds: int) -> list[list[tuple[int, int]]]:
    """Batches of so many rounds, the mixture changing after each as a callback would change it."""
    batches = []
    for _ in range(rounds):
        for batch in loader:
            batches.append(read_back(batch))
        standing = loader.dataset.rounds
        if standing.next_weights is None:
            standing.set_next_weights(next_mixture(standing.state.round))
    return batches


def on_ranks(ranks: int, function: Any, *args: Any) -> None:
    """Runs ``function(rank, *args)`` in one process per rank, with gloo. Raises if one fails."""
    with socket.socket() as opened:
        opened.bind(('127.0.0.1', 0))
        port = opened.getsockname()[1]

    def run(rank: int) -> None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_WORLD_SIZE=str(ranks),
            NODE_RANK='0',
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
        )
        function(rank, *args)

    processes = [FORK.Process(target=run, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 90
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            break  # the others would wait for it for ever
        time.sleep(0.02)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    assert codes == [0] * ranks
