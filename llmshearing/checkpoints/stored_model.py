"""A model whose parameters stay in its files and are read when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor
from llmshearing.models.stored_names import read_parameter

__all__ = ['StoredModel']


@dataclasses.dataclass
class StoredModel:
    """A model in files, as :func:`~llmshearing.checkpoints.source.read_weights` reads them.

    Attributes:
        config (PretrainedConfig): Its config.
        stored (Mapping[str, StoredTensor]): Its tensors by their names in files.
        embedding (str): Name of the embedding there, which a tied head is.
    """

    config: PretrainedConfig
    stored: Mapping[str, StoredTensor]
    embedding: str

    def get(self, name: str) -> Tensor:
        """Reads one parameter by its name in memory; the embedding where a tied head is asked for."""
        return read_parameter(
            self.config, name, lambda stored: self.stored[stored if stored in self.stored else self.embedding].read()
        )
