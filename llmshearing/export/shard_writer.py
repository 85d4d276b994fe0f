"""Writes a model as a Hugging Face folder, one tensor after the other, and lets nobody see it before it is whole.

Tensors go into safetensors shards as they come, so memory holds one shard at most. Everything is written to a hidden
folder beside the destination, which takes the destination's name at the very end: a crash or a full disk leaves no
folder that looks like a model.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from llmshearing.utils.files import NO_ROOM, dump_json, give_usual_modes
from llmshearing.utils.locks import hold_lock
from llmshearing.utils.paths import refuse_existing

__all__ = ['SHARD_BYTES', 'ModelFolderWriter']

SHARD_BYTES = 10**9  # of commands that hold a shard beside a model while it fills
INDEX_NAME = 'model.safetensors.index.json'


class ModelFolderWriter:
    """Context manager that collects a model folder and renames it into place when it ends without an error.

    Args:
        folder (Path): Destination.
        max_shard_bytes (int): Size at which a shard is closed.
        overwrite (bool): Replace an existing destination.

    Attributes:
        path (Path): Where files of the folder are written until it is complete.
        parameters (int): Numbers written so far.

    Raises:
        ValueError: If the destination exists and may not be replaced, or another process writes it.
    """

    def __init__(self, folder: Path, max_shard_bytes: int = 5 * 10**9, overwrite: bool = False):
        self.folder, self.max_shard_bytes, self.overwrite = Path(folder), max_shard_bytes, overwrite
        self.path = self.folder.with_name(f'.{self.folder.name}.partial')
        self._shard: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._total_bytes = 0
        self.parameters = 0
        self._held = contextlib.ExitStack()

    def __enter__(self) -> ModelFolderWriter:
        refuse_existing('export', self.folder, self.overwrite)
        lock = self.folder.with_name(f'{self.path.name}.lock')
        lock.parent.mkdir(parents=True, exist_ok=True)
        if not self._held.enter_context(hold_lock(lock, optional=True)):
            raise ValueError(
                f'export: another process is writing {self.folder}; wait for it, or choose another folder.'
            )
        self._held.callback(lock.unlink, missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Adds one tensor under its parameter name."""
        if self._shard and self._bytes() + tensor.nbytes > self.max_shard_bytes:
            self._flush()
        self._shard[name] = tensor.detach().cpu().contiguous()
        self._total_bytes += tensor.nbytes
        self.parameters += tensor.numel()

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error_type is not None:
            shutil.rmtree(self.path, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            error.filename = error.filename or str(self.folder)  # a full disk names none
        self._held.close()

    def commit(self) -> None:
        """Makes the folder visible under its name, replacing an old one where that is allowed.

        Raises:
            ValueError: If the destination exists by now and may not be replaced.
        """
        refuse_existing('export', self.folder, self.overwrite)  # again: hours may have passed
        give_usual_modes(self.path)
        old = self.folder.with_name(f'{self.path.name}.old')
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self.path.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def finish_tensors(self) -> None:
        """Writes the last shard and, with more than one, the index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            (self.path / _shard_name(0)).rename(self.path / 'model.safetensors')
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            final = f'model-{number + 1:05d}-of-{count:05d}.safetensors'
            (self.path / _shard_name(number)).rename(self.path / final)
            weight_map.update(dict.fromkeys(names, final))
        index = {'metadata': {'total_size': self._total_bytes}, 'weight_map': weight_map}
        dump_json(self.path / INDEX_NAME, index, sort_keys=True)

    def _bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._shard.values())

    def _flush(self) -> None:
        if self._shard:
            path = self.path / _shard_name(len(self._shards))
            try:
                save_file(self._shard, path, metadata={'format': 'pt'})
            except SafetensorError as error:  # a full disk, mostly
                raise OSError(f'{path} cannot be written ({error}); nothing is left of it.') from error
            self._shards.append(list(self._shard))
            self._shard = {}


def _shard_name(number: int) -> str:
    return f'shard-{number:05d}.safetensors'
