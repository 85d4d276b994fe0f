"""After writing, before reporting: the folder must hold and compute what was meant.

A model that is small enough is opened by transformers, strictly, and its logits are compared with the masked model's.
For any size, the written tensors are read back one at a time and compared bit for bit with the cut of the source's.
"""
from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterable

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from llmshearing.conversion.checkpoint import check_tensors, expected_shapes, tied_names
from llmshearing.conversion.hf_export import open_strictly
from llmshearing.conversion.shard_writer import INDEX_NAME
from llmshearing.safe_paths import check_safetensors_index

__all__ = ['probe_input', 'tensor_files', 'verify_folder', 'verify_tensors']

# Largest difference allowed, as a fraction of the largest logit: float32 rounding, and one rounding of
# weights to bfloat16.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def probe_input(vocab_size: int, length: int = 48) -> Tensor:
    """Token ids [1, length] spread over the vocabulary, always the same."""
    return (torch.arange(length) * 7919 % vocab_size)[None]


def verify_folder(folder: Path, expected: Tensor, computed_in: torch.dtype, dtype: torch.dtype) -> float:
    """Opens ``folder`` and compares its logits on :func:`probe_input` with the masked model's.

    Args:
        folder (Path): The written folder.
        expected (Tensor): Logits of the masked model, float32 on CPU [1, length, vocabulary].
        computed_in (torch.dtype): Precision in which the masked model computed them.
        dtype (torch.dtype): Precision in which the folder was written.

    Returns:
        float: Largest absolute difference.

    Raises:
        ValueError: If the folder does not open strictly or computes something else.
    """
    model = open_strictly(folder)
    with torch.no_grad():
        logits = model(probe_input(expected.shape[-1], expected.shape[1])).logits.float()
    difference = (logits - expected).abs().max().item()
    allowed = max(TOLERANCE[computed_in], TOLERANCE[dtype]) * max(1.0, expected.abs().max().item())
    if not difference <= allowed:
        raise ValueError(
            f'{folder}: logits differ from the masked model by {difference:.3g}, allowed is {allowed:.3g}.',
        )
    return difference


def verify_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], convert: Callable[[Tensor], Tensor]) -> int:
    """Reads the folder's tensors back, one at a time, and compares them bit for bit with those that were meant.

    Args:
        folder (Path): The written folder, with its config.
        tensors (Iterable[tuple[str, Tensor]]): What was meant, by name.
        convert (Callable): What was done to each of them before it was written.

    Returns:
        int: Number of tensors compared.

    Raises:
        ValueError: Naming a tensor that is missing, extra, of another shape than the folder's config
            says, or not equal.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    files = tensor_files(folder)
    shapes = {}
    for path in sorted(set(files.values())):
        with safe_open(path, 'pt') as file:
            shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})
    check_tensors(str(folder), shapes, expected_shapes(config), tied_names(config))
    compared = 0
    for name, tensor in tensors:
        if name not in files:
            raise ValueError(f'{folder}: {name} was not written.')
        with safe_open(files[name], 'pt') as file:  # opened anew, so that no mapped page stays
            written = file.get_tensor(name)
            if not torch.equal(written, convert(tensor)):
                raise ValueError(f'{folder}: {name} was read back with other values than were written; check the disk.')
        compared += 1
    if compared != len(shapes):
        raise ValueError(f'{folder}: {len(shapes)} tensors were written, {compared} were meant.')
    return compared


def tensor_files(folder: Path) -> dict[str, Path]:
    """Which safetensors file of a model folder holds which tensor."""
    index = folder / INDEX_NAME
    if index.is_file():
        return {name: folder / file for name, file in check_safetensors_index(index).items()}
    path = folder / 'model.safetensors'
    with safe_open(path, 'pt') as file:
        return {name: path for name in file.keys()}
