"""How a model folder is written from a file: what ``llmshearing export`` and ``llmshearing import`` have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from llmshearing.models.source_files import local_folder
from llmshearing.utils.checks import check_one_of

__all__ = ['ExportSettings', 'WriteSettings']

MASKS = ('target', 'current', 'keep')


@dataclasses.dataclass(frozen=True)
class WriteSettings:
    """How to write what a file holds.

    Args:
        dtype (torch.dtype | None): Type of the written weights; None keeps the file's.
        max_shard_bytes (int): Largest safetensors file.
        overwrite (bool): Replace an existing folder.
        source (str | None): Folder of the source model: name, licence, and what the file lacks of config and tokenizer.
        tokenizer (str | None): Folder to take the tokenizer from instead.
        progress (bool): Show a progress bar.

    Raises:
        ValueError: For a source that is not on this machine.
    """

    dtype: torch.dtype | None = None
    max_shard_bytes: int = 2 * 10**9
    overwrite: bool = False
    source: str | None = None
    tokenizer: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.source is not None and local_folder(self.source) is None:
            raise ValueError(f'source: {self.source} is no folder on this machine.')

    def convert(self, tensor: Tensor) -> Tensor:
        """A tensor in the type to write it in."""
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def shown(self, tensors: Iterable[tuple[str, Tensor]], what: str, total: int) -> Iterator[tuple[str, Tensor]]:
        """Passes tensors on one at a time, with a bar that says what is done of about so many if there is to be one."""
        return iter(tqdm(tensors, desc=what, unit='tensor', total=total, disable=not self.progress))


@dataclasses.dataclass(frozen=True)
class ExportSettings(WriteSettings):
    """How to export a checkpoint.

    The source may also be the pruned folder that continued pre-training began with; its generation config is taken.

    Args:
        masks (str): ``'target'``: cut to exactly the target; ``'current'``: cut as the masks are now; ``'keep'``: uncut
            weights with the masks beside them.
        allow_unconverged (bool): Cut to the target although expected counts are further away than ``tolerance``.
        tolerance (float): Allowed distance of expected counts, as a fraction of the target.
        metrics (Path | None): Metrics file of the run; its last losses go into the model card.
        logits_up_to (int): Parameters of the source up to which the masked model is built and its logits are compared.

    Raises:
        ValueError: For masks that are not of :data:`MASKS`, and a source that is not on this machine.
    """

    masks: str = 'target'
    allow_unconverged: bool = False
    tolerance: float = 0.05
    metrics: Path | None = None
    logits_up_to: int = 200_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of('masks', self.masks, MASKS)
