"""A masked LLaMA written out by hand on full-size tensors: every mask is a multiplication of activations.

It shares no code with the package. Hidden dimensions with a zero mask never enter the residual stream; norms average
over the kept ones; the stream's writers and its readers' gains are scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def masked_llama_logits(model, input_ids: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """Logits [batch, length, vocabulary] of a LLaMA under masks; differentiable in the weights and the masks."""
    config = model.config
    layers, heads, kv_heads = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    ones = {
        'hidden': torch.ones(config.hidden_size),
        'layer': torch.ones(layers),
        'head': torch.ones(layers, heads),
        'kv_group': torch.ones(layers, kv_heads),
        'intermediate': torch.ones(layers, config.intermediate_size),
    }
    mask = {**ones, **masks}
    hidden = mask['hidden']
    kept = (hidden != 0).float()

    def norm(module, x):
        variance = (x.pow(2) * kept).sum(-1, keepdim=True) / kept.sum()
        return x * torch.rsqrt(variance + module.variance_epsilon) * module.weight * hidden

    x = model.model.embed_tokens(input_ids) * kept
    batch, length = input_ids.shape
    position = torch.arange(length)[None]
    cos, sin = model.model.rotary_emb(x, position)
    causal = torch.full((length, length), float('-inf')).triu(1)
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        write = hidden * mask['layer'][index]
        y = norm(layer.input_layernorm, x)
        q, k, v = (
            projection(y).view(batch, length, -1, attention.head_dim).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        scores = (q @ k.transpose(2, 3)) * attention.head_dim**-0.5 + causal
        out = scores.softmax(-1) @ v
        head_scale = mask['head'][index] * mask['kv_group'][index].repeat_interleave(heads // kv_heads)
        out = (out * head_scale[None, :, None, None]).transpose(1, 2).reshape(batch, length, -1)
        alive = (head_scale != 0).any().float()
        x = x + attention.o_proj(out) * write * alive
        y = norm(layer.post_attention_layernorm, x)
        inner = mlp.act_fn(mlp.gate_proj(y)) * mlp.up_proj(y) * mask['intermediate'][index]
        alive = (mask['intermediate'][index] != 0).any().float()
        x = x + mlp.down_proj(inner) * write * alive
    x = norm(model.model.norm, x)
    return x @ model.lm_head.weight.T
