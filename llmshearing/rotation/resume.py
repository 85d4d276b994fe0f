"""What a rotation that was killed finds again: tensors and numbers in one file, valid for one set of settings only.

The file lies in a hidden folder beside the output and is replaced as a whole, so that it is either the old state or
the new one. Sums are saved in float64 as they are, so going on gives the bits that never stopping would have given.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmshearing.utils.files import atomic_path

__all__ = ['RotationState', 'settings_key']


def settings_key(settings: dict[str, Any]) -> str:
    """Names a set of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class RotationState:
    """Saved parts of a rotation by stage.

    Args:
        output (Path): Folder that the rotation writes.
        key (str): :func:`settings_key`; what was saved under another one is not used.
    """

    def __init__(self, output: Path, key: str):
        self.folder = output.with_name(f'.{output.name}.rotation')
        self.key = key

    def load(self, stage: str) -> dict[str, Tensor] | None:
        """Tensors of a stage; None where nothing that fits was saved."""
        path = self._path(stage)
        if not path.is_file():
            return None
        try:
            with safe_open(path, 'pt') as file:
                if (file.metadata() or {}).get('key') != self.key:
                    return None
                return {name: file.get_tensor(name).clone() for name in file.keys()}
        except SafetensorError:  # of a machine that lost power, say; it is made again
            return None

    def save(self, stage: str, tensors: dict[str, Tensor]) -> None:
        """Replaces what is saved of a stage."""
        with atomic_path(self._path(stage)) as new:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, new, {'key': self.key})

    def remove(self) -> None:
        """Of a rotation that is done, nothing stays."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, stage: str) -> Path:
        return self.folder / f'{stage}.safetensors'
