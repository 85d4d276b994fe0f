"""A source model's folder, checked, and read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from llmshearing.checkpoints.parameter_shapes import parameter_shapes
from llmshearing.checkpoints.source import check_weights
from llmshearing.checkpoints.stored_model import StoredModel
from llmshearing.checkpoints.weight_files import check_has_config
from llmshearing.models.source_config import read_config
from llmshearing.rotation.stream import StreamParts, stream_parts
from llmshearing.utils.files import load_json

__all__ = ['SourceFolder']


class SourceFolder(StoredModel):
    """A Hugging Face folder with safetensors files, after all checks that need no weights.

    Args:
        path (Path): The folder.

    Raises:
        ValueError: If it is no such folder, its tensors do not fit its config, or its family cannot be rotated.

    Attributes:
        path (Path): The folder.
        settings (dict[str, Any]): ``config.json`` as it stands in the file.
        parts (StreamParts): What of it the basis of the stream changes.
        names (list[str]): Parameter names in the order of the forward pass; a tied head is not among them.
        parameters (int): Numbers in all of them.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        check_has_config(str(path), path)
        config = read_config(self.path)
        self.settings: dict[str, Any] = load_json(self.path / 'config.json')
        self.parts: StreamParts = stream_parts(config)
        if not any((self.path / name).is_file() for name in ('model.safetensors', 'model.safetensors.index.json')):
            raise ValueError(
                f'{path} holds no model.safetensors; weights in other formats are not read, as a pickle can '
                'run code. Open the model with transformers and save it again: save_pretrained writes it.'
            )
        check_weights(self.path, config, values=False)
        super().__init__(self.path, config)
        expected = parameter_shapes(config)
        self.names = [name for name in expected.shapes if name not in expected.tied]
        self.parameters = expected.count

    @property
    def dtype(self) -> torch.dtype:
        """Type of the embedding as stored."""
        return self.stored[self.embedding].dtype

    def fingerprint(self) -> str:
        """Changes with the folder's weights and config; by size and time of the files, which are not read."""
        files = [self.path / 'config.json', *sorted(self.path.glob('*.safetensors'))]
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
