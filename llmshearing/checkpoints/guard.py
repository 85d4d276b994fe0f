"""Composer's own loading (``load_path``, ``autoresume``) held to what our export reads: nothing that could run.

Composer calls ``torch.load(weights_only=False)`` and PyTorch unpickles the metadata of sharded checkpoints, so a
checkpoint from elsewhere could run anything. Both libraries have a switch for that, set here before a trainer is built:
PyTorch's ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` overrules the call, and Composer's ``CHECKPOINT_VALIDATION_FUNCTION`` sees
every file first. A checkpoint that Composer and this package write passes both. Who trusts a checkpoint with other
objects sets ``TORCH_FORCE_WEIGHTS_ONLY_LOAD=0`` in the environment.

Composer's unreleased #3937 does the same from inside: ``weights_only`` with a list of harmless classes, and an
unpickler of few classes. It also covers ``composer.checkpoint.load``, which unpickles "resumption checkpoints" and
which neither Composer's trainer nor llm-foundry calls; whoever calls that function is not guarded here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from llmshearing.checkpoints.lazy_tensors import SAFE_GLOBALS, foreign_globals
from llmshearing.checkpoints.shards import METADATA_NAME, read_metadata

__all__ = ['guard_checkpoint_loading', 'refuse_code']

FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
VALIDATE = 'CHECKPOINT_VALIDATION_FUNCTION'


def guard_checkpoint_loading() -> None:
    """Sets both switches for this process, where the environment has not decided otherwise."""
    os.environ.setdefault(FORCE, '1')
    # whole first, then refuse_code
    os.environ.setdefault(VALIDATE, 'llmshearing.checkpoints.validation.validate_checkpoint')
    torch.serialization.add_safe_globals(SAFE_GLOBALS)


def refuse_code(path: str | Path, specs: Sequence[tuple[int, int]] | None = None) -> bool:
    """True for a checkpoint file that holds only numbers and plain types; Composer's validation hook.

    Args:
        path (str | Path): A ``.pt`` file, or the metadata or a data file of a sharded checkpoint.
        specs (Sequence[tuple[int, int]] | None): Offsets and lengths in a data file. Its pieces are whole archives of
            their own, which PyTorch reads under ``weights_only``; the files' names were checked with the metadata.

    Raises:
        ValueError: Naming what else the file holds.
    """
    path = Path(path)
    if specs is not None or os.environ.get(FORCE) in ('0', 'false', 'no', 'n'):
        return True
    if path.name == METADATA_NAME:
        read_metadata(path.parent)
        return True
    foreign = foreign_globals(path)
    if foreign:
        raise ValueError(
            f'{path} is not loaded, because it could run code: it holds {", ".join(foreign)}, '
            f'which a checkpoint of numbers does not need. If you trust where it comes from, set {FORCE}=0.'
        )
    return True
