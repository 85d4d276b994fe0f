"""Which card, clocks and versions the numbers are of, and how fast its matrix products are."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from typing import Any

import torch

from benchmarks.gpu.timing import median_seconds

__all__ = ['describe', 'matmul_rate']

LIBRARIES = ('torch', 'transformers', 'mosaicml', 'llm-foundry', 'mosaicml-streaming', 'triton', 'flash-attn')
FIELDS = ('name', 'clocks.sm', 'clocks.max.sm', 'clocks.mem', 'power.limit', 'driver_version')


def describe(quick: bool = False) -> dict[str, Any]:
    """Mode, card, clocks and versions; None for what is not there."""
    return {
        'mode': 'quick' if quick else 'full',
        'date': datetime.date.today().isoformat(),
        'python': platform.python_version(),
        'processor': platform.machine(),
        'threads': torch.get_num_threads(),
        **{name: _version(name) for name in LIBRARIES},
        'CUDA': torch.version.cuda if torch.cuda.is_available() else None,
        **_card(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _card() -> dict[str, str | None]:
    if not torch.cuda.is_available():
        return {'card': None}
    try:
        command = ['nvidia-smi', f'--query-gpu={",".join(FIELDS)}', '--format=csv,noheader']
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return dict(zip(('card', *FIELDS[1:]), (field.strip() for field in answer.splitlines()[0].split(','))))
    except (OSError, subprocess.SubprocessError, IndexError):
        return {'card': torch.cuda.get_device_name()}


def matmul_rate(device: str, size: int, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product of random numbers, as the median of many."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: torch.mm(a, b), device, warmup=5, rounds=21)
