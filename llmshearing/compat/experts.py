"""How either generation of transformers computes routed experts: one by one as modules, or as parameters of one module.

transformers 4 has a block with a router that is a linear layer, and routes by itself; transformers 5 has a router that
routes and a module of experts that is told, whose gating is its private ``_apply_gate``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from llmshearing.compat.transformers import EXPERTS_ARE_MODULES
from llmshearing.utils.replaced import replaced

__all__ = ['RoutedTokens', 'even_routing', 'expert_matrices', 'record_router_logits', 'watch_experts']


@dataclasses.dataclass(frozen=True)
class RoutedTokens:
    """What one expert does for the tokens that are routed to it in one pass.

    Attributes:
        expert (int): Its number.
        gates (Tensor): Share of its output in each token's, [tokens].
        inner (Tensor): What its down projection reads, [tokens, intermediate size].
        out (Tensor): Its output before it is multiplied by the gates, [tokens, hidden size].
    """

    expert: int
    gates: Tensor
    inner: Tensor
    out: Tensor


def record_router_logits(decoder: nn.Module, stock: type) -> None:
    """Lets a decoder whose class was ``stock`` hand out its routers' logits, which transformers 5 finds by its class.

    The hooks that record them are put on all of its layers now, and not in the first forward pass, which may be through
    some of the layers only. They do nothing unless a model's config or a caller asks for ``output_router_logits``.
    """
    if EXPERTS_ARE_MODULES:
        return
    capturing: Any = importlib.import_module('transformers.utils.output_capturing')
    registry = capturing._CAN_RECORD_REGISTRY
    dict.__setitem__(registry, str(type(decoder)), dict.get(registry, str(stock)))
    capturing.maybe_install_capturing_hooks(decoder)


def watch_experts(block: nn.Module, names: Any, see: Callable[[RoutedTokens], None]) -> Any:
    """Has ``see`` called for every expert that tokens are routed to, at every forward pass of a mixture's MLP.

    Args:
        block (nn.Module): The MLP.
        names (Any): Of its parts, with ``expert_names`` (gate, up, down) where experts are modules.
        see (Callable): Is given the :class:`RoutedTokens` of one expert.

    Returns:
        Any: torch's handle of the hook, which ends with a ``with``.
    """

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if EXPERTS_ARE_MODULES:
            routed = _through_modules(module, inputs[0].flatten(0, -2), names.expert_names)
        else:
            routed = _through_parameters(module, *inputs)
        for tokens in routed:
            see(tokens)

    return (block if EXPERTS_ARE_MODULES else block.get_submodule('experts')).register_forward_pre_hook(before)


def expert_matrices(block: nn.Module, names: Any) -> tuple[Tensor, Tensor]:
    """Weights of all experts: [experts, 2 x intermediate, hidden], gate first, and [experts, hidden, intermediate].

    The arguments are those of :func:`watch_experts`.
    """
    experts: Any = block.get_submodule('experts')
    if EXPERTS_ARE_MODULES:
        gate, up, down = (
            torch.stack([expert.get_parameter(f'{name}.weight').detach() for expert in experts])
            for name in names.expert_names
        )
        return torch.cat([gate, up], 1), down
    gate_up, down = experts.gate_up_proj.detach(), experts.down_proj.detach()
    if experts.is_transposed:
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    if not experts.is_concatenated:
        gate_up = torch.cat([gate_up[:, ::2], gate_up[:, 1::2]], 1)
    return gate_up, down


def even_routing(num_experts: int) -> AbstractContextManager[None]:
    """Lets a step of a mixture run on tensors without data, whose router has no choice to make.

    transformers 4 asks which tokens each expert has: told that all have as many. transformers 5 multiplies all at once,
    whose kernel says that it takes float32 only where there is data: it is kept from that kernel, for its own.

    Args:
        num_experts (int): Experts of a layer; 0 changes nothing.
    """
    if not num_experts:
        return contextlib.nullcontext()
    if not EXPERTS_ARE_MODULES:
        moe = importlib.import_module('transformers.integrations.moe')
        return replaced(moe, '_can_use_grouped_mm', lambda *_: False)
    stock: Any = torch.where

    def evenly(condition: Tensor, *others: Any) -> Any:
        if others:
            return stock(condition, *others)
        tokens = torch.arange(max(condition.numel() // num_experts, 1), device=condition.device)
        return torch.zeros_like(tokens), tokens

    return replaced(torch, 'where', evenly)


def _through_modules(block: Any, x: Tensor, names: tuple[str, str, str]) -> Iterator[RoutedTokens]:
    shares, chosen = torch.topk(block.gate(x).softmax(-1, dtype=torch.float32), block.top_k, dim=-1)
    if getattr(block, 'norm_topk_prob', True):
        shares = shares / shares.sum(-1, keepdim=True)
    for number, expert in enumerate(block.experts):
        token, place = torch.where(chosen == number)
        if len(token):
            rows = x[token]
            inner = expert.act_fn(expert.get_submodule(names[0])(rows)) * expert.get_submodule(names[1])(rows)
            yield RoutedTokens(number, shares[token, place], inner, expert.get_submodule(names[2])(inner))


def _through_parameters(experts: Any, x: Tensor, chosen: Tensor, shares: Tensor) -> Iterator[RoutedTokens]:
    def linear(rows: Tensor, name: str, number: int) -> Tensor:
        weight = getattr(experts, name)[number]
        out = rows @ (weight if experts.is_transposed else weight.T)
        return out + getattr(experts, f'{name}_bias')[number] if experts.has_bias else out

    for number in chosen.unique().tolist():
        token, place = torch.where(chosen == number)
        inner = experts._apply_gate(linear(x[token], 'gate_up_proj', number))
        yield RoutedTokens(number, shares[token, place], inner, linear(inner, 'down_proj', number))
