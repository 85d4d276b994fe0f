"""The shape of a decoder: the numbers that pruning changes, and which targets a source can be cut to.

A shape is read from any Hugging Face config and written back into a copy of it, so the exported config is the source's
with these values replaced. All checks on a target live here: every problem is collected and raised in one message, each
with the nearest value that would be possible, before any weight is read.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmshearing.compat.transformers import STRICT_ERROR, check_valid, per_layer_lists
from llmshearing.models.derived_settings import check_mixer_channels, mixer_channels, mlp_width, set_derived
from llmshearing.models.mixtures import MIXTURES, own_key, table_name
from llmshearing.utils.checks import is_integer
from llmshearing.utils.numbers import multiples_beside
from llmshearing.utils.suggestions import refuse_unknown

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    'DTYPE_BYTES',
    'KEPT_FIELDS',
    'MIXTURE_FIELDS',
    'ModelShape',
    'TARGET_KEYS',
    'WHOLE_HEADS',
    'check_buildable',
    'check_heads',
    'check_whole_heads',
    'possible_heads',
    'resolve_target',
    'shape_of',
    'with_heads',
    'with_shape',
]

DTYPE_BYTES = {'bfloat16': 2, 'float16': 2, 'float32': 4}

MIXTURE_FIELDS = ('num_experts', 'num_experts_per_tok')  # 0 in a model without experts, where nothing names them
KEPT_FIELDS = ('head_dim', 'num_experts_per_tok')  # which a target cannot change
# What a config answers a value with that it does not take.
REFUSALS = (ValueError, TypeError, KeyError, STRICT_ERROR)
# Model types of which transformers 5.8 and newer open and save only a hidden_size that is a multiple of
# num_attention_heads, whatever head_dim says.
WHOLE_HEADS = ('arcee', 'cwm', 'gemma2', 'gemma3_text', 'hyperclovax', 'jais2', 'llama', 'vaultgemma')


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The prunable dimensions of a decoder, under their Hugging Face names.

    Attributes:
        num_hidden_layers (int): Decoder layers.
        hidden_size (int): Width of the residual stream.
        num_attention_heads (int): Query heads per layer.
        num_key_value_heads (int): Key-value heads per layer; equal to the query heads without grouped-query attention.
        intermediate_size (int): Width of the MLP; in a mixture, of each routed expert.
        head_dim (int): Width of one head. Never pruned.
        num_experts (int): Routed experts per layer; 0 in a model without experts.
        num_experts_per_tok (int): Routed experts that compute each token. Never pruned.
    """

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    head_dim: int
    num_experts: int = 0
    num_experts_per_tok: int = 0

    @property
    def group_size(self) -> int:
        """Query heads per key-value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def as_dict(self) -> dict[str, int]:
        """The numbers by name; those of experts where there are any, so that other records stay as they were."""
        numbers = dataclasses.asdict(self)
        return numbers if self.num_experts else {k: v for k, v in numbers.items() if k not in MIXTURE_FIELDS}

    def __str__(self) -> str:
        return ', '.join(f'{name}={value}' for name, value in self.as_dict().items())


TARGET_KEYS = tuple(field.name for field in dataclasses.fields(ModelShape))


def shape_of(config: PretrainedConfig) -> ModelShape:
    """Reads the shape from a Hugging Face config of a decoder."""
    heads, is_mixture = config.num_attention_heads, table_name(config) in MIXTURES
    return ModelShape(
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, 'num_key_value_heads', None) or heads,
        intermediate_size=mlp_width(config),
        head_dim=getattr(config, 'head_dim', None) or config.hidden_size // heads,
        num_experts=getattr(config, own_key(config, 'num_experts')) if is_mixture else 0,
        num_experts_per_tok=config.num_experts_per_tok if is_mixture else 0,
    )


def check_heads(source: ModelShape) -> None:
    """Raises a ValueError where a source's query heads cannot be divided over its KV heads."""
    heads, kv_heads = source.num_attention_heads, source.num_key_value_heads
    if heads % kv_heads:
        raise ValueError(
            f'the source has num_attention_heads={heads} and num_key_value_heads={kv_heads}: every KV head serves the '
            f'same number of query heads, so {heads} must be a multiple of {kv_heads}; correct its config.json.'
        )


def possible_heads(source: ModelShape) -> list[tuple[int, int]]:
    """Query and KV heads that a source can be cut to: whole groups fewer first, then fewer in every group."""
    groups, size = source.num_key_value_heads, source.group_size
    return [(n * size, n) for n in range(1, groups + 1)] + [(n * groups, groups) for n in range(1, size)]


def check_whole_heads(model_type: str, source: ModelShape, shape: ModelShape) -> None:
    """Raises a ValueError for a shape that newer releases of transformers do not open, naming the nearest they do."""
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    if model_type not in WHOLE_HEADS or hidden % heads == 0:
        return
    aligned = math.lcm(heads, 8)  # for tensor cores, where that is not far away
    near = multiples_beside(hidden, aligned if 8 * aligned <= hidden else heads, source.hidden_size)
    step = shape.num_key_value_heads if shape.group_size > 1 else 1
    possible = [n for n in range(step, source.num_attention_heads + 1, step) if hidden % n == 0]
    ways = [f'hidden_size={" or ".join(map(str, near))}'] if near else []
    if possible:
        ways.append(f'num_attention_heads={min(possible, key=lambda n: abs(n - heads))}')
    raise ValueError(
        f'hidden_size={hidden} with num_attention_heads={heads}: transformers 5.8 and newer open a {model_type} only '
        f'where the first is a multiple of the second; nearest: {", or ".join(ways)}. To go on nevertheless, with '
        'transformers 4, set uneven_heads: true beside the sizes. A llama without biases is then opened by all of them '
        'once its config.json says "model_type": "mistral", with equal logits.'
    )


def check_buildable(config: PretrainedConfig, shape: ModelShape, has_head_dim: bool) -> None:
    """Raises a ValueError where transformers takes no config of this shape, which an export would end in.

    Rotary factors of LongRoPE, for example, are as many as ``hidden_size / num_attention_heads / 2`` to it.
    """
    source, cut = shape_of(config), with_shape(config, shape, has_head_dim)
    try:
        check_valid(type(config).from_dict(cut.to_dict()))
    except REFUSALS as error:
        raise ValueError(
            f'transformers takes no {config.model_type} of the target ({shape}), so it could not be exported: '
            f'{" ".join(str(error).split())} '
            f'Where settings are tied to hidden_size / num_attention_heads, keep that quotient, {source.hidden_size} / '
            f'{source.num_attention_heads}: cut both in proportion, or neither.'
        ) from error


def with_shape(config: PretrainedConfig, shape: ModelShape, has_head_dim: bool = True) -> PretrainedConfig:
    """A copy of ``config`` with another shape.

    Args:
        config (PretrainedConfig): The source's config; not changed.
        shape (ModelShape): The new shape.
        has_head_dim (bool): Whether this model type reads ``head_dim``. Where it does not, the head dimension is
            ``hidden_size / num_attention_heads`` and is not written.

    Raises:
        ValueError: If its Mamba mixers cannot go with that hidden size.
    """
    check_mixer_channels(config, shape.hidden_size)
    config, channels = copy.deepcopy(config), mixer_channels(config)
    for field in dataclasses.fields(shape):
        if field.name == 'head_dim' and not has_head_dim:
            continue
        if field.name == 'num_key_value_heads' and not hasattr(config, 'num_key_value_heads'):
            continue
        if field.name in MIXTURE_FIELDS and not shape.num_experts:
            continue
        setattr(config, own_key(config, field.name), getattr(shape, field.name))
    set_derived(config, channels)
    for name, entries in per_layer_lists(config).items():  # the pattern goes on
        setattr(config, name, [entries[layer % len(entries)] for layer in range(shape.num_hidden_layers)])
    return config


def resolve_target(source: ModelShape, target: Mapping[str, Any], has_head_dim: bool = True) -> ModelShape:
    """Completes a partly given target with the source's values and checks that the source can be cut to it.

    Query heads that are not given follow the key-value heads (whole groups are removed); key-value heads that are not
    given follow the query heads where those fill whole groups, and otherwise stay.

    Args:
        source (ModelShape): Shape of the source model.
        target (Mapping[str, Any]): Some of :data:`TARGET_KEYS`; those of experts for a mixture alone.
        has_head_dim (bool): Whether the model type allows ``hidden_size != heads * head_dim``.

    Raises:
        ValueError: Names every problem of the target at once, each with what would be possible.
    """
    refuse_unknown('target', target, source.as_dict())
    not_int = {k: v for k, v in target.items() if not is_integer(v)}
    if not_int:
        raise ValueError(f'target values must be whole numbers, got {not_int}.')
    shape = dataclasses.replace(source, **with_heads(source, target))
    problems = _size_problems(source, shape) + _head_problems(source, shape, has_head_dim)
    if problems:
        listed = '\n'.join(f'  - {problem}' for problem in problems)
        raise ValueError(f'The source ({source}) cannot be cut to the target ({shape}):\n{listed}')
    return shape


def with_heads(source: ModelShape, target: Mapping[str, int]) -> dict[str, int]:
    """A target with the query heads that its KV heads imply, or the reverse."""
    heads, kv_heads = target.get('num_attention_heads'), target.get('num_key_value_heads')
    if heads is None and kv_heads is not None:
        return {**target, 'num_attention_heads': kv_heads * source.group_size}
    if kv_heads is None and heads is not None:
        kv_heads = heads // source.group_size if heads % source.group_size == 0 else source.num_key_value_heads
        return {**target, 'num_key_value_heads': kv_heads}
    return dict(target)


def _size_problems(source: ModelShape, shape: ModelShape) -> list[str]:
    problems = []
    for name, most in source.as_dict().items():
        got = getattr(shape, name)
        if name in KEPT_FIELDS:
            if got != most:
                what = 'the head dimension' if name == 'head_dim' else 'how many experts compute a token'
                problems.append(f'{name}={got}: {what} is inherited from the source; leave it out or set {most}.')
        elif got < 1:
            problems.append(f'{name}={got}: must be between 1 and {most}.')
        elif got > most:
            problems.append(
                f"{name}={got} is larger than the source's {most}: pruning only removes; set at most {most}."
            )
    per_token = source.num_experts_per_tok
    if 0 < shape.num_experts < per_token:
        problems.append(
            f'num_experts={shape.num_experts} is less than num_experts_per_tok={per_token}, the experts that compute '
            f'each token: keep {per_token} to {source.num_experts}.'
        )
    return problems


def _head_problems(source: ModelShape, shape: ModelShape, has_head_dim: bool) -> list[str]:
    heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    problems = []
    if heads > 0 and 0 < kv_heads <= source.num_key_value_heads:
        possible = [kv_heads * n for n in range(1, source.group_size + 1)]
        if heads not in possible:
            problems.append(
                f'num_attention_heads={heads} with num_key_value_heads={kv_heads}: every KV head must keep the '
                f"same number of query heads, at most the source's {source.group_size}; with {kv_heads} KV "
                f'heads possible: {possible}.'
            )
    if not has_head_dim and shape.hidden_size != heads * source.head_dim:
        nearest = max(1, min(round(shape.hidden_size / source.head_dim), source.num_attention_heads))
        problems.append(
            f'hidden_size={shape.hidden_size} with num_attention_heads={heads}: this model type has no head_dim of '
            f'its own, so hidden_size must be heads x {source.head_dim}; nearest: '
            f'hidden_size={nearest * source.head_dim}, num_attention_heads={nearest}.'
        )
    return problems
