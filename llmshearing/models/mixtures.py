"""Mixtures of experts: what configs call the numbers of a shape, and which of these models can be pruned.

In a mixture the ``intermediate_size`` of a shape is the width of one routed expert, ``num_experts`` how many routed
experts a layer has, and ``num_experts_per_tok`` how many of them compute each token (top-k), which never changes. A
shared expert, which computes every token, stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmshearing.utils.numbers import multiples_beside

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from llmshearing.models.shapes import ModelShape

__all__ = [
    'ALIGNED_EXPERTS',
    'MIXTURES',
    'OwnKeys',
    'check_aligned',
    'check_mixture',
    'own_key',
    'table_name',
    'with_shape_keys',
]


@dataclasses.dataclass(frozen=True)
class OwnKeys:
    """What a config calls the numbers of a shape, where it has words of its own.

    Attributes:
        num_experts (str): Routed experts of a layer.
        intermediate_size (str): Width of one of them.
    """

    num_experts: str = 'num_experts'
    intermediate_size: str = 'moe_intermediate_size'


# Torch multiplies all experts at once where their rows begin at multiples of 16 bytes, which are 8 numbers of bfloat16.
ALIGNED_EXPERTS = 8

# By the name of the table.
MIXTURES: dict[str, OwnKeys] = {
    'gpt_oss': OwnKeys('num_local_experts', 'intermediate_size'),
    'granitemoehybrid-experts': OwnKeys('num_local_experts', 'intermediate_size'),
    'mixtral': OwnKeys('num_local_experts', 'intermediate_size'),
    'olmoe': OwnKeys('num_experts', 'intermediate_size'),
    'qwen2_moe': OwnKeys(),
    'qwen3_5_moe_text': OwnKeys(),
    'qwen3_moe': OwnKeys(),
    'qwen3_next': OwnKeys(),
}


# Types that can be without experts, and then have words of their own. Granite's MLP is then the shared expert alone.
DENSE = {'granitemoehybrid': OwnKeys('num_local_experts', 'shared_intermediate_size')}


def table_name(config: PretrainedConfig) -> str:
    """Name of the table that describes a config's model: its model type, and another where that has two kinds."""
    routed = config.model_type in DENSE and config.num_local_experts
    return f'{config.model_type}-experts' if routed else config.model_type


def own_key(config: PretrainedConfig, name: str) -> str:
    """What a config calls a number of a shape."""
    return getattr((MIXTURES | DENSE).get(table_name(config)), name, name)


def with_shape_keys(config: PretrainedConfig, target: Mapping[str, Any]) -> dict[str, Any]:
    """A target whose keys are a shape's where it used the names of a mixture's config.

    Raises:
        ValueError: If it says the same number twice.
    """
    names = (MIXTURES | DENSE).get(table_name(config))
    if names is None:
        return dict(target)
    shape_keys = {getattr(names, field.name): field.name for field in dataclasses.fields(names)}
    twice = sorted(key for key, ours in shape_keys.items() if key != ours and key in target and ours in target)
    if twice:
        raise ValueError(
            f'{twice[0]} and {shape_keys[twice[0]]} are the same number of a {config.model_type}; keep the first.'
        )
    return {shape_keys.get(key, key): value for key, value in target.items()}


def check_aligned(config: PretrainedConfig, source: ModelShape, shape: ModelShape) -> None:
    """Raises a ValueError for sizes of a mixture that transformers' usual way to compute experts does not take."""
    sizes = {key: (getattr(shape, key), getattr(source, key)) for key in ('hidden_size', 'intermediate_size')}
    odd = {name: pair for name, pair in sizes.items() if pair[0] % ALIGNED_EXPERTS and pair[0] != pair[1]}
    if table_name(config) not in MIXTURES or not odd:
        return
    step, ways = ALIGNED_EXPERTS, []
    for name, (size, most) in odd.items():
        near = multiples_beside(size, step, most)
        ways.append(f'{own_key(config, name)}={" or ".join(map(str, near or [most]))}')
    listed = ', '.join(f'{own_key(config, name)}={size}' for name, (size, _) in odd.items())
    raise ValueError(
        f'{listed}: transformers computes experts of a {config.model_type} by a kernel that takes multiples of {step} '
        f'alone; nearest: {", ".join(ways)}.'
    )


def check_mixture(config: PretrainedConfig) -> None:
    """Raises a ValueError for a mixture that the tables do not describe: some layers without experts, or too few."""
    if table_name(config) not in MIXTURES:
        return
    if getattr(config, 'mlp_only_layers', None) or getattr(config, 'decoder_sparse_step', 1) != 1:
        raise ValueError(
            f'the config has layers without experts (mlp_only_layers={config.mlp_only_layers}, '
            f'decoder_sparse_step={config.decoder_sparse_step}), which no table describes; a {config.model_type} can '
            'be pruned where every layer has experts.'
        )
    experts, per_token = getattr(config, own_key(config, 'num_experts')), config.num_experts_per_tok
    if not 1 <= per_token <= experts:
        raise ValueError(
            f'the config has num_experts_per_tok={per_token} of {experts} experts; between 1 and {experts} are '
            'possible: correct its config.json.'
        )
