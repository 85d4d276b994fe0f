"""How much memory a cut takes, from a config alone.

The whole model is there in the type it is computed in, or lies in a file that is mapped. On top come, one after the
other, what compensation reads and adds up in one layer, and the finished folder, which is opened in float32 and
compared where it is small. Methods that need gradients keep the activations of a pass; weights have no gradients.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from llmshearing.export.shard_writer import SHARD_BYTES
from llmshearing.masks.compensation import TOKENS as COMPENSATION_TOKENS
from llmshearing.masks.scores import scoring_methods
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.dimensions import DIMENSIONS
from llmshearing.models.shapes import DTYPE_BYTES, ModelShape, shape_of
from llmshearing.planning.memory import TrainingSetup, estimate_memory

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['memory_needed']

PROCESS = 6 * 10**8  # Python with torch and transformers, and their kernels
LOGITS = 3  # copies of a pass: as they come, in float32, and their logarithms


def memory_needed(
    config: PretrainedConfig,
    target: ModelShape,
    axes: Collection[str],
    dtype: str,
    sequences: int,
    length: int,
    tokens: int,
    methods: Collection[str] = (),
    compensate: bool = True,
    in_file: bool = False,
) -> int:
    """Bytes at the peak, on one device or the CPU.

    Args:
        config (PretrainedConfig): The source's.
        target (ModelShape): Shape to cut to.
        axes (Collection[str]): Pruned axes, as of :func:`~llmshearing.masks.axes.plan_axes`.
        dtype (str): To compute in, a key of :data:`~llmshearing.models.shapes.DTYPE_BYTES`.
        sequences (int): In a pass.
        length (int): Tokens in each.
        tokens (int): To choose by, of all texts together.
        methods (Collection[str]): Scoring methods. Default: none.
        compensate (bool): Whether weights are compensated. Default: ``True``.
        in_file (bool): The weights lie in a file, and the finished folder is compared tensor by tensor. Default:
            ``False``.
    """
    layout, source = layout_of(config), shape_of(config)
    weights = 0 if in_file else DTYPE_BYTES[dtype] * count_parameters(layout, source).total
    passing = LOGITS * 4 * sequences * length * config.vocab_size
    stages = [passing]
    if compensate:
        sizes = {name: DIMENSIONS[name].size(source) for name in ('hidden', 'query', 'intermediate')}
        # Both streams, those in the middle of a layer and behind it, and what a layer's projections read.
        held = 7 * sizes['hidden'] + sizes['query'] + 2 * sizes['intermediate']
        sums = 4 * 8 * max(sizes.values()) ** 2
        stages.append(DTYPE_BYTES[dtype] * min(tokens, COMPENSATION_TOKENS) * held + max(sums, passing))
    if any(scoring_methods.get(method).needs_gradients for method in methods):
        setup = TrainingSetup(1, 'ddp', sequences, length, precision='fp32')
        step = estimate_memory(config, setup, axes, freeze_weights=True)
        stages.append(step.total - step.parameters)
    result = 4 * count_parameters(layout, target).total
    stages.append(result * (not in_file) + min(SHARD_BYTES, result))  # a file of it is held while it fills
    return PROCESS + weights + max(stages)
