"""A model whose weights lie in a file that is mapped into memory, for models that memory does not hold.

The weights can be read and changed like any others. Pages that nobody looked at lately are the kernel's to write back
and drop, so a pass over the layers takes the memory of the layers that it is at. The file has no name: whoever is
killed leaves nothing behind.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from llmshearing.checkpoints.parameter_shapes import parameter_shapes
from llmshearing.checkpoints.stored_model import StoredModel
from llmshearing.models.on_meta import build_empty

__all__ = ['open_in_file']

ALIGNMENT = 64  # bytes; what vector instructions want


def open_in_file(folder: Path, config: PretrainedConfig, dtype: torch.dtype, place: Path) -> PreTrainedModel:
    """A folder's model in evaluation mode, without gradients; its weights are copied to the file one by one.

    Args:
        folder (Path): Model folder, whose tensors fit its config
            (:func:`~llmshearing.checkpoints.source.check_weights`).
        config (PretrainedConfig): Its config.
        dtype (torch.dtype): Type of the weights in the file.
        place (Path): Folder on the disk that shall hold the file.

    Raises:
        OSError: If the disk has no room for them.
    """
    stored, model = StoredModel(folder, config), build_empty(config, dtype)
    tied = parameter_shapes(config).tied
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    space = _Space(sum(tensor.nbytes + ALIGNMENT for tensor in tensors.values() if tensor.is_meta), place)
    for name, empty in tensors.items():
        tensor = stored.get(name)
        if empty.is_meta:
            path, _, own_name = name.rpartition('.')
            held = space.take(empty.shape, empty.dtype).copy_(tensor)
            setattr(model.get_submodule(path), own_name, nn.Parameter(held, requires_grad=False))
        else:  # a buffer that files hold
            empty.copy_(tensor)
    model.tie_weights()
    return model.eval()


class _Space:
    """A mapped file of so many bytes, handed out piece by piece."""

    def __init__(self, size: int, place: Path):
        size = max(size, 1)
        with tempfile.TemporaryFile(dir=place) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # or a disk that is full later would end the process by a signal
            self._bytes = torch.from_numpy(np.memmap(file, np.uint8, 'r+', shape=(size,)))
        self._used = 0

    def take(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        size = shape.numel() * dtype.itemsize
        piece = self._bytes[self._used : self._used + size]
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return piece.view(dtype).view(shape)
