"""Sources in the principal basis of their residual stream, for parts that compare them with the plain ones."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.gpu.cases import NotThere

__all__ = ['rotate_folder', 'rotated_logits']


def rotate_folder(source: Path, output: Path, data: Path, device: str, **settings: int) -> None:
    """Writes ``source`` rotated to ``output``; moments are taken on ``data``, prepared tokens or text.

    Raises:
        NotThere: If the package has no rotation.
    """
    if importlib.util.find_spec('llmshearing.rotation') is None:
        raise NotThere('llmshearing.rotation')
    from llmshearing.rotation.rotate_source import rotate_source
    from llmshearing.rotation.settings import RotationSettings

    rotate_source(source, data, output, RotationSettings(**settings), device=device)


def rotated_logits(source: Path, work: Path, device: str) -> tuple[Tensor, Tensor]:
    """Logits of a tiny source of the tests, and of the same source rotated."""
    output, text = work / 'tiny-rotated', work / 'tiny-text'
    shutil.rmtree(output, ignore_errors=True)
    text.mkdir(exist_ok=True)
    draw = random.Random(0)
    lines = (' '.join(f'w{draw.randrange(94)}' for _ in range(64)) for _ in range(200))
    (text / 'text.jsonl').write_text(''.join(json.dumps({'text': line}) + '\n' for line in lines), encoding='utf-8')
    rotate_folder(source, output, text, device, tokens=4096, held_out=512, seq_len=32)
    ids = torch.randint(3, 97, (2, 21), generator=torch.Generator().manual_seed(4)).to(device)
    with torch.no_grad():
        models = (AutoModelForCausalLM.from_pretrained(path).to(device) for path in (source, output))
        plain, rotated = (model(ids, use_cache=False).logits for model in models)
    return plain, rotated
