"""The process group of a single rank, for whichever device the next run is on."""

from __future__ import annotations

import torch
from composer.utils import dist

__all__ = ['use_group']


def use_group(device: str) -> None:
    """Makes the default process group one for ``device``; Composer refuses a Trainer on another backend's.

    Args:
        device (str): ``'cuda'`` or ``'cpu'``.
    """
    wanted = 'nccl' if device == 'cuda' else 'gloo'
    if dist.is_initialized() and torch.distributed.get_backend() != wanted:
        torch.distributed.destroy_process_group()
    if not dist.is_initialized():
        dist.initialize_dist('gpu' if device == 'cuda' else 'cpu')
