"""The largest micro-batch that the memory estimate lets a GPU hold, and what to change where it holds none.

Sharding is FSDP2 over several GPUs; without it there is no activation checkpointing. Without checkpointing a step takes
a quarter less compute, so it is left off where one sequence fits without. A tenth of the memory is kept free for what
the estimate leaves out (:mod:`llmshearing.planning.memory`).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from typing import TYPE_CHECKING

from llmshearing.planning.memory import TrainingSetup, estimate_memory

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PretrainedConfig

__all__ = ['USABLE', 'Hardware', 'Placement', 'place_stage']

USABLE = 0.9
MICRO_BATCHES = (1, 2, 4, 8)  # sequences; more make no step faster at usual lengths
ON_CPU = 4


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a run gets.

    Attributes:
        gpus (int): Number of GPUs; 0 is this machine's CPU, one process in float32.
        memory (float): GiB of each, as a card of 80 GB has 80.

    Raises:
        ValueError: For numbers that no machine has.
    """

    gpus: int
    memory: float = 80.0

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise ValueError(f'--gpus {self.gpus}: give the number of GPUs, or 0 for a CPU.')
        if self.gpus > 8 and self.gpus % 8:
            raise ValueError(f'--gpus {self.gpus}: more than 8 must be whole nodes of 8; give a multiple of 8.')
        if not (self.memory > 0 and math.isfinite(self.memory)):
            raise ValueError(f'--gpu-memory {self.memory}: give the GB of one GPU, such as 80.')

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 divides the model among GPUs."""
        return self.gpus > 1

    @property
    def precision(self) -> str:
        """Composer's name of it; on CPU it trains in float32 only."""
        return 'amp_bf16' if self.gpus else 'fp32'


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a stage lies on its GPUs: the micro-batch, checkpointing, and the bytes of the peak (0 on a CPU)."""

    micro_batch: int
    checkpointing: bool
    peak: int


def place_stage(
    stage: str,
    config: PretrainedConfig,
    hardware: Hardware,
    batch: int,
    max_seq_len: int,
    masked_axes: Collection[str] = (),
    teacher: PretrainedConfig | None = None,
) -> Placement:
    """The micro-batch of a stage: a power of two that divides the sequences of each GPU, of ``batch`` over all of them.

    Raises:
        ValueError: If not even one sequence fits, saying which ``--gpus`` or ``--gpu-memory`` would do.
    """
    each = batch // max(hardware.gpus, 1)
    sizes = [size for size in MICRO_BATCHES if each % size == 0]
    if not hardware.gpus:
        return Placement(max(size for size in sizes if size <= ON_CPU), False, 0)

    @functools.cache  # a trace each
    def peak(gpus: int, size: int, checkpointing: bool) -> int:
        sharding = 'fsdp2' if gpus > 1 else 'ddp'
        setup = TrainingSetup(gpus, sharding, size, max_seq_len, checkpointing, hardware.precision)
        return estimate_memory(config, setup, masked_axes, teacher=teacher).total

    usable = USABLE * hardware.memory * 2**30
    for checkpointing in (False, True)[: 1 + hardware.sharded]:
        if peak(hardware.gpus, 1, checkpointing) > usable:
            continue
        for size in reversed(sizes):
            taken = peak(hardware.gpus, size, checkpointing)
            if taken <= usable:
                return Placement(size, checkpointing, taken)
    least = peak(hardware.gpus, 1, hardware.sharded)
    counts = [2**power for power in range(1, 11) if 2**power > hardware.gpus]
    enough = bisect.bisect_left(counts, True, key=lambda gpus: peak(gpus, 1, True) <= usable)  # more hold more
    more = counts[enough] if enough < len(counts) else None
    remedy = f'--gpu-memory {math.ceil(least / USABLE / 2**30)}' + (f', or --gpus {more}' if more else '')
    raise ValueError(
        f'--gpus {hardware.gpus} --gpu-memory {hardware.memory:g}: one sequence of {max_seq_len} tokens in {stage} '
        f'takes {least / 2**30:.1f} GiB per GPU, and a tenth of its memory is kept free; {remedy} would do.'
    )
