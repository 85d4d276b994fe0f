"""A source model's folder, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from llmshearing.checkpoints.parameter_shapes import check_tensors
from llmshearing.models.source_config import read_config
from llmshearing.rotation.stream import StreamParts, stream_parts
from llmshearing.utils.paths import check_safetensors_index

__all__ = ['SourceFolder', 'open_source']

IGNORED = '.rotary_emb.inv_freq'  # in checkpoints of old transformers; computed from the config since


class SourceFolder:
    """A Hugging Face folder with safetensors files, whose tensors are read when they are asked for and not kept.

    Args:
        path (Path): The folder.

    Raises:
        ValueError: If it is no such folder, its tensors do not fit its config, or its family cannot be rotated.

    Attributes:
        path (Path): The folder.
        config (PretrainedConfig): Its config.
        settings (dict[str, Any]): ``config.json`` as it stands in the file.
        parts (StreamParts): What of it the basis of the stream changes.
        names (list[str]): Parameter names in the order of the forward pass; a tied head is not among them.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        if not (self.path / 'config.json').is_file():
            raise ValueError(
                f'{path} holds no config.json; expected the folder of a Hugging Face model. Download it '
                'first, for example with `huggingface-cli download NAME --local-dir FOLDER`.'
            )
        self.config: PretrainedConfig = read_config(self.path)
        self.settings: dict[str, Any] = json.loads((self.path / 'config.json').read_text(encoding='utf-8'))
        self.parts: StreamParts = stream_parts(self.config)
        self._files = _tensor_files(self.path)
        with torch.device('meta'):
            model = AutoModelForCausalLM.from_config(self.config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        head = f'{self.parts.head}.weight'
        optional = {head} if self.parts.tied else set()
        check_tensors(str(path), self._shapes(), expected, optional)
        self.names = [name for name in expected if name not in optional]
        self.parameters = sum(torch.Size(expected[name]).numel() for name in self.names)

    @property
    def head(self) -> str:
        """Name of the LM head's weight."""
        return f'{self.parts.head}.weight'

    @property
    def dtype(self) -> torch.dtype:
        """Type of the embedding as stored."""
        return self.get(f'{self.parts.embedding}.weight', rows=1).dtype

    def get(self, name: str, rows: int | None = None) -> Tensor:
        """Reads one parameter, or its first rows; the embedding where a tied head is asked for."""
        if name == self.head and self.parts.tied:
            name = f'{self.parts.embedding}.weight'
        with safe_open(self.path / self._files[name], 'pt') as file:  # opened anew: a map that stays counts as memory
            return (file.get_tensor(name) if rows is None else file.get_slice(name)[:rows]).clone()

    def check_finite(self) -> None:
        """Raises a ValueError that names the first tensor with NaN or infinity."""
        for name in self.names:
            if not self.get(name).isfinite().all():
                raise ValueError(
                    f'{self.path}: {name} holds NaN or infinity; a rotation would spread it over the '
                    'whole tensor. Take a sound source.'
                )

    def fingerprint(self) -> str:
        """Changes with the folder's weights and config; by size and time of the files, which are not read."""
        facts = [
            (name, (self.path / name).stat().st_size, (self.path / name).stat().st_mtime_ns)
            for name in sorted({'config.json', *self._files.values()})
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {}
        for file_name in sorted(set(self._files.values())):
            try:
                with safe_open(self.path / file_name, 'pt') as file:
                    shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f'{self.path / file_name} cannot be read ({error}); download or copy it again.'
                ) from error
        return {name: shape for name, shape in shapes.items() if not name.endswith(IGNORED)}


def open_source(folder: Path | str) -> SourceFolder:
    """The folder's model, after all checks that need no weights."""
    return SourceFolder(Path(folder))


def _tensor_files(folder: Path) -> dict[str, str]:
    """File name by tensor name."""
    index = folder / 'model.safetensors.index.json'
    if index.is_file():
        return check_safetensors_index(index)
    single = folder / 'model.safetensors'
    if not single.is_file():
        raise ValueError(
            f'{folder} holds no model.safetensors; weights in other formats are not read, as a pickle can '
            'run code. Open the model with transformers and save it again: save_pretrained writes it.'
        )
    try:
        with safe_open(single, 'pt') as file:
            return dict.fromkeys(file.keys(), single.name)
    except SafetensorError as error:
        raise ValueError(f'{single} cannot be read ({error}); download or copy it again.') from error
