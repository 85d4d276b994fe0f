"""What a cut may touch: a target and the axes that are in play become one shape.

A budget leaves it to a search where to cut, and by default that search keeps its hands off the attention heads: layers,
hidden and intermediate dimensions go, which others found the safer way to the same size (Muralidharan et al. 2024,
arXiv 2407.14679). Some types want a hidden size that is a multiple of the heads, which multiples of 64 may not be:
the hidden size would stay as it is, and more layers would go, which costs more (benchmarks/results/cut.md). There finer
multiples are taken. A target that names a shape or fractions says itself what goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmshearing.models.families import family_of
from llmshearing.models.mixtures import with_shape_keys
from llmshearing.models.shapes import WHOLE_HEADS, ModelShape, shape_of
from llmshearing.models.targets import MULTIPLE_OF, target_shape
from llmshearing.utils.checks import check_one_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['AXIS_KEYS', 'BUDGETS', 'cut_shape', 'fine_multiple', 'kept_sizes']

# What each axis takes away from, under the names of a target; heads go with their KV heads.
AXIS_KEYS = {
    'layer': ('num_hidden_layers',),
    'hidden': ('hidden_size',),
    'head': ('num_attention_heads', 'num_key_value_heads'),
    'intermediate': ('intermediate_size',),
    'expert': ('num_experts',),  # of a mixture
}
BUDGETS = ('params', 'size')
STEPS = 8  # that the hidden size should be able to shrink in
FINEST = 8


def cut_shape(
    config: PretrainedConfig,
    target: Mapping[str, Any],
    axes: Sequence[str] | None = None,
    keep_heads: bool | None = None,
) -> ModelShape:
    """The shape to cut a source to.

    Args:
        config (PretrainedConfig): The source's.
        target (Mapping[str, Any]): As for :func:`~llmshearing.models.targets.target_shape`.
        axes (Sequence[str] | None): Keys of :data:`AXIS_KEYS` that may be cut. Default: all.
        keep_heads (bool | None): Cut no heads. Default: where the target is a budget and neither it nor ``axes`` names
            heads.

    Raises:
        ValueError: For a target that cannot be reached so, or that is the source.
    """
    family_of(config)  # refuses types that have no table, and no such sizes
    source = shape_of(config)
    possible = {axis: keys for axis, keys in AXIS_KEYS.items() if keys[0] in source.as_dict()}
    for axis in axes or ():
        check_one_of('--axes', axis, possible)
    target = with_shape_keys(config, target)
    fraction = target.get('fraction')
    if isinstance(fraction, Mapping):
        target['fraction'] = fraction = with_shape_keys(config, fraction)
    named = {*target, *(fraction if isinstance(fraction, Mapping) else ())}
    by_default = keep_heads is None
    if by_default:
        keep_heads = axes is None and any(key in target for key in BUDGETS) and not named & set(AXIS_KEYS['head'])
    elif keep_heads and axes is not None and 'head' in axes:
        raise ValueError('--axes head and --keep-heads contradict each other; leave one of them out.')
    pins = kept_sizes(source, axes, keep_heads)
    cut = sorted(key for key in pins if key in named and target.get(key) != pins[key])
    if cut:
        raise ValueError(
            f'--target names {", ".join(cut)}, which {"--axes" if axes else "--keep-heads"} keeps as in the source; '
            'leave it out of the target, or allow that axis.'
        )
    if config.model_type in WHOLE_HEADS and any(key in target for key in BUDGETS):
        target = {'multiple_of': fine_multiple(source), **target}
    try:
        shape = target_shape(config, {**target, **pins})
    except ValueError as error:
        if by_default and keep_heads and _is_possible(config, target):
            raise ValueError(
                f'{error} (With a budget, heads are kept; --no-keep-heads lets them go as well.)'
            ) from error
        raise
    if shape == source:
        raise ValueError(f'the target equals the source ({source}): nothing would be cut; lower at least one number.')
    return shape


def kept_sizes(source: ModelShape, axes: Sequence[str] | None, keep_heads: bool) -> dict[str, int]:
    """The sizes of a source that stay: those of axes that may not be cut."""
    kept = [axis for axis in AXIS_KEYS if (axes is not None and axis not in axes) or (axis == 'head' and keep_heads)]
    return {key: size for axis in kept for key, size in source.as_dict().items() if key in AXIS_KEYS[axis]}


def _is_possible(config: PretrainedConfig, target: Mapping[str, Any]) -> bool:
    try:
        return bool(target_shape(config, target))
    except ValueError:
        return False


def fine_multiple(source: ModelShape) -> int:
    """A step of hidden sizes for types that want multiples of their heads.

    The usual multiple, halved until hidden sizes that keep all heads are an eighth of the source's apart or less.
    """
    multiple = MULTIPLE_OF
    while multiple > FINEST and math.lcm(multiple, source.num_attention_heads) > source.hidden_size // STEPS:
        multiple //= 2
    return multiple
