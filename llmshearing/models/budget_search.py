"""From a budget of parameters to one concrete shape near the source's proportions.

The rule. A shape has five ratios to the source: of hidden size, intermediate size, layers, query heads and KV heads
(the last two with half a weight each, as they move together). Of all shapes on the lattice below whose parameter count
lies within ``tolerance`` under the budget, the one is taken whose ratios are closest to each other: the smallest
weighted variance of their logarithms; of equally close ones the one with the most parameters, then the most layers.
Pinned sizes are kept and take no part in the comparison. The lattice: every number of layers among which one has
attention; multiples of ``multiple_of`` for hidden and intermediate size (for some model types the hidden size is a
multiple of the query heads as well, for others it divides the channels of mixers); whole KV groups fewer, or all KV
heads with fewer query heads each. The experts of a mixture stay unless their number is pinned.

The count is linear in the intermediate size, so for each of the other sizes the few best intermediate sizes are found
directly, and the whole lattice of a 70B model is searched in a second. The result is counted once more, exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from llmshearing.models.counting import Layout, count_parameters, layout_of
from llmshearing.models.derived_settings import mixer_channels
from llmshearing.models.families import family_of
from llmshearing.models.shapes import WHOLE_HEADS, ModelShape, possible_heads, resolve_target, shape_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['search_budget', 'shapes_within']

WEIGHTS = {
    'num_hidden_layers': 1.0,
    'hidden_size': 1.0,
    'num_attention_heads': 0.5,
    'num_key_value_heads': 0.5,
    'intermediate_size': 1.0,
}
HEADS = ('num_attention_heads', 'num_key_value_heads')  # pinned together: one of them leaves no choice of the other
SAME_SPREAD = 1e-9  # spreads closer than this are equal


@dataclasses.dataclass(frozen=True)
class _Lattice:
    """The sizes to search; a pinned size is the only one of its kind.

    Attributes:
        source (ModelShape): The source, with as many experts as are kept.
        layers (list[int]): Numbers of layers.
        widths (np.ndarray): [n, 3]: hidden size, query heads, KV heads of every combination.
        intermediate (tuple[int, int]): Smallest intermediate size, which is also the step, and the largest.
        free (tuple[str, ...]): Keys that are not pinned.
    """

    source: ModelShape
    layers: list[int]
    widths: np.ndarray
    intermediate: tuple[int, int]
    free: tuple[str, ...]


def search_budget(
    config: PretrainedConfig,
    budget: int,
    named: str,
    multiple_of: int,
    pins: Mapping[str, int],
    tolerance: float,
    whole_heads: bool = True,
) -> ModelShape:
    """The shape within the budget that is closest to the source's proportions.

    Args:
        config (PretrainedConfig): The source's config.
        budget (int): Largest number of parameters, embeddings included, a tied LM head counted once.
        named (str): How the user named the budget, for messages.
        multiple_of (int): Step of hidden and intermediate size.
        pins (Mapping[str, int]): Sizes that are given; checked already, complete where sizes depend on each other.
        tolerance (float): The result has at least ``(1 - tolerance) * budget`` parameters.
        whole_heads (bool): Keep to multiples of the query heads for the hidden size of model types that need it
            (:data:`~llmshearing.models.shapes.WHOLE_HEADS`). Default: ``True``.

    Raises:
        ValueError: If no shape lies within the tolerance, naming the nearest ones below and above.
    """
    source, layout = shape_of(config), layout_of(config)
    whole = count_parameters(layout, source).total
    if budget >= whole:
        raise ValueError(
            f'{named} is {budget:,} parameters, but the source has {whole:,}: pruning only removes; name a smaller '
            'budget.'
        )
    lattice = _lattice(config, multiple_of, pins, whole_heads)
    best = below = above = None
    for layers in lattice.layers:
        counts = _Counts(layout, lattice, layers)
        best = _better(best, counts.closest(budget, tolerance))
        below = max(filter(None, (below, counts.largest_within(budget))), default=None)
        above = min(filter(None, (above, counts.smallest_above(budget))), default=None)
    if best is None:
        raise ValueError(_unreachable(config, named, budget, tolerance, multiple_of, pins, below, above))
    return resolve_target(source, _shape(lattice.source, best[2]).as_dict(), family_of(config).has_head_dim)


def shapes_within(
    config: PretrainedConfig, budget: int, multiple_of: int, pins: Mapping[str, int], tolerance: float
) -> list[ModelShape]:
    """All shapes of the lattice within the tolerance under a budget, each with the largest intermediate size that fits.

    Heads go in whole KV groups here. The arguments are those of :func:`search_budget`.
    """
    layout, lattice = layout_of(config), _lattice(config, multiple_of, pins, whole_heads=True)
    if not set(HEADS) & set(pins):
        whole_groups = lattice.widths[:, 1] == lattice.widths[:, 2] * lattice.source.group_size
        lattice = dataclasses.replace(lattice, widths=lattice.widths[whole_groups])
    found: list[ModelShape] = []
    for layers in lattice.layers:
        counts = _Counts(layout, lattice, layers)
        found += [_shape(lattice.source, sizes) for sizes in counts.all_within(budget, tolerance)]
    return found


def _lattice(config: PretrainedConfig, multiple_of: int, pins: Mapping[str, int], whole_heads: bool) -> _Lattice:
    family, channels, source = family_of(config), mixer_channels(config), shape_of(config)
    source = dataclasses.replace(source, num_experts=pins.get('num_experts', source.num_experts))
    hidden = [pins['hidden_size']] if 'hidden_size' in pins else range(multiple_of, source.hidden_size + 1, multiple_of)
    heads, given = possible_heads(source), {key: pins[key] for key in HEADS if key in pins}
    if given:
        shape = resolve_target(source, given)
        heads = [(shape.num_attention_heads, shape.num_key_value_heads)]
    widths = [(h, *pair) for h in hidden for pair in heads if family.has_head_dim or h == pair[0] * source.head_dim]
    if whole_heads and config.model_type in WHOLE_HEADS:
        widths = [(h, *pair) for h, *pair in widths if h % pair[0] == 0]
    if channels is not None:
        widths = [(h, *pair) for h, *pair in widths if channels % h == 0]
    intermediate = (multiple_of, source.intermediate_size // multiple_of * multiple_of)
    if 'intermediate_size' in pins:
        intermediate = (pins['intermediate_size'], pins['intermediate_size'])
    if not widths or intermediate[1] == 0:
        sizes = {key: value for key, value in pins.items() if key in ('hidden_size', *HEADS)}
        if sizes and not widths:
            raise ValueError(
                f'no shape has {", ".join(f"{key}={value}" for key, value in sizes.items())}: with these, no number of '
                f'heads of the source ({source}) fits; give other sizes, or leave them to be found.'
            )
        raise ValueError(
            f'no shape below the source ({source}) has multiples of multiple_of={multiple_of}; lower multiple_of.'
        )
    pinned = {*pins, *(HEADS if given else ())}
    most = source.num_hidden_layers
    layers = range(min(family.least_layers, most), most + 1)
    if 'num_hidden_layers' in pins:
        layers = [pins['num_hidden_layers']]
    free = tuple(key for key in WEIGHTS if key not in pinned)
    return _Lattice(source, list(layers), np.array(widths), intermediate, free)


class _Counts:
    """All widths of the lattice at one number of layers: parameters as ``base + slope * intermediate size``."""

    def __init__(self, layout: Layout, lattice: _Lattice, layers: int):
        self.lattice, self.layers = lattice, layers
        shape = _shape(lattice.source, (layers, *lattice.widths.T, 0))
        self.base = count_parameters(layout, shape).total
        self.slope = count_parameters(layout, dataclasses.replace(shape, intermediate_size=1)).total - self.base
        self.step, self.most = lattice.intermediate

    def closest(self, budget: int, tolerance: float) -> tuple | None:
        """(spread, parameters, sizes) of the shape within the tolerance that has the closest ratios, or None."""
        least = np.maximum(np.ceil(((1 - tolerance) * budget - self.base) / self.slope / self.step), 1) * self.step
        most = self._most_within(budget)
        found = None
        for intermediate in self._near_ideal():
            intermediate = np.clip(intermediate, least, most)
            spread = np.where(least <= most, self._spread(intermediate), np.inf)
            parameters = self.base + self.slope * intermediate
            near = np.flatnonzero(spread <= spread.min() + SAME_SPREAD)
            index = int(near[parameters[near].argmax()])
            if np.isfinite(spread[index]):
                sizes = self._sizes(index, intermediate[index])
                found = _better(found, (float(spread[index]), int(parameters[index]), sizes))
        return found

    def largest_within(self, budget: int) -> tuple | None:
        """(parameters, sizes) of the largest shape within the budget."""
        intermediate = self._most_within(budget)
        parameters = np.where(intermediate >= self.step, self.base + self.slope * intermediate, -1)
        index = int(parameters.argmax())
        if parameters[index] < 0:
            return None
        return int(parameters[index]), self._sizes(index, intermediate[index])

    def all_within(self, budget: int, tolerance: float) -> list[tuple[int, ...]]:
        """Sizes of all widths, with the largest intermediate size within the budget."""
        intermediate = self._most_within(budget)
        enough = self.base + self.slope * intermediate >= (1 - tolerance) * budget
        fitting = np.flatnonzero(enough & (intermediate >= self.step))
        return [self._sizes(int(index), intermediate[index]) for index in fitting]

    def smallest_above(self, budget: int) -> tuple | None:
        """(parameters, sizes) of the smallest shape above the budget."""
        intermediate = np.maximum((budget - self.base) // self.slope // self.step + 1, 1) * self.step
        parameters = np.where(intermediate <= self.most, self.base + self.slope * intermediate, np.iinfo(np.int64).max)
        index = int(parameters.argmin())
        if intermediate[index] > self.most:
            return None
        return int(parameters[index]), self._sizes(index, intermediate[index])

    def _most_within(self, budget: int) -> np.ndarray:
        """The largest intermediate size of each width within the budget; less than a step where none is."""
        return np.minimum((budget - self.base) // self.slope // self.step * self.step, self.most)

    def _near_ideal(self) -> Iterator[np.ndarray]:
        """Intermediate sizes either side of the one at which its ratio is the mean of the others, and the largest."""
        ratios = self._ratios(None)
        if ratios and 'intermediate_size' in self.lattice.free:
            ideal = self.lattice.source.intermediate_size * np.exp(_weighted_mean(ratios)) / self.step
            yield np.floor(ideal).astype(np.int64) * self.step
            yield np.ceil(ideal).astype(np.int64) * self.step
        yield np.full(len(self.lattice.widths), self.most)

    def _ratios(self, intermediate: np.ndarray | None) -> dict[str, np.ndarray]:
        """Logarithm of each free size's ratio to the source's."""
        hidden, heads, kv_heads = self.lattice.widths.T
        sizes = {
            'num_hidden_layers': np.full(len(hidden), self.layers),
            'hidden_size': hidden,
            'num_attention_heads': heads,
            'num_key_value_heads': kv_heads,
        }
        if intermediate is not None:
            sizes['intermediate_size'] = np.maximum(intermediate, 1)
        free = [key for key in sizes if key in self.lattice.free]
        return {key: np.log(sizes[key] / getattr(self.lattice.source, key)) for key in free}

    def _spread(self, intermediate: np.ndarray) -> np.ndarray:
        ratios = self._ratios(intermediate)
        if not ratios:
            return np.zeros(len(self.lattice.widths))
        mean = _weighted_mean(ratios)
        return _weighted_mean({key: (ratio - mean) ** 2 for key, ratio in ratios.items()})

    def _sizes(self, index: int, intermediate: float) -> tuple[int, ...]:
        return (self.layers, *self.lattice.widths[index].tolist(), int(intermediate))


def _weighted_mean(values: Mapping[str, np.ndarray]) -> np.ndarray:
    total = sum(WEIGHTS[key] * value for key, value in values.items())
    return np.asarray(total / sum(WEIGHTS[key] for key in values))


def _better(first: tuple | None, second: tuple | None) -> tuple | None:
    """The closer of two finds; of equally close ones that with more parameters, then that with more layers."""
    if first is None or second is None:
        return second if first is None else first
    if abs(first[0] - second[0]) > SAME_SPREAD:
        return min(first, second)
    return max(first, second, key=lambda found: (found[1], found[2]))


def _shape(source: ModelShape, sizes: Iterable[Any]) -> ModelShape:
    """The source with other sizes, which come in the order of :data:`WEIGHTS`."""
    return dataclasses.replace(source, **dict(zip(WEIGHTS, sizes, strict=True)))


def _unreachable(
    config: PretrainedConfig,
    named: str,
    budget: int,
    tolerance: float,
    multiple_of: int,
    pins: Mapping[str, int],
    below: tuple | None,
    above: tuple | None,
) -> str:
    source, lines = shape_of(config), []
    for word, found in (('below', below), ('above', above)):
        if found is not None and _shape(source, found[1]) != source:  # which is no target
            parameters, sizes = found
            away = f'{parameters:,} parameters ({parameters / budget - 1:+.2%})'
            lines.append(f'  - nearest {word}: {away}: {_shape(source, sizes)}')
    if below is None and above is not None:
        hidden = _shape(source, above[1]).hidden_size
        embedding = f'{config.vocab_size * hidden:,} parameters at hidden_size={hidden}'
        lines.append(f'  - nothing is smaller: the embedding alone has {embedding}; trim-vocab makes it smaller')
    fixed = f' and {", ".join(f"{key}={value}" for key, value in pins.items())} given' if pins else ''
    remedy = 'lower multiple_of, or give fewer sizes'
    if any('nearest' in line for line in lines):
        remedy = f'name one of these budgets, {remedy}'
    if below is not None:
        remedy += f', or set tolerance to at least {np.ceil((1 - below[0] / budget) * 1000) / 1000:g}'
    return (
        f'{named} is {budget:,} parameters; with multiples of {multiple_of}{fixed} no shape lies at most '
        f'{tolerance:.1%} below it:\n' + '\n'.join(lines) + f'\n  {remedy[0].upper()}{remedy[1:]}.'
    )
