"""Tiny models whose gains differ enough that forgetting one is seen, and folders and text for tests with a source."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from llmshearing.rotation.stream import stream_parts
from tests.models.tiny import MIXTURES, VARIANTS, tiny_model

NORMED_WRITERS = ('exaone4', 'gemma2', 'gemma3_text', 'glm4', 'hyperclovax', 'olmo2', 'olmo3', 'olmo_hybrid')
REFUSED = (*NORMED_WRITERS, *MIXTURES, 'cohere2', 'gpt_neox', 'jais2', 'nemotron', 'starcoder2')
REFUSED = tuple(name for name in REFUSED if name in VARIANTS)  # transformers 4 has fewer
UNNORMED = 'hyperclovax-pre'  # whose config leaves the norms of its family out
ROTATABLE = [name for name in VARIANTS if name == UNNORMED or not {name, name.partition('-')[0]} & {*REFUSED}]
IDS = torch.arange(2 * 24).reshape(2, 24) * 7 % 97


def source_model(variant: str = 'llama', dtype: torch.dtype = torch.float64, spread: float = 1.5, **overrides):
    """A tiny model with random gains between 0.1 and 0.1 + ``spread`` in all norms that read the stream."""
    model = tiny_model(variant, **overrides).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for norm in stream_parts(model.config).norms:
            weight = model.get_submodule(norm.path).weight
            gain = torch.rand(weight.shape, generator=generator, dtype=torch.float64) * spread + 0.1
            weight.copy_(gain - norm.offset)
    return model


def save_source(folder: Path, model, tokenizer) -> Path:
    """A model's folder with its tokenizer, a card and a licence."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / 'README.md').write_text('---\nlicense: mit\nlanguage: en\n---\n# tiny\n')
    (folder / 'LICENSE').write_text('MIT, as it were')
    return folder


def make_text(path: Path, documents: int = 60) -> Path:
    """JSON lines of words that :func:`tests.tiny_run.tiny_tokenizer` knows."""
    lines = [' '.join(f'w{(7 * d + (d % 5 + 1) * i) % 94}' for i in range(25)) for d in range(documents)]
    path.write_text(''.join(json.dumps({'text': line}) + '\n' for line in lines))
    return path


def files(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
