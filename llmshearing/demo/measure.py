"""What the demo reports about a finished model, measured on the Hugging Face folder with plain transformers.

Every number is taken the same way for source and result: float32, a fixed number of threads, no gradient. A folder is
opened strictly, so that a weight left at its random initial value is an error and not a bad score.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from llmshearing.compat.transformers import read_tokenizer
from llmshearing.cut.speed import tokens_per_second
from llmshearing.export.model_folder import open_strictly
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.shapes import shape_of
from llmshearing.models.source_config import read_config
from llmshearing.search.candidates import target_of

__all__ = ['bytes_on_disk', 'describe_model', 'generate_samples', 'peak_memory_bytes', 'threads']

THREADS = 2


@contextlib.contextmanager
def threads(count: int = THREADS) -> Iterator[None]:
    """Computes with ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def generate_samples(model_dir: Path, prompts: Sequence[str], max_new_tokens: int = 40) -> list[dict[str, str]]:
    """Greedy continuations, as ``{'prompt': ..., 'continuation': ...}``."""
    model = open_strictly(model_dir)
    tokenizer = read_tokenizer(model_dir)
    samples = []
    with threads():
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors='pt', return_token_type_ids=False)
            output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            continuation = tokenizer.decode(output[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True)
            samples.append({'prompt': prompt, 'continuation': continuation})
    return samples


def bytes_on_disk(folder: Path) -> int:
    """Size of all files of a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob('*') if path.is_file())


def peak_memory_bytes() -> int:
    """Largest resident memory so far of this process or of any one process it has started and waited for."""
    unit = 1 if sys.platform == 'darwin' else 1024  # macOS counts bytes, Linux kilobytes
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def describe_model(model_dir: Path) -> dict[str, object]:
    """Size and speed of a folder, as the report takes them."""
    config, model = read_config(model_dir), open_strictly(model_dir)
    layout, shape = layout_of(config), shape_of(config)
    with threads():
        speed = tokens_per_second(model, new_tokens=48)
    return {
        'parameters': int(count_parameters(layout, shape).total),
        'bytes_on_disk': bytes_on_disk(model_dir),
        'forward_tokens_per_second': speed['forward'],
        'generate_tokens_per_second': speed['generate'],
        'shape': target_of(shape),
    }
