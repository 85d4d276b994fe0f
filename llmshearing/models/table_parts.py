"""What the tables of families are put together from: norms, attention, MLPs and linear attention as most have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmshearing.compat.transformers import layer_kinds
from llmshearing.models.roles import Linear, Norm, Role, Whole

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    'HEAD_NORMS',
    'JOINT_NORMS',
    'POST_NORMS',
    'attention',
    'fused_mlp',
    'gated_delta_net',
    'gated_mlp',
    'kinds',
    'mamba',
    'plain_mlp',
    'pre_norms',
    'sandwich_norms',
]

# Norms over the single head: nothing of them is ever cut.
HEAD_NORMS = {'self_attn.q_norm': Norm(dim=None), 'self_attn.k_norm': Norm(dim=None)}

# Norms over all heads at once.
JOINT_NORMS = {'self_attn.q_norm': Norm('query'), 'self_attn.k_norm': Norm('key_value')}

# Norms after attention and MLP and none before.
POST_NORMS = {'post_attention_layernorm': Norm(writes=True), 'post_feedforward_layernorm': Norm(writes=True)}


def kinds(config: PretrainedConfig, pattern: int | None = None) -> tuple:
    """Kind of each layer: as the config lists it, else every ``pattern``-th layer is of the other kind."""
    listed = layer_kinds(config)
    if listed or not pattern:
        return tuple(listed or ())
    return tuple((layer + 1) % pattern != 0 for layer in range(config.num_hidden_layers))


def pre_norms(
    attention: str = 'input_layernorm', mlp: str = 'post_attention_layernorm', offset: float = 0.0
) -> dict[str, Role]:
    """Norms before attention and MLP, with names as in LLaMA unless others are given."""
    return {
        attention: Norm(reads=True, offset=offset, feeds='attention'),
        mlp: Norm(reads=True, offset=offset, feeds='mlp'),
    }


def sandwich_norms(
    after_attention: str = 'post_attention_layernorm',
    before_mlp: str = 'pre_feedforward_layernorm',
    after_mlp: str = 'post_feedforward_layernorm',
    offset: float = 0.0,
) -> dict[str, Role]:
    """Norms before and after attention and MLP, those after write to the stream; names as in Gemma 2 unless given."""
    return {
        'input_layernorm': Norm(reads=True, offset=offset, feeds='attention'),
        after_attention: Norm(writes=True, offset=offset),
        before_mlp: Norm(reads=True, offset=offset, feeds='mlp'),
        after_mlp: Norm(writes=True, offset=offset),
    }


def attention(writes: bool = True, output: str = 'o_proj') -> dict[str, Role]:
    """Separate projections; ``writes`` unless a norm stands between them and the stream."""
    return {
        'self_attn.q_proj': Linear('query', 'hidden'),
        'self_attn.k_proj': Linear('key_value', 'hidden'),
        'self_attn.v_proj': Linear('key_value', 'hidden'),
        f'self_attn.{output}': Linear('hidden', 'query', writes=writes),
    }


def gated_mlp(
    place: str = 'mlp', gate: str = 'gate_proj', up: str = 'up_proj', down: str = 'down_proj', writes: bool = True
) -> dict[str, Role]:
    """Gate, up and down projection, with names as in LLaMA unless others are given."""
    return {
        f'{place}.{gate}': Linear('intermediate', 'hidden'),
        f'{place}.{up}': Linear('intermediate', 'hidden'),
        f'{place}.{down}': Linear('hidden', 'intermediate', writes=writes),
    }


def plain_mlp(up: str = 'up_proj', down: str = 'down_proj') -> dict[str, Role]:
    """Up and down projection alone."""
    return {f'mlp.{up}': Linear('intermediate', 'hidden'), f'mlp.{down}': Linear('hidden', 'intermediate', writes=True)}


def fused_mlp(writes: bool = True) -> dict[str, Role]:
    """Gate and up projection in one."""
    return {
        'mlp.gate_up_proj': Linear('gate_up', 'hidden'),
        'mlp.down_proj': Linear('hidden', 'intermediate', writes=writes),
    }


def gated_delta_net(*inputs: str, norm: str = 'norm', output: str = 'out_proj') -> dict[str, Role]:
    """Linear attention by the gated delta rule, opaque; ``inputs`` name its projections from the stream."""
    return {
        **{f'linear_attn.{name}': Linear(None, 'hidden') for name in inputs},
        'linear_attn': Whole(('dt_bias', 'A_log')),
        'linear_attn.conv1d': Whole(('weight',)),
        f'linear_attn.{norm}': Whole(('weight',)),
        f'linear_attn.{output}': Linear('hidden', None, writes=True),
    }


def mamba() -> dict[str, Role]:
    """A Mamba 2 mixer, opaque."""
    return {
        'mamba': Whole(('dt_bias', 'A_log', 'D')),
        'mamba.in_proj': Linear(None, 'hidden'),
        'mamba.conv1d': Whole(('weight',), optional=('bias',)),
        'mamba.norm': Whole(('weight',)),
        'mamba.out_proj': Linear('hidden', None, writes=True),
    }
