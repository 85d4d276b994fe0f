"""Settings of single families that go with the sizes of a shape: LFM2's width of the MLP, Granite's Mamba mixers.

A Mamba mixer is opaque: its inner channels stay while hidden dimensions go. Granite's config knows their number as
``mamba_expand x hidden_size``, so hidden sizes are possible that divide it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmshearing.models.mixtures import own_key

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['check_mixer_channels', 'mixer_channels', 'mlp_width', 'set_derived']


def mlp_width(config: PretrainedConfig) -> int:
    """Width of the MLP, which LFM2 computes from the ``intermediate_size`` of its config."""
    width = getattr(config, own_key(config, 'intermediate_size'))
    if not getattr(config, 'block_auto_adjust_ff_dim', False):
        return width
    width = int(2 * width / 3)
    if config.block_ffn_dim_multiplier is None:
        return width
    step = config.block_multiple_of
    return -(-int(config.block_ffn_dim_multiplier * width) // step) * step


def mixer_channels(config: PretrainedConfig) -> int | None:
    """Inner channels of a Mamba mixer, a multiple of every possible hidden size; None where no layer has a mixer."""
    if not hasattr(config, 'mamba_expand') or 'linear_attention' not in config.layer_types:
        return None
    return config.mamba_n_heads * config.mamba_d_head


def check_mixer_channels(config: PretrainedConfig, hidden_size: int) -> None:
    """Raises a ValueError for a hidden size that does not divide the channels of the source's Mamba mixers."""
    channels = mixer_channels(config)
    if channels is None or channels % hidden_size == 0:
        return
    possible = [size for size in range(config.hidden_size, 0, -1) if channels % size == 0]
    near = sorted(possible, key=lambda size: abs(size - hidden_size))[:4]
    raise ValueError(
        f'hidden_size={hidden_size}: the Mamba mixers of a {config.model_type} keep their {channels} channels, and '
        'transformers takes mamba_expand x hidden_size for as many, with a whole mamba_expand; nearest: '
        f'{", ".join(map(str, sorted(near)))}.'
    )


def set_derived(config: PretrainedConfig, mixer_channels: int | None) -> None:
    """Brings these settings in line with sizes that are already in the config, in place; channels are the source's."""
    if hasattr(config, 'block_auto_adjust_ff_dim'):
        config.block_auto_adjust_ff_dim = False  # intermediate_size is the width itself
        config.full_attn_idxs = None  # layer_types says it
    if not hasattr(config, 'mamba_expand'):
        return
    config.intermediate_size = mlp_width(config)  # what some programs read; without experts it is no other width
    if mixer_channels is not None:
        config.mamba_expand = mixer_channels // config.hidden_size
    else:  # of mixers that are not there; transformers checks them all the same
        config.mamba_n_heads, config.mamba_d_head = config.mamba_expand, config.hidden_size
