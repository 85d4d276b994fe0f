"""After writing, before reporting: the folder is opened by transformers and must compute what the masked model computes."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from llmshearing.conversion.hf_export import open_strictly

__all__ = ['probe_input', 'verify_folder']

# Largest difference allowed, as a fraction of the largest logit: float32 rounding, and one rounding of weights to bfloat16.
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
        raise ValueError(f'{folder}: logits differ from the masked model by {difference:.3g}, allowed is {allowed:.3g}.')
    return difference
