"""Which shapes are worth trying: of all that fit a budget, some that lie far from each other.

The first is the one nearest to the source's proportions. Each further one is the shape that is farthest from all
before it, in the logarithms of the shares of layers, hidden and intermediate size and KV heads that are kept. So a few
candidates span what the budget, the pins and the limits allow, and which they are depends on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmshearing.cut.target import cut_shape, fine_multiple, kept_sizes
from llmshearing.models.budget_search import shapes_within
from llmshearing.models.counting import Layout, kv_cache_bytes_per_token, layout_of
from llmshearing.models.families import family_of
from llmshearing.models.shapes import KEPT_FIELDS, WHOLE_HEADS, ModelShape, shape_of
from llmshearing.models.targets import MULTIPLE_OF
from llmshearing.search.settings import SearchSettings
from llmshearing.utils.numbers import parse_count

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['name_of', 'propose_shapes', 'target_of']

KEYS = ('num_hidden_layers', 'hidden_size', 'num_key_value_heads', 'intermediate_size')


def name_of(shape: ModelShape) -> str:
    """A shape as part of a file's name, such as ``L22-H384-A6-KV2-I1024``."""
    return (
        f'L{shape.num_hidden_layers}-H{shape.hidden_size}-A{shape.num_attention_heads}-KV{shape.num_key_value_heads}'
        f'-I{shape.intermediate_size}'
    )


def target_of(shape: ModelShape) -> dict[str, int]:
    """A shape as a target names it: without what is inherited from the source."""
    return {key: size for key, size in shape.as_dict().items() if key not in KEPT_FIELDS}


def propose_shapes(config: PretrainedConfig, budget: str | int, settings: SearchSettings) -> list[ModelShape]:
    """The candidates of one budget, the largest number of parameters; that with the source's proportions first.

    Raises:
        ValueError: For a source of a type that is not supported; if no shape fits, naming the budget, the pins or the
            limits that are in the way.
    """
    family_of(config)  # refuses types that have no table, and no such sizes
    source = shape_of(config)
    multiple_of = settings.multiple_of or (fine_multiple(source) if config.model_type in WHOLE_HEADS else MULTIPLE_OF)
    target = {'params': budget, 'multiple_of': multiple_of, 'tolerance': settings.tolerance, **settings.pins}
    axes, keep_heads = settings.cut.axes, bool(settings.cut.keep_heads)
    first = cut_shape(config, target, axes, keep_heads)
    pins = {**settings.pins, **kept_sizes(source, axes, keep_heads)}
    # Pins may leave no other shape than the one of the source's proportions, whose heads need not go in whole groups.
    shapes = shapes_within(config, int(parse_count(budget)), multiple_of, pins, settings.tolerance) or [first]
    layout, free = layout_of(config), [key for key in KEYS if key not in pins]

    within = [shape for shape in shapes if _is_within(shape, settings, layout) and shape != source]
    if not within:
        raise ValueError(
            f'--params {budget}: none of the {len(shapes)} shapes of this size keeps to {_limits(settings)}; the one '
            f"with the source's proportions is {first}. Widen a limit."
        )
    unevenness = [_unevenness(shape, source, free) for shape in within]
    fitting = [shape for shape, uneven in zip(within, unevenness) if uneven <= settings.uneven]
    if not fitting:
        least = min(unevenness)
        raise ValueError(
            f'--params {budget}: none of the {len(within)} shapes of this size keeps to --uneven {settings.uneven:g}. '
            f'Sizes go in steps and heads in whole groups (of {source.num_key_value_heads}), so the most even shape is '
            f'{within[unevenness.index(least)]}, which keeps {least:.2f} times as much of one axis as of another. Give '
            f'--uneven {math.ceil(100 * least) / 100:g} or more, or another budget.'
        )
    is_possible = _is_within(first, settings, layout) and _unevenness(first, source, free) <= settings.uneven
    start = first if is_possible else _nearest(first, fitting, source)
    return _spread(start, fitting, source, settings.candidates)


def _limits(settings: SearchSettings) -> str:
    given = {'--limit': settings.least or settings.most, '--kv-cache': settings.kv_cache}
    return ' and '.join(option for option, value in given.items() if value)


def _is_within(shape: ModelShape, settings: SearchSettings, layout: Layout) -> bool:
    """Whether a shape keeps to the limits of sizes and of the KV cache."""
    sizes = {key: getattr(shape, key) for key in {*settings.least, *settings.most}}
    if any(size < settings.least.get(key, 1) or size > settings.most.get(key, size) for key, size in sizes.items()):
        return False
    return settings.kv_cache is None or kv_cache_bytes_per_token(layout, shape) <= settings.kv_cache


def _unevenness(shape: ModelShape, source: ModelShape, free: Sequence[str]) -> float:
    """The largest share that is kept of a ``free`` size, by the smallest; 1 where no size is free."""
    kept = [getattr(shape, key) / getattr(source, key) for key in free]
    return max(kept) / min(kept) if kept else 1.0


def _places(shapes: Sequence[ModelShape], source: ModelShape) -> np.ndarray:
    """[shapes, 4] logarithms of what is kept."""
    return np.log([[getattr(shape, key) / getattr(source, key) for key in KEYS] for shape in shapes])


def _nearest(wanted: ModelShape, shapes: Sequence[ModelShape], source: ModelShape) -> ModelShape:
    away = np.linalg.norm(_places(shapes, source) - _places([wanted], source), axis=1)
    return shapes[int(away.argmin())]


def _spread(start: ModelShape, shapes: Sequence[ModelShape], source: ModelShape, most: int) -> list[ModelShape]:
    """Up to ``most`` shapes, each farthest from those before it."""
    chosen, places = [start], _places(shapes, source)
    away = np.linalg.norm(places - _places([start], source), axis=1)
    while len(chosen) < most and away.max() > 1e-9:
        index = int(away.argmax())
        chosen.append(shapes[index])
        away = np.minimum(away, np.linalg.norm(places - places[index], axis=1))
    return chosen
