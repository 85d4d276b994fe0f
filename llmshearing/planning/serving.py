"""Where the finished model could not be used: programs that take shapes for granted which training does not.

The tables of families were read in vLLM's model files and tried with transformers 5.24. A shape with
``hidden_size = num_attention_heads x head_dim`` and multiples of 256 has none of these troubles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmshearing.models.shapes import WHOLE_HEADS, ModelShape
from llmshearing.utils.numbers import multiples_beside

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['neighbours', 'position_warnings', 'serving_warnings']

# vLLM computes head_dim as hidden_size / num_attention_heads for these, whatever the config says.
HEAD_DIM_FROM_HIDDEN = ('granitemoehybrid', 'lfm2', 'qwen2', 'olmo2', 'starcoder2')
# Programs that tell kinds of layers by the layer's number, whatever the config's list says: the list, what stands in it
# at positions 0, 1, 2 ..., over and over, the program and what it does.
BY_NUMBER: dict[str, tuple[str, tuple[int | str, ...], str]] = {
    'smollm3': ('no_rope_layers', (1, 1, 1, 0), 'llama.cpp leaves rotary embedding out of every fourth layer'),
    'gpt_oss': (
        'layer_types',
        ('sliding_attention', 'full_attention'),
        'releases of vLLM give a window to every other layer',
    ),
}
K_QUANT_BLOCK = 256  # weights of a row that llama.cpp's K-quants pack together


def neighbours(value: int, step: int, most: int) -> str:
    """The multiples of ``step`` next to ``value`` that are possible, in words."""
    near = multiples_beside(value, step, most)
    return f'nearest: {" or ".join(map(str, near))}' if near else "none fits below the source's size"


def serving_warnings(model_type: str, source: ModelShape, target: ModelShape) -> list[str]:
    """What servers, quantizers and newer transformers will not do with a target that can be reached, or is the source.

    Multiples are proposed up to the source's sizes.
    """
    hidden, heads, head_dim = target.hidden_size, target.num_attention_heads, target.head_dim
    fitting = [n for n in range(1, source.num_attention_heads + 1) if n * head_dim == hidden]
    remedy = f'num_attention_heads={fitting[0]}' if fitting else f'hidden_size={heads * head_dim}'
    warnings = []
    if model_type in HEAD_DIM_FROM_HIDDEN and hidden != heads * head_dim:
        warnings.append(
            f'hidden_size={hidden} is not num_attention_heads x head_dim = {heads} x {head_dim}: vLLM takes head_dim '
            f'from hidden_size / heads for {model_type} and cannot load this shape; {remedy} could be served.'
        )
    if model_type in (*WHOLE_HEADS, 'gpt_neox') and hidden % heads:  # gpt_neox has no other shapes at all
        warnings.append(
            f'hidden_size={hidden} is no multiple of num_attention_heads={heads}: transformers 5 refuses such a '
            f'{model_type} config; {remedy} could be opened.'
        )
    if model_type in BY_NUMBER and target.num_hidden_layers < source.num_hidden_layers:
        name, kinds, rule = BY_NUMBER[model_type]
        warnings.append(
            f'num_hidden_layers={target.num_hidden_layers}: {rule} of a {model_type} by its number, whatever {name} of '
            f'the config says. Unless the layers that stay repeat that pattern of {len(kinds)}, it computes something '
            'else than transformers; the export says whether they do.'
        )
    rows = {'hidden_size': hidden, 'num_attention_heads x head_dim': heads * head_dim}
    rows['intermediate_size'] = target.intermediate_size
    odd = {name: size for name, size in rows.items() if size % K_QUANT_BLOCK}
    if odd:
        listed = ', '.join(f'{name}={size}' for name, size in odd.items())
        near = [
            f'{name} {neighbours(odd[name], K_QUANT_BLOCK, getattr(source, name))}'
            for name in ('hidden_size', 'intermediate_size')
            if name in odd
        ]
        warnings.append(
            f"{listed}: no multiple of {K_QUANT_BLOCK}, so llama.cpp's K-quants (Q4_K_M and others) cannot pack these "
            f'rows and fall back to larger types{"; " + "; ".join(near) if near else ""}; multiple_of: '
            f'{K_QUANT_BLOCK} proposes such sizes.'
        )
    return warnings


def position_warnings(config: PretrainedConfig) -> list[str]:
    """Which programs would compute another model than this config says, as they tell kinds of layers by number."""
    if config.model_type not in BY_NUMBER:
        return []
    name, kinds, rule = BY_NUMBER[config.model_type]
    listed = getattr(config, name, None) or []
    if all(kind == kinds[number % len(kinds)] for number, kind in enumerate(listed)):
        return []
    return [
        f'{rule} of a {config.model_type} by its number, and {name} of this model is another list. It computes '
        'something else than transformers does; look at what it generates before you serve it so.'
    ]
