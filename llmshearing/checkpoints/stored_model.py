"""A model whose parameters stay in its files and are read when they are asked for."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.checkpoints.source import read_weights
from llmshearing.models.families import family_of
from llmshearing.models.stored_names import read_parameter

__all__ = ['StoredModel']


class StoredModel:
    """A model in files.

    Args:
        folder (Path): Model folder, whose tensors fit its config
            (:func:`~llmshearing.checkpoints.source.check_weights`).
        config (PretrainedConfig): Its config, of a model type that has a table.

    Attributes:
        config (PretrainedConfig): Its config.
        stored (dict[str, StoredTensor]): Its tensors by their names in files.
        embedding (str): Name of the embedding there, which a tied head is.
    """

    def __init__(self, folder: Path, config: PretrainedConfig):
        self.config, self.stored = config, read_weights(folder, config)
        self.embedding = f'{family_of(config).embedding_path}.weight'

    def get(self, name: str) -> Tensor:
        """Reads one parameter by its name in memory; the embedding where a tied head is asked for."""
        return read_parameter(
            self.config, name, lambda stored: self.stored[stored if stored in self.stored else self.embedding].read()
        )
