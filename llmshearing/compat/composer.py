"""Composer 0.32 on versions of PyTorch that it does not know."""

from __future__ import annotations

__all__ = ['install']


def install() -> None:
    """Gives Composer two names that it defines for PyTorch up to 2.7.0 only, and uses with every version.

    ``device_train_microbatch_size: auto`` with a parallelism config otherwise ends in a NameError. They guard FSDP1
    when one rank alone runs out of memory; FSDP2, which is what masks run under, never used them.
    """
    from composer.trainer import _patch_pytorch
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    if not hasattr(_patch_pytorch, 'original_unshard'):
        _patch_pytorch.original_unshard = FlatParamHandle.unshard
        _patch_pytorch.unshard_with_sync = FlatParamHandle.unshard
