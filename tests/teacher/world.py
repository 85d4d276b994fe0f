"""Tiny prepared data, a tiny teacher, and both together: what the tests of stored teachers share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from streaming import MDSWriter
from transformers import AutoModelForCausalLM

from llmshearing.data.dynamic_text import build_dynamic_text_dataloader
from llmshearing.data.fingerprint import describe_tokenizer
from llmshearing.data.mds import read_index, read_rows
from llmshearing.teacher.settings import TeachSettings
from llmshearing.teacher.teach import teach
from tests.dynamic_text_world import LOADERS
from tests.tiny_run import Sequences, tiny_source, tiny_tokenizer

LENGTH = 16
SAMPLES = {'a': 23, 'b': 12}


def make_world(folder: Path) -> Path:
    """``teacher``, ``student`` and ``data`` (splits ``train`` and ``eval``, several shards each, a manifest)."""
    tiny_source(folder / 'teacher', num_hidden_layers=3, seed=1)
    tiny_source(folder / 'student')
    for split, share in (('train', 1), ('eval', 3)):
        for number, (domain, samples) in enumerate(SAMPLES.items()):
            write(folder / 'data' / split / domain, rows(samples // share, number))
    manifest = {
        'key': 'tiny',
        'tokenizer': {'name': 'tiny', **describe_tokenizer(tiny_tokenizer())},
        'domains': {
            domain: {'splits': {'train': {'samples': samples}, 'eval': {'samples': samples // 3}}}
            for domain, samples in SAMPLES.items()
        },
    }
    (folder / 'data' / 'manifest.json').write_text(json.dumps(manifest))
    return folder


def rows(samples: int, seed: int = 0) -> np.ndarray:
    return Sequences(samples, seed=seed).ids.numpy()


def write(folder: Path, tokens: np.ndarray, encoding: str = f'ndarray:uint16:{LENGTH}', **options: Any) -> Path:
    """MDS shards of five samples each."""
    width = LENGTH * (8 if encoding == 'bytes' else 2) + 4
    writer = MDSWriter(
        out=str(folder), columns={'tokens': encoding}, hashes=['sha1'], size_limit=190 + 5 * width, **options
    )
    with writer:
        for row in tokens:
            stored = row.astype(np.int64).tobytes() if encoding == 'bytes' else row.astype(np.uint16)
            writer.write({'tokens': stored})
    return folder


def taught(
    world: Path, output: str | Path, data: str | Path = 'data', rank: int = 0, ranks: int = 1, **settings: Any
) -> Path:
    """``world / output``: the data with a column of the teacher's."""
    options = {'batch_tokens': 3 * LENGTH, **settings}
    assert teach(world / data, str(world / 'teacher'), world / output, TeachSettings(**options), 'cpu', rank, ranks)
    return world / output


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return [row for reader in read_index(folder) for row in read_rows(folder, reader)]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@torch.no_grad()
def teacher_logits(folder: Path, tokens: np.ndarray) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model(input_ids=torch.from_numpy(np.stack(tokens).astype(np.int64))).logits


def loader_of(folder: Path, workers: int = 0, batch_size: int = 4, tokenizer: Any = None, **dataset: Any) -> DataSpec:
    """``dynamic_text`` over ``folder / train`` in rounds of three batches, with the teacher's column."""
    config = {
        'local': str(folder / 'train'),
        'domains': list(SAMPLES),
        'proportions': {'a': 1, 'b': 2},
        'round_batches': 3,
        'max_seq_len': LENGTH,
        'shuffle_block_size': 8,
        'teacher': True,
        **dataset,
    }
    spec = build_dynamic_text_dataloader(
        tokenizer or tiny_tokenizer(), batch_size, config, num_workers=workers, pin_memory=False
    )
    LOADERS.append(spec.dataloader)
    return spec
