"""torch: names that it does not export, and what it offers no way to ask for.

Fake tensors have shapes and no data; a dispatch mode sees every operation. Activation checkpointing puts a prefix
before the names of what it wraps. Metadata of sharded checkpoints name classes of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX as CHECKPOINT_PREFIX
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

__all__ = [
    'CHECKPOINT_PREFIX',
    'DTYPES',
    'FakeTensor',
    'FakeTensorMode',
    'METADATA_CLASSES',
    'TorchDispatchMode',
    'own_parameters',
    'place_in_file',
    'reshard',
    'shut_down_workers',
    'tree_leaves',
    'usable_device',
]

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}  # that models are written in
# What the metadata of a sharded checkpoint is made of, by the modules that pickles name.
METADATA_CLASSES = {
    'collections': {'OrderedDict'},
    'pathlib': {'Path', 'PosixPath', 'PurePath', 'PurePosixPath'},
    'torch': {'Size', 'device'},
    'torch.distributed.checkpoint.filesystem': {'_StorageInfo'},
    'torch.distributed.checkpoint.metadata': {
        'BytesStorageMetadata',
        'ChunkStorageMetadata',
        'Metadata',
        'MetadataIndex',
        'StorageMeta',
        'TensorProperties',
        'TensorStorageMetadata',
        '_MEM_FORMAT_ENCODING',
    },
    'torch.serialization': {'_get_layout'},
}


def own_parameters(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own parameters, not those of modules inside it; None for a bias that it could have and has not."""
    return dict(module._parameters)


def place_in_file(fake: FakeTensor) -> int:
    """Byte at which the storage of a tensor begins in the file that ``torch.load`` read it from under a fake mode."""
    place = fake.untyped_storage()._checkpoint_offset
    assert place is not None
    return place


def reshard(model: nn.Module) -> None:
    """Frees what FSDP2 gathered for a forward pass that no backward pass follows; the root keeps it otherwise."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shut_down_workers(loader: DataLoader) -> None:
    """Ends a loader's workers now. Left to the garbage collector, each takes five seconds to be given up."""
    workers: Any = loader._iterator
    if loader.num_workers and workers is not None:
        workers._shutdown_workers()
        loader._iterator = None


def usable_device(name: str | None) -> str:
    """The device of that name, or a GPU if there is one.

    Raises:
        ValueError: If it cannot be used; torch says so by two kinds of errors, as it knows the device or not.
    """
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    if name == 'meta':
        raise ValueError("device 'meta' cannot be used: tensors have no values there")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device {name!r} cannot be used: {str(error).splitlines()[0]}') from error
    return name
