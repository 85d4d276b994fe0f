"""How much memory a cut takes, from a config alone.

The whole model is there in the type it is computed in, or lies in a file that is mapped. On top come, one after the
other, what compensation adds up over tokens, and the finished folder, which is opened in float32 and compared where it
is small. Methods that need gradients keep the activations of a pass; weights have no gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from llmshearing.export.shard_writer import SHARD_BYTES
from llmshearing.masks.scores import scoring_methods
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.dimensions import DIMENSIONS
from llmshearing.models.shapes import DTYPE_BYTES, ModelShape, shape_of
from llmshearing.planning.memory import TrainingSetup, compensation_bytes, estimate_memory, merging_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['SUMS_AT_ONCE', 'layers_by_pass', 'memory_needed']

PROCESS = 6 * 10**8  # Python with torch and transformers, and their kernels
SUMS_AT_ONCE = 3 * 10**9  # bytes of what compensation adds up in a pass over the text
LOGITS = 3  # copies of a pass: as they come, in float32, and their logarithms


def layers_by_pass(shape: ModelShape, axes: Collection[str], kept: Sequence[int]) -> list[list[int]]:
    """Which layers each pass of compensation sees to, one at least: the last ones first.

    Args:
        shape (ModelShape): Shape of the source.
        axes (Collection[str]): Pruned axes.
        kept (Sequence[int]): Layers that stay.
    """
    count = max(1, SUMS_AT_ONCE // max(1, _sums_of_a_layer(shape, axes)))
    return [list(kept[max(0, end - count) : end]) for end in range(len(kept), 0, -count)]


def _sums_of_a_layer(shape: ModelShape, axes: Collection[str]) -> int:
    """Bytes that compensation adds up for one layer, with the LM head and layers that are merged into it, at most."""
    two = dataclasses.replace(shape, num_hidden_layers=2)
    one = dataclasses.replace(shape, num_hidden_layers=1)
    return compensation_bytes(one, axes, tied=False) + ('layer' in axes) * merging_bytes(two, 1)


def memory_needed(
    config: PretrainedConfig,
    target: ModelShape,
    axes: Collection[str],
    dtype: str,
    sequences: int,
    length: int,
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
        widest = max(DIMENSIONS[name].size(source) for name in ('hidden', 'query', 'intermediate'))
        passes = layers_by_pass(source, axes, range(target.num_hidden_layers))
        sums = max(map(len, passes)) * _sums_of_a_layer(source, axes)
        stages.append(sums + max(passing, 3 * 8 * widest**2))
    if any(scoring_methods.get(method).needs_gradients for method in methods):
        setup = TrainingSetup(1, 'ddp', sequences, length, precision='fp32')
        step = estimate_memory(config, setup, axes, freeze_weights=True)
        stages.append(step.total - step.parameters)
    result = 4 * count_parameters(layout, target).total
    stages.append(result * (not in_file) + min(SHARD_BYTES, result))  # a file of it is held while it fills
    return PROCESS + weights + max(stages)
