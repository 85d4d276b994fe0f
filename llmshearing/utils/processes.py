"""Which of the processes that were started together this is, and which device is its own.

They find their number where torchrun leaves it, in the environment. Torch is imported only where a device is chosen:
a command that is used wrongly waits for none of it.
"""

from __future__ import annotations

import os

__all__ = ['choose_device', 'read_rank']


def read_rank() -> tuple[int, int]:
    """The number of this process among those that were started together, from 0, and how many there are.

    Raises:
        ValueError: For variables that hold no such numbers.
    """
    ranks = _read_number('WORLD_SIZE', 1, least=1)
    return _read_number('RANK', 0) % ranks, ranks


def choose_device() -> str:
    """A GPU of this machine, the next one for each process on it; ``'cpu'`` where there is none."""
    import torch

    if not torch.cuda.is_available():
        return 'cpu'
    return f'cuda:{_read_number("LOCAL_RANK", 0) % torch.cuda.device_count()}'


def _read_number(name: str, default: int, least: int = 0) -> int:
    value = os.environ.get(name) or str(default)  # an empty one is not set
    if not value.isdecimal() or int(value) < least:
        raise ValueError(
            f'{name}: expected a whole number of at least {least} in this environment variable, got {value!r}; '
            'unset it where no launcher such as torchrun starts the processes.'
        )
    return int(value)
