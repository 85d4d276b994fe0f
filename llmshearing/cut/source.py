"""A source in memory: opened after its weights were checked, and its losses on held-out text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from llmshearing.checkpoints.source import check_weights
from llmshearing.compat.transformers import attention_implementation, dtype_argument, load_causal_lm
from llmshearing.cut.plan import PlannedCut
from llmshearing.cut.text import Text
from llmshearing.export.settings import DTYPES
from llmshearing.scaling.measure import domain_loss

__all__ = ['check_device', 'losses_of', 'open_source']


def check_device(device: str | None) -> str:
    """The device that is asked for, or a GPU if there is one.

    Raises:
        ValueError: If it cannot be used.
    """
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise ValueError(f'--device {device} cannot be used: {str(error).splitlines()[0]}') from error
    return device


def open_source(plan: PlannedCut, device: str) -> PreTrainedModel:
    """The source in evaluation mode, without gradients.

    Raises:
        ValueError: For weights that do not fit the config.
    """
    check_weights(plan.folder, plan.config)
    model, _ = load_causal_lm(
        plan.folder,
        config=plan.config,
        attn_implementation=attention_implementation(plan.config),
        **dtype_argument(DTYPES[plan.computed_in]),
    )
    return model.to(device).eval().requires_grad_(False)


def losses_of(model: PreTrainedModel, texts: Sequence[Text], plan: PlannedCut) -> dict[str, float]:
    """Nats per token on the held-out part of each text."""
    return {
        each.name: domain_loss(model, each.held_out, plan.sequences_per_pass, f'--text {each.name}')['loss']
        for each in texts
    }
