"""The text part of a multimodal model as a folder of its own: a plain decoder, which can be planned, cut and trained.

Its tensors are copied one at a time, bit for bit, under the names that they have in a model without the other parts.
What sees or hears stays behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor
from llmshearing.checkpoints.multimodal import read_multimodal_weights
from llmshearing.checkpoints.parameter_shapes import parameter_shapes
from llmshearing.checkpoints.weight_files import check_has_config
from llmshearing.compat.transformers import dtype_of, read_tokenizer, set_dtype
from llmshearing.export.model_card import CardFacts, write_model_card
from llmshearing.export.model_folder import write_model_folder
from llmshearing.export.settings import WriteSettings
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.export.text_agreement import check_inside
from llmshearing.export.verification import verify_tensors
from llmshearing.models.config_keys import refuse_looking_ahead
from llmshearing.models.shapes import shape_of
from llmshearing.models.source_config import read_config, refuse_quantised
from llmshearing.models.source_files import public_name, read_source_files
from llmshearing.utils.files import refuse_unwritable
from llmshearing.utils.paths import refuse_existing

__all__ = ['TextPart', 'text_config', 'write_text_part']


@dataclasses.dataclass(frozen=True)
class TextPart:
    """What was written.

    Attributes:
        model_type (str): transformers' name of the decoder.
        parameters (int): Of the decoder, a tied LM head counted once.
        tensors (int): How many were written, and read back bit for bit.
        left (int): Tensors of the source that stayed behind.
        left_out (str): Settings of the decoder that transformers does not follow in the whole; empty if none.
    """

    model_type: str
    parameters: int
    tensors: int
    left: int
    left_out: str


def write_text_part(source: Path, output: Path, overwrite: bool = False) -> TextPart:
    """Writes the text part of a multimodal model folder.

    Args:
        source (Path): Folder of a model whose config has a ``text_config``.
        output (Path): Folder to write.
        overwrite (bool): Replace an existing model folder. Default: ``False``.

    Raises:
        ValueError: If the source has no text part that transformers has a causal language model for, if its tensors do
            not fit that, if it computes something else alone, or if the output exists and may not be replaced.
    """
    source, output = Path(source), Path(output)
    check_has_config(str(source), source)
    whole = read_config(source)
    config = text_config(source, whole)
    refuse_existing('--output', output, overwrite, (source,))
    refuse_unwritable('--output', output)
    weights = read_multimodal_weights(source, config)
    stored = weights.text
    head = next(iter(parameter_shapes(_tied(config), in_files=True).tied), None)
    if head is not None:
        config = _tied(config, _is_tied(stored, head, config.tie_word_embeddings))
    shapes = parameter_shapes(config, in_files=True)
    shapes.check(str(source), stored)
    files = read_source_files(str(source))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from ((name, tensor.read()) for name, tensor in stored.items() if name not in shapes.tied)

    with ModelFolderWriter(output, WriteSettings.max_shard_bytes, overwrite) as writer:
        write_model_folder(writer, config, tensors(), read_tokenizer(source), files, None)
        facts = CardFacts(
            name=output.name,
            source=public_name(str(source)),
            stage='text',
            shape=shape_of(config),
            parameters=writer.parameters,
        )
        write_model_card(writer.path, facts, files)
        count = verify_tensors(writer.path, tensors(), lambda tensor: tensor)
        left_out = check_inside(whole, config, writer.path)
        writer.commit()
    return TextPart(config.model_type, writer.parameters, count, len(weights.others), left_out)


def text_config(source: Path, whole: PretrainedConfig) -> PretrainedConfig:
    """Config of a multimodal model's text part, as that of a model of its own.

    Raises:
        ValueError: If the model has none that transformers has a causal language model for, one that looks ahead, or
            quantised weights.
    """
    text = getattr(whole, 'text_config', None)
    if text is None or text.model_type == whole.model_type:
        raise ValueError(f'{source} is a {whole.model_type}, which has no text part beside others; use it as it is.')
    refuse_quantised(str(source), whole)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f'{source}: transformers has no causal language model of its text part, a {text.model_type}.')
    try:
        refuse_looking_ahead(text.to_dict())
    except ValueError as error:
        raise ValueError(f'{source}: of its text part, {error}') from error
    if dtype_of(text) is None:
        set_dtype(text, dtype_of(whole))
    return text


def _is_tied(stored: Mapping[str, StoredTensor], head: str, says_so: bool) -> bool:
    """Whether the LM head is the embedding. A whole has a word of its own for that, so the tensors are asked first."""
    if head not in stored:
        return True
    if not says_so:
        return False
    tensor = stored[head].read()
    alike = (other for name, other in stored.items() if name != head and other.shape == stored[head].shape)
    return any(torch.equal(other.read(), tensor) for other in alike)


def _tied(config: PretrainedConfig, is_tied: bool = True) -> PretrainedConfig:
    changed = type(config).from_dict(config.to_dict())
    changed.tie_word_embeddings = is_tied
    return changed
