"""A model whose projections are read from their files when they are run, and forgotten afterwards.

A forward pass over a 7B source then needs the memory of its largest tensor and of the activations, in float64 too. The
files are read once per batch, from the page cache where they fit in it; on a CPU that is little beside the products.
Norms are small and stay, so that code that looks at them needs no care. There are no gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from llmshearing.checkpoints.stored_model import StoredModel
from llmshearing.models.families import family_of
from llmshearing.models.on_meta import build_empty
from llmshearing.models.roles import Norm, PerUnit, Whole

__all__ = ['paged_model']


def paged_model(source: StoredModel, dtype: torch.dtype, device: torch.device | str = 'cpu') -> PreTrainedModel:
    """The source's model in evaluation mode; embedding, projections and LM head are read at every use.

    Args:
        source (StoredModel): Its files.
        dtype (torch.dtype): To compute in.
        device (torch.device | str): Where to compute.
    """
    model = build_empty(source.config, dtype)

    def read(module: nn.Module, path: str, names: list[str]) -> None:
        for name in names:
            tensor = source.get(f'{path}.{name}').to(device, dtype, copy=True)  # a map of the file that stays is memory
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))

    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for path, role, _ in family_of(source.config).modules(source.config.num_hidden_layers):
        module = model.get_submodule(path)
        names = [name for name, parameter in module.named_parameters(recurse=False)]
        if isinstance(role, (Norm, PerUnit, Whole)):
            read(module, path, names)
        else:
            _page(module, partial(read, module, path, names))
    return model.eval()


def _page(module: nn.Module, read: Callable[[], None]) -> None:
    """Has a module's parameters read before it is run, and forgotten afterwards."""
    empty = dict(module.named_parameters(recurse=False))

    def after(module: nn.Module, _inputs: tuple, _output: torch.Tensor) -> None:
        for name, parameter in empty.items():
            setattr(module, name, parameter)

    module.register_forward_pre_hook(lambda _module, _inputs: read())
    module.register_forward_hook(after, always_call=True)
