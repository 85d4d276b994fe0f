"""How much memory a cut takes, from a config alone.

The whole model is there in the type it is computed in. On top come, one after the other, what compensation adds up over
tokens, and the finished folder, which is opened in float32 and compared. Methods that need gradients keep the
activations of a pass; weights have no gradients.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from llmshearing.models.counting import DIMENSION_SIZES, count_parameters, layout_of
from llmshearing.models.shapes import DTYPE_BYTES, ModelShape, shape_of
from llmshearing.planning.memory import TrainingSetup, compensation_bytes, estimate_memory, merging_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['BACKWARD_METHODS', 'memory_needed']

BACKWARD_METHODS = ('taylor',)
PROCESS = 6 * 10**8  # Python with torch and transformers, and their kernels
LOGITS = 3  # copies of a pass: as they come, in float32, and their logarithms


def memory_needed(
    config: PretrainedConfig,
    target: ModelShape,
    axes: Collection[str],
    dtype: str,
    sequences: int,
    length: int,
    methods: Collection[str] = (),
    compensate: bool = True,
    shard_bytes: int = 10**9,
) -> int:
    """Bytes at the peak, on one device or the CPU.

    Args:
        config (PretrainedConfig): The source's.
        target (ModelShape): Shape to cut to.
        axes (Collection[str]): Pruned axes, as of :func:`~llmshearing.masks.axes.plan_axes`.
        dtype (str): To compute in, a key of :data:`~llmshearing.models.shapes.DTYPE_BYTES`.
        sequences (int): In a pass.
        length (int): Tokens in each.
        methods (Collection[str]): Scoring methods. Default: none.
        compensate (bool): Whether weights are compensated. Default: ``True``.
        shard_bytes (int): Largest file, which is held while it fills. Default: 1 GB.
    """
    layout, source = layout_of(config), shape_of(config)
    weights = DTYPE_BYTES[dtype] * count_parameters(layout, source).total
    passing = LOGITS * 4 * sequences * length * config.vocab_size
    stages = [passing]
    if compensate:
        widest = max(DIMENSION_SIZES[name](source) for name in ('hidden', 'query', 'intermediate'))
        sums = compensation_bytes(layout, source, axes) + merging_bytes(source, target.num_hidden_layers)
        stages.append(sums + max(passing, 3 * 8 * widest**2))
    if set(methods) & set(BACKWARD_METHODS):
        setup = TrainingSetup(1, 'ddp', sequences, length, precision='fp32')
        step = estimate_memory(config, setup, axes, freeze_weights=True)
        stages.append(step.total - step.parameters)
    result = count_parameters(layout, target).total
    stages.append(4 * result + min(shard_bytes, 4 * result))
    return PROCESS + weights + max(stages)
