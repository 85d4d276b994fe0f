"""The tensors of a multimodal model: those of its text part, by the names of a decoder's own folder, and the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from transformers import PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor
from llmshearing.checkpoints.parameter_shapes import parameter_shapes
from llmshearing.checkpoints.source import name_as_expected
from llmshearing.checkpoints.weight_files import find_tensors

__all__ = ['MultimodalWeights', 'read_multimodal_weights']

TEXT_PARTS = ('language_model.', 'text_model.')  # in names of tensors


@dataclasses.dataclass(frozen=True)
class MultimodalWeights:
    """The tensors of a multimodal model, still in their files.

    Attributes:
        text (dict[str, StoredTensor]): Of its text part, by their names in a folder without the rest.
        others (dict[str, StoredTensor]): Of all other parts, by their names in the folder.
        part (str): The words for the text part in names.
        before (str): What stands before them.
    """

    text: dict[str, StoredTensor]
    others: dict[str, StoredTensor]
    part: str
    before: str

    def name_inside(self, name: str) -> str:
        """What the whole model's files call a tensor of a decoder's folder."""
        inside = name.startswith(self.before)
        return f'{self.before}{self.part}{name.removeprefix(self.before)}' if inside else name


def read_multimodal_weights(folder: Path, config: PretrainedConfig) -> MultimodalWeights:
    """The tensors of a multimodal model, its text part apart from the others.

    Args:
        folder (Path): Folder of the whole model.
        config (PretrainedConfig): Config of the text part.
    """
    expected = parameter_shapes(config, in_files=True).shapes
    stored = find_tensors(folder)
    part = next((part for part in TEXT_PARTS if any(part in name for name in stored)), TEXT_PARTS[0])
    renamed = name_as_expected(config, {name.replace(part, '', 1): tensor for name, tensor in stored.items()})
    return MultimodalWeights(
        text={name: tensor for name, tensor in renamed.items() if name in expected},
        others={name: tensor for name, tensor in stored.items() if part not in name and name not in expected},
        part=part,
        before=next((name.split(part)[0] for name in stored if part in name), ''),
    )
