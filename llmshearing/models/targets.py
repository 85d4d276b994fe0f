"""A target, named one of three ways, becomes one concrete shape that the source can be cut to.

    target: {num_hidden_layers: 24, hidden_size: 2048}            # a shape; what is left out stays
    target: {fraction: {hidden_size: 0.5, num_attention_heads: 0.5}, multiple_of: 64}
    target: {params: 1.3e9}                                       # or size: 2.5GB, with dtype: bfloat16

A mixture of experts has ``num_experts`` besides, and its ``intermediate_size`` is the width of a routed expert; both
may also be called what its config calls them (``num_local_experts``, ``moe_intermediate_size``).

Beside a fraction or a budget, keys of a shape are pins: they are taken as they are. A budget is searched for in
:mod:`llmshearing.models.budget_search`. Whatever is wrong with the settings is raised in one message, each
problem with what would be possible; the finished shape passes the same checks as one that was written out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmshearing.compat.transformers import OPENS_UNEVEN_HEADS
from llmshearing.models.families import family_of, has_own_table
from llmshearing.models.mixtures import check_aligned, with_shape_keys
from llmshearing.models.shapes import (
    DTYPE_BYTES,
    KEPT_FIELDS,
    TARGET_KEYS,
    WHOLE_HEADS,
    ModelShape,
    check_buildable,
    check_heads,
    check_whole_heads,
    possible_heads,
    resolve_target,
    shape_of,
    with_heads,
)
from llmshearing.utils.checks import is_integer, is_number
from llmshearing.utils.numbers import parse_count, parse_size
from llmshearing.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['MULTIPLE_OF', 'TOLERANCE', 'target_shape']

FRACTION_KEYS = tuple(key for key in TARGET_KEYS if key not in KEPT_FIELDS)
OPTION_KEYS = ('fraction', 'params', 'size', 'dtype', 'multiple_of', 'tolerance', 'uneven_heads')
OPTION_USERS = {'dtype': ('size',), 'tolerance': ('params', 'size'), 'multiple_of': ('fraction', 'params', 'size')}
MULTIPLE_OF = 64
TOLERANCE = 0.02
TRIM_FIRST = (
    'vocab_size is no part of a shape: tokenizer and data change with it. Make the source smaller first, with '
    '`llmshearing trim-vocab SOURCE --data TEXT --size N --output FOLDER`, and prepare the data with its tokenizer.'
)
LEAST_BYTES = 1000  # no decoder is smaller; below it a B that stands for bytes was meant as a billion


def target_shape(config: PretrainedConfig, target: Mapping[str, Any]) -> ModelShape:
    """The shape that a target names, for a source.

    Args:
        config (PretrainedConfig): The source's config.
        target (Mapping[str, Any]): Keys of a shape (:data:`~llmshearing.models.shapes.TARGET_KEYS`), and at most one of

            - ``fraction``: mapping of :data:`FRACTION_KEYS` to the fraction to keep, in (0, 1];
            - ``params``: largest number of parameters, as a number or ``'1.3B'``;
            - ``size``: largest size on disk, in bytes or as ``'2.5GB'`` (10^9) or ``'2.5GiB'`` (2^30), at ``dtype``
              (default ``bfloat16``).

            ``multiple_of`` (default 64) aligns hidden and intermediate size of the last three; ``tolerance`` (default
            0.02) is how far below a budget the result may stay. ``uneven_heads: true`` allows a hidden_size that is
            no multiple of num_attention_heads for :data:`~llmshearing.models.shapes.WHOLE_HEADS`.

    Returns:
        ModelShape: A shape that the source can be cut to.

    Raises:
        ValueError: Names every problem of the target, each with what would be possible; an unreachable budget names the
            nearest shapes on both sides.
    """
    target = with_shape_keys(config, _plain(target))
    if isinstance(target.get('fraction'), dict):
        target['fraction'] = with_shape_keys(config, target['fraction'])
    uneven = target.pop('uneven_heads', False)
    if not isinstance(uneven, bool) or (uneven and not OPENS_UNEVEN_HEADS):
        raise ValueError(
            f'target: uneven_heads={uneven!r} is not possible; it is true or false'
            f'{", and true with transformers 4 only" if uneven is True else ""}.'
        )
    shape = _named_shape(config, target, uneven)
    if not uneven:
        check_whole_heads(config.model_type, shape_of(config), shape)
    check_aligned(config, shape_of(config), shape)
    _check_attention(config, shape)
    check_buildable(config, shape, family_of(config).has_head_dim)
    if not has_own_table(config):
        from llmshearing.models.counting import check_table

        check_table(config, shape)
    return shape


def _check_attention(config: PretrainedConfig, shape: ModelShape) -> None:
    """Raises a ValueError for a target without any layer that has attention, which transformers runs with no cache."""
    family = family_of(config)
    if not family.kinds or shape.num_hidden_layers >= family.least_layers:
        return
    if family.least_layers > len(family.kinds):
        raise ValueError(
            'no layer of the source has attention (layer_types); transformers runs no such model with a cache.'
        )
    raise ValueError(
        f'num_hidden_layers={shape.num_hidden_layers} leaves no layer with attention: the kinds of layers keep their '
        f'order (layer_types: {", ".join(family.kinds[: family.least_layers])}, ...), and transformers runs no such '
        f'model with a cache; set at least {family.least_layers}.'
    )


def _named_shape(config: PretrainedConfig, target: Mapping[str, Any], uneven: bool) -> ModelShape:
    family, source = family_of(config), shape_of(config)
    check_heads(source)
    if set(target) <= set(TARGET_KEYS) and all(map(is_integer, target.values())):
        return resolve_target(source, target, family.has_head_dim)
    problems = [*_key_problems(target, source), *_option_problems(target)]
    fractions = target.get('fraction')
    problems += _fraction_problems(fractions, target, source)
    pins = {key: value for key, value in target.items() if key in TARGET_KEYS and is_integer(value)}
    not_whole = [key for key in TARGET_KEYS if key in target and key not in pins]
    problems += [f'{key}={target[key]!r}: must be a whole number.' for key in not_whole]
    if not family.has_head_dim:
        pins = _coupled_pins(pins, source)
    problems += _pin_problems(source, pins, family.has_head_dim)
    multiple_of = target.get('multiple_of', MULTIPLE_OF)
    if not problems:
        sizes, more = _sizes_of_fractions(source, fractions or {}, multiple_of, pins, family.has_head_dim)
        problems += more
        if not more and config.model_type in WHOLE_HEADS and not uneven:
            sizes = _with_whole_heads(sizes, source, multiple_of, fractions or {}, pins)
    if problems:
        listed = '\n'.join(f'  - {problem}' for problem in problems)
        raise ValueError(f'The target {target} of the source ({source}) is not possible:\n{listed}')
    if 'params' not in target and 'size' not in target:
        return resolve_target(source, sizes, family.has_head_dim)
    # Counting needs the model code, which a plain shape does not.
    from llmshearing.models.budget_search import search_budget

    budget, named = _budget(target)
    tolerance = target.get('tolerance', TOLERANCE)
    return search_budget(config, budget, named, multiple_of, pins, tolerance, not uneven)


def _parse_budget_size(value: Any) -> int:
    size = parse_size(value)
    if size < LEAST_BYTES:
        raise ValueError(
            f'{value!r} is {size} bytes, less than any model has; B alone stands for bytes: write such as 2.5GB, or '
            'params: 1B for a billion parameters'
        )
    return size


def _parse_params(value: Any) -> int:
    count = parse_count(value)
    if count < 1:
        raise ValueError(f'{value!r} is less than one parameter; expected a count such as 1300000000, 1.3e9 or 1.3B')
    return int(count)


def _plain(target: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in target.items()}


def _budget(target: Mapping[str, Any]) -> tuple[int, str]:
    """The budget in parameters, and how the target names it."""
    if 'params' in target:
        return _parse_params(target['params']), f'params={target["params"]}'
    dtype = target.get('dtype', 'bfloat16')
    return parse_size(target['size']) // DTYPE_BYTES[dtype], f'size={target["size"]} in {dtype}'


def _key_problems(target: Mapping[str, Any], source: ModelShape) -> list[str]:
    if 'sparsity' in target:
        return [
            'sparsity names no shape: it is a target of the algorithm targeted_pruning alone, '
            'without any of the other keys.'
        ]
    if 'vocab_size' in target:
        return [TRIM_FIRST]
    possible = (*source.as_dict(), *OPTION_KEYS)
    return [
        f'unknown key {key!r}.{did_you_mean(key, possible)} Possible: {", ".join(possible)}.'
        for key in target
        if key not in possible
    ]


def _option_problems(target: Mapping[str, Any]) -> list[str]:
    problems = []
    ways = [key for key in ('fraction', 'params', 'size') if key in target]
    if len(ways) > 1:
        problems.append(f'{" and ".join(ways)} both name the target; keep one of them.')
    for key, users in OPTION_USERS.items():
        if key in target and not set(users) & set(ways):
            problems.append(f'{key} belongs to {" or ".join(users)}, not in this target; remove it or add one of them.')
    for key, parse in (('params', _parse_params), ('size', _parse_budget_size)):
        if key in target:
            try:
                parse(target[key])
            except ValueError as error:
                problems.append(f'{key}: {error}.')
    if target.get('dtype', 'bfloat16') not in DTYPE_BYTES:
        problems.append(f'dtype={target["dtype"]!r}: must be one of {", ".join(DTYPE_BYTES)}.')
    multiple_of = target.get('multiple_of', MULTIPLE_OF)
    if not is_integer(multiple_of) or multiple_of < 1:
        problems.append(f'multiple_of={multiple_of!r}: must be a whole number of 1 or more, such as 64.')
    tolerance = target.get('tolerance', TOLERANCE)
    if not is_number(tolerance) or not 0 < tolerance < 1:
        problems.append(f'tolerance={tolerance!r}: must be between 0 and 1, such as {TOLERANCE}.')
    return problems


def _fraction_problems(fractions: Any, target: Mapping[str, Any], source: ModelShape) -> list[str]:
    if 'fraction' not in target:
        return []
    if not isinstance(fractions, Mapping) or not fractions:
        return [f'fraction={fractions!r}: must map some of {", ".join(FRACTION_KEYS)} to the fraction to keep.']
    problems = []
    possible = [key for key in FRACTION_KEYS if key in source.as_dict()]
    for key, value in fractions.items():
        if key not in possible:
            listed = ', '.join(possible)
            problems.append(f'fraction: unknown key {key!r}.{did_you_mean(key, possible)} Possible: {listed}.')
            continue
        if key in target:
            problems.append(f'{key} is given as a size and as a fraction; keep one of them.')
        if not is_number(value):
            problems.append(f'fraction.{key}={value!r}: must be a number above 0 and at most 1.')
        elif not 0 < value <= 1:
            nearest = '1.0, which keeps everything' if value > 1 else f'{1 / getattr(source, key):.2g}, which keeps one'
            problems.append(f'fraction.{key}={value}: must be above 0 and at most 1; nearest: {nearest}.')
    return problems


def _coupled_pins(pins: dict[str, int], source: ModelShape) -> dict[str, int]:
    """Where hidden_size is heads x head_dim, one of the two gives the other."""
    heads, hidden = pins.get('num_attention_heads'), pins.get('hidden_size')
    if heads is None and 'num_key_value_heads' in pins:
        heads = pins['num_key_value_heads'] * source.group_size
    if heads is not None and hidden is None:
        return {**pins, 'hidden_size': heads * source.head_dim}
    if heads is None and hidden is not None and hidden % source.head_dim == 0:
        return {**pins, 'num_attention_heads': hidden // source.head_dim}
    return pins


def _pin_problems(source: ModelShape, pins: Mapping[str, int], has_head_dim: bool) -> list[str]:
    try:
        resolve_target(source, pins, has_head_dim)
    except ValueError as error:
        return [str(error).replace('\n', '\n    ')]
    return []


def nearest_multiple(value: float, step: int, most: int) -> int:
    """The multiple of ``step`` nearest to ``value``, from one ``step`` to ``most``, which is no less."""
    return min(max(math.floor(value / step + 0.5), 1), most // step) * step


def nearest_heads(source: ModelShape, heads: float, hidden_size: int = 0) -> tuple[int, int]:
    """Query and KV heads nearest to a wished number of query heads: whole groups fewer, or fewer in every group.

    Args:
        source (ModelShape): Shape of the source.
        heads (float): Wished query heads.
        hidden_size (int): What the query heads must divide. Default: ``0``, which all do.
    """
    possible = possible_heads(source)
    dividing = [pair for pair in possible if hidden_size % pair[0] == 0] or possible
    return min(dividing, key=lambda pair: abs(pair[0] - heads))  # of equally near ones the first: whole groups


def _sizes_of_fractions(
    source: ModelShape, fractions: Mapping[str, float], multiple_of: int, pins: Mapping[str, int], has_head_dim: bool
) -> tuple[dict[str, int], list[str]]:
    """Sizes that the fractions and pins ask for, each rounded to the nearest possible one, and what is not possible."""
    sizes, problems = dict(pins), []
    fractions, hidden_step = dict(fractions), multiple_of
    if not has_head_dim:
        hidden_step = math.lcm(multiple_of, source.head_dim)
        problems += _couple(fractions)
    steps = {
        'num_hidden_layers': 1,
        'hidden_size': hidden_step,
        'num_key_value_heads': 1,
        'intermediate_size': multiple_of,
        'num_experts': 1,
    }
    for key, step in steps.items():
        if key in fractions:
            most = getattr(source, key)
            if fractions[key] == 1:
                sizes[key] = most
            elif step <= most:
                sizes[key] = nearest_multiple(most * fractions[key], step, most)
            else:
                problems.append(
                    f"fraction.{key}: no multiple of {step} fits into the source's {most}; lower multiple_of, or give "
                    f'{key} itself.'
                )
    if problems:
        return {}, problems
    if 'num_experts' in fractions:
        sizes['num_experts'] = max(sizes['num_experts'], source.num_experts_per_tok)
    if 'num_attention_heads' in fractions:
        wish, groups = source.num_attention_heads * fractions['num_attention_heads'], sizes.get('num_key_value_heads')
        if groups is None:
            sizes['num_attention_heads'], sizes['num_key_value_heads'] = nearest_heads(source, wish)
        else:
            sizes['num_attention_heads'] = nearest_multiple(wish, groups, groups * source.group_size)
    return sizes if has_head_dim else _coupled_pins(sizes, source), []


def _with_whole_heads(
    sizes: dict[str, int], source: ModelShape, multiple_of: int, fractions: Mapping[str, float], pins: Mapping[str, int]
) -> dict[str, int]:
    """Of the sizes that fractions name, the nearest that make hidden_size a multiple of the query heads, if any do."""
    heads = with_heads(source, sizes).get('num_attention_heads', source.num_attention_heads)
    hidden = sizes.get('hidden_size', source.hidden_size)
    if hidden % heads == 0:
        return sizes
    if 'hidden_size' in fractions:
        step, most = math.lcm(multiple_of, heads), source.hidden_size
        return {**sizes, 'hidden_size': nearest_multiple(hidden, step, most)} if step <= most else sizes
    if 'num_attention_heads' in fractions and 'num_key_value_heads' not in fractions:
        wish, pinned = source.num_attention_heads * fractions['num_attention_heads'], pins.get('num_key_value_heads')
        if pinned is None:
            heads, groups = nearest_heads(source, wish, hidden)
            return {**sizes, 'num_attention_heads': heads, 'num_key_value_heads': groups}
        dividing = [n for n in range(pinned, pinned * source.group_size + 1, pinned) if hidden % n == 0]
        if dividing:
            return {**sizes, 'num_attention_heads': min(dividing, key=lambda n: abs(n - wish))}
    return sizes


def _couple(fractions: dict[str, float]) -> list[str]:
    """Where hidden_size is heads x head_dim, turns a fraction of the heads into one of hidden_size."""
    tied = ('hidden_size', 'num_attention_heads', 'num_key_value_heads')
    coupled = {key: fractions.pop(key) for key in tied if key in fractions}
    if len(set(coupled.values())) > 1:
        return [
            f'fraction: {coupled} differ, but this model type has no head_dim of its own, so hidden_size is heads x '
            'head_dim; give hidden_size alone.'
        ]
    if coupled:
        fractions['hidden_size'] = next(iter(coupled.values()))
    return []
