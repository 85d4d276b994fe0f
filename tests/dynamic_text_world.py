"""A small world for the tests of data loading: domains on disk whose tokens tell where they come from.

Sample number i of domain d is the sequence [d + 1, i % BASE, i // BASE, 0, 0, ...]: a batch can be read back into
(domain, sample) pairs.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

BASE = 64
SEQ_LEN = 8


def tiny_tokenizer(vocab_size: int = BASE) -> PreTrainedTokenizerFast:
    vocab = {f't{i}': i for i in range(vocab_size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocab, unk_token='t0')), pad_token='t0',
                                   eos_token='t1', unk_token='t0')


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
        with MDSWriter(out=str(folder / name), columns={'tokens': encoding}, hashes=['xxh64'],
                       size_limit=160 + shard_samples * width) as writer:
            for sample in range(size):
                tokens = tokens_of(domain, sample, seq_len)
                stored = tokens.tobytes() if encoding == 'bytes' else tokens.astype(encoding.split(':')[1])
                writer.write({'tokens': stored})
    return folder


def read_back(batch: Any) -> list[tuple[int, int]]:
    """(domain, sample) of each row of a batch."""
    rows = batch['input_ids'].tolist()
    return [(row[0] - 1, row[1] + BASE * row[2]) for row in rows]
