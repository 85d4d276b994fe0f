"""Whether a decoder computes alone, on text, what transformers computes with it inside a multimodal model.

Equal tensors do not settle that: what scales or caps logits is code around them. So the decoder is run alone, then in
its place inside an empty model of the whole's class, with its own tensors and its first layers only: a whole that
computes text another way does so around any of them. Some classes leave out what the decoder's class does after the LM
head (transformers 5: `logit_scale` in Cohere 2 Vision, `logits_scaling` of a Granite in LLaVA).
That is a fault there and no reason to change the decoder's settings, which its maker trained with and other programs
follow; it is told, and nothing else may differ.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from llmshearing.checkpoints.stored_model import StoredModel
from llmshearing.compat.transformers import build_multimodal, dtype_of
from llmshearing.export.probe import probe_input, probe_length
from llmshearing.models.families import family_of
from llmshearing.models.on_meta import build_empty, parameters_on_meta

__all__ = ['TextLogits', 'check_inside', 'compare_inside', 'logits_on_text']

LAYERS = 4  # one of which has attention wherever other kinds stand between those that have
AFTER_HEAD = ('final_logit_softcapping', 'logit_scale', 'logits_scaling')  # of a decoder's config
# Largest difference of any logit, as a fraction of the largest one, by the precision that both compute in.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@dataclasses.dataclass(frozen=True)
class TextLogits:
    """What a decoder computes on a fixed text.

    Attributes:
        ids (Tensor): The text, [1, length].
        logits (Tensor): float32, [1, length, vocabulary].
        of_head (Tensor): What the LM head put out, of the same shape; the decoder's class may scale or cap that.
        dtype (torch.dtype): Precision they were computed in.
        after_head (str): The settings it does that by; empty if none.
    """

    ids: Tensor
    logits: Tensor
    of_head: Tensor
    dtype: torch.dtype
    after_head: str


def check_inside(whole: PretrainedConfig, config: PretrainedConfig, folder: Path) -> str:
    """Compares a decoder's folder with itself inside a multimodal model, by the first layers.

    Args:
        whole (PretrainedConfig): Of the multimodal model, with ``architectures``.
        config (PretrainedConfig): Of the decoder.
        folder (Path): The decoder's.

    Returns:
        str: What the whole leaves out, such as ``'logit_scale=0.0625'``; empty if nothing.

    Raises:
        ValueError: If the whole has no decoder of this class inside, or anything else differs.
    """
    part = _first_layers(config, folder)
    with parameters_on_meta():
        inside = build_multimodal(whole)
    alone = part.base_model
    place = next((path for path, module in inside.named_modules() if type(module) in (type(part), type(alone))), None)
    if place is None:
        raise ValueError(
            f'{type(inside).__name__} of transformers has no {type(alone).__name__} inside, which its text part is '
            'alone; it cannot be taken out as a model of its own.'
        )
    is_base = type(inside.get_submodule(place)) is type(alone)
    inside.set_submodule(place, alone if is_base else part)
    if is_base:
        inside.set_output_embeddings(part.get_output_embeddings())
    for module in inside.modules():  # what sees or hears takes no memory, and no part in what text computes
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False))
    return compare_inside(inside.eval(), logits_on_text(part), type(inside).__name__)[1]


def logits_on_text(decoder: PreTrainedModel) -> TextLogits:
    """Runs a decoder alone."""
    ids = probe_input(decoder.config.vocab_size, probe_length(decoder.config))
    heads: list[Tensor] = []
    head: Any = decoder.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: heads.append(output))
    with torch.no_grad():
        logits = decoder(ids, use_cache=False).logits
    hook.remove()
    return TextLogits(ids, logits.float(), heads[0].float(), decoder.dtype, _after_head(decoder.config))


def compare_inside(whole: nn.Module, alone: TextLogits, name: str) -> tuple[float, str]:
    """Runs a multimodal model on the same text.

    Args:
        whole (nn.Module): The multimodal model.
        alone (TextLogits): What the decoder inside it computes alone.
        name (str): Of the whole, for the message.

    Returns:
        tuple[float, str]: Largest difference of a logit, and what the whole leaves out (see :func:`check_inside`).

    Raises:
        ValueError: If they differ by anything else.
    """
    with torch.no_grad():
        got = whole(input_ids=alone.ids, use_cache=False).logits.float()
    difference, allowed = _difference(got, alone.logits, alone.dtype)
    if difference <= allowed:
        return difference, ''
    of_head, allowed_of_head = _difference(got, alone.of_head, alone.dtype)
    if of_head <= allowed_of_head:
        return of_head, alone.after_head
    raise ValueError(
        f'{name}: its logits on text differ from those of the decoder by {difference:.3g}, allowed is {allowed:.3g}.'
    )


def _difference(got: Tensor, expected: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Largest difference, and the largest allowed one."""
    return (got - expected).abs().max().item(), TOLERANCE[dtype] * max(1.0, expected.abs().max().item())


def _after_head(config: PretrainedConfig) -> str:
    said = {name: getattr(config, name, None) for name in AFTER_HEAD}
    return ', '.join(f'{name}={value}' for name, value in said.items() if value not in (None, 1))


def _first_layers(config: PretrainedConfig, folder: Path) -> PreTrainedModel:
    """A decoder that ends after a few layers, with its tensors."""
    dtype = dtype_of(config) or torch.float32
    model, tensors = build_empty(config, dtype), StoredModel(folder, config)
    layers: Any = model.get_submodule(family_of(config).layer_path(0).rpartition('.')[0])
    del layers[LAYERS:]
    for path, module in model.named_modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            tensor = tensors.get(f'{path}.{name}').to(dtype)
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    return model.eval()
