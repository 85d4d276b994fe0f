"""Export without a run: a model in memory, under the masks that are set on it, becomes a stock Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from llmshearing.export.model_folder import cut_tensors, exported_config, full_tensors, shape_left, write_model_folder
from llmshearing.export.probe import probe_masked
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.export.verification import verify_folder
from llmshearing.models.cuttable import Cutter
from llmshearing.models.cutting import CutPlan
from llmshearing.models.shapes import ModelShape

__all__ = ['export_model']


def export_model(
    cutter: Cutter,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype = torch.float32,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = 5 * 10**9,
) -> ModelShape:
    """Writes what a model computes under its masks; the folder is opened and compared before it gets its name.

    Args:
        cutter (Cutter): Of a whole model, with masks set.
        folder (str | Path): Destination.
        tokenizer (PreTrainedTokenizerBase | None): Written beside the weights. Default: ``None``.
        dtype (torch.dtype): Type of the written weights. Default: ``torch.float32``.
        files (Mapping[str, str] | None): Small files of the source, such as its generation settings
            (:func:`~llmshearing.models.source_files.read_source_files`). Default: ``None``.
        overwrite (bool): Replace an existing folder. Default: ``False``.
        max_shard_bytes (int): Largest safetensors file. Default: 5 GB.

    Returns:
        ModelShape: Shape of the written model.

    Raises:
        ValueError: If no masks are set, layers keep different numbers of units, or the folder exists; nothing is left.
    """
    if cutter.masks is None:
        raise ValueError('export_model writes what masks leave, and none are set; call cutter.set_masks first.')
    model = cutter.model
    plan = CutPlan(cutter.family, cutter.shape, cutter.masks, energies=cutter.norm_energies)
    shape, expected = shape_left(model.config, plan), probe_masked(cutter, cutter.masks)
    with ModelFolderWriter(Path(folder), max_shard_bytes, overwrite) as writer:
        config = exported_config(model.config, plan, dtype)
        full, tied = full_tensors(model), model.config.tie_word_embeddings
        write_model_folder(writer, config, cut_tensors(plan, full, tied), tokenizer, files or {}, dtype)
        verify_folder(writer.path, expected, dtype, cut_tensors(plan, full, tied))
        writer.commit()
    return shape
