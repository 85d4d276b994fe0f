"""State dicts of the first Sheared LLaMA code become Hugging Face folders, and plain LLaMA folders such state dicts.

Every entry of the file must be known by name and have the shape that the others imply. A pruning checkpoint is
finished here: in each row the units with the largest ``z_loga`` stay, up to the given target, each with the gate's
deterministic value. What a mask then means is this package's one definition, which differs from the old export in two
points: the embedding is cut but not scaled, and the LM head is scaled by nothing (the old code scaled the first and
scaled the second twice).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor, load_stored
from llmshearing.checkpoints.parameter_shapes import parameter_shapes
from llmshearing.checkpoints.source import read_weights
from llmshearing.checkpoints.tokenizer_files import read_named_tokenizer
from llmshearing.compat.transformers import read_tokenizer, rotary_of
from llmshearing.export.legacy_names import LEGACY_MASKS, hugging_face_name, is_ignored, legacy_name, mask_axis
from llmshearing.export.model_card import CardFacts, write_model_card
from llmshearing.export.model_folder import cut_tensors, exported_config, write_model_folder
from llmshearing.export.pruned_folder import check_shape_left
from llmshearing.export.settings import WriteSettings
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.export.verification import verify_tensors
from llmshearing.masks.axes import keep_largest, plan_axes
from llmshearing.masks.hard_concrete import deterministic_gate
from llmshearing.models.counting import layout_of
from llmshearing.models.cutting import CutPlan
from llmshearing.models.dense_tables import LLAMA
from llmshearing.models.shapes import ModelShape, resolve_target, shape_of, with_shape
from llmshearing.models.source_config import read_config
from llmshearing.models.source_files import local_folder, public_name, read_source_files
from llmshearing.models.units import mask_shapes
from llmshearing.utils.checks import check_number
from llmshearing.utils.files import atomic_path
from llmshearing.utils.paths import refuse_existing

__all__ = ['ImportSettings', 'LegacyModel', 'export_legacy', 'import_legacy', 'read_legacy']

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImportSettings(WriteSettings):
    """How to import. Head dimension and rotary settings are the source's; by default, its tokenizer, too.

    Attributes:
        head_dim (int | None): Width of one attention head; needed where ``source`` is not given.
        target (Mapping[str, int] | None): Shape to finish a pruning checkpoint at, under Hugging Face names.
        rms_norm_eps (float | None): Epsilon of the norms; default: the source's, or 1e-5.
    """

    head_dim: int | None = None
    target: Mapping[str, int] | None = None
    rms_norm_eps: float | None = None


@dataclasses.dataclass(frozen=True)
class LegacyModel:
    """A legacy file.

    Attributes:
        weights (dict[str, StoredTensor]): Weights under their Hugging Face names, not yet read.
        scores (dict[str, Tensor]): ``z_loga`` by axis; empty without masks.
    """

    weights: dict[str, StoredTensor]
    scores: dict[str, Tensor]

    def get(self, name: str) -> Tensor | None:
        """Reads one weight; None where there is none of that name."""
        return self.weights[name].read() if name in self.weights else None


def read_legacy(path: Path) -> LegacyModel:
    """Opens a state dict, bare or under ``state`` -> ``model``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds code, an unknown mask or an unknown entry, each named.
    """
    content = load_stored(path)
    state = content
    if isinstance(content, dict) and isinstance(content.get('state'), dict):
        state = content['state'].get('model')
    if not isinstance(state, dict) or not any(isinstance(value, StoredTensor) for value in state.values()):
        raise ValueError(f'{path} is no state dict: expected tensors by name, bare or under state -> model.')
    weights, scores, unknown_masks, unknown = {}, {}, [], []
    for name, stored in state.items():
        axis = mask_axis(name)
        if hugging_face_name(name) is not None:
            weights[hugging_face_name(name)] = stored
        elif axis in LEGACY_MASKS:
            scores[axis] = stored.read().float()
        elif axis is not None:
            unknown_masks.append(axis)
        elif not is_ignored(name):
            unknown.append(name)
    if unknown_masks:
        raise ValueError(
            f'{path}: unknown mask(s) {", ".join(sorted(unknown_masks))}; '
            f'only {", ".join(LEGACY_MASKS)} can be imported.'
        )
    if unknown:
        listed = ', '.join(unknown[:12]) + (f', and {len(unknown) - 12} more' if len(unknown) > 12 else '')
        raise ValueError(f'{path}: entries that no LLaMA of the first Sheared LLaMA code has: {listed}.')
    return LegacyModel(weights, scores)


def _finish_legacy_masks(scores: Mapping[str, Tensor], source: ModelShape, target: ModelShape) -> dict[str, Tensor]:
    """Masks that keep exactly the target's units: the largest ``z_loga`` of each row, with deterministic gate values.

    Args:
        scores (Mapping[str, Tensor]): ``z_loga`` by axis, shapes as in :func:`~llmshearing.models.units.mask_shapes`.
        source (ModelShape): Shape of the weights.
        target (ModelShape): Shape to reach.

    Raises:
        ValueError: If an axis that the target makes smaller has no mask, or a mask has another shape.
    """
    plans, shapes, masks = plan_axes(source, target), mask_shapes(source), {}
    for axis, plan in plans.items():
        if axis not in scores:
            raise ValueError(
                f'the target keeps {plan.keep} of {plan.units} units along {axis}, '
                f'but the file has no {axis} mask to choose them by.'
            )
    for axis, score in scores.items():
        if tuple(score.shape) != shapes[axis]:
            raise ValueError(f'mask {axis} has shape {tuple(score.shape)}, the weights imply {shapes[axis]}.')
        masks[axis] = deterministic_gate(score) * (keep_largest(plans[axis], score) if axis in plans else 1)
    return masks


def import_legacy(path: Path, out: Path, settings: ImportSettings) -> dict[str, Any]:
    """Writes a legacy file as a Hugging Face folder and reads it back.

    Returns:
        dict[str, Any]: ``shape``, ``parameters`` and ``tensors_compared``.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If anything about it is not as expected; nothing is left at ``out``.
    """
    out, folder = Path(out), local_folder(settings.source)
    refuse_existing('--out', out, settings.overwrite, (path, folder, settings.tokenizer))
    legacy = read_legacy(path)
    config = _config(legacy, settings, folder)
    parameter_shapes(config).check(str(path), legacy.weights)
    source = shape_of(config)
    if bool(legacy.scores) != bool(settings.target):
        raise ValueError(
            f'{path} is a pruning checkpoint (masks {", ".join(legacy.scores)}): give the shape to finish at, --target.'
            if legacy.scores
            else f'{path} has no masks, so there is nothing to finish: leave out --target.'
        )
    target = resolve_target(source, settings.target) if settings.target else source
    masks = _finish_legacy_masks(legacy.scores, source, target)
    plan = CutPlan(LLAMA, source, masks)
    check_shape_left(config, plan, target)

    def tensors(what: str) -> Iterator[tuple[str, Tensor]]:
        cut = cut_tensors(plan, legacy.get, tied=False)
        return settings.shown(cut, what, 3 + 9 * target.num_hidden_layers)

    dtype = settings.dtype or legacy.weights['lm_head.weight'].dtype
    tokenizer = _tokenizer(settings, folder)
    with ModelFolderWriter(out, settings.max_shard_bytes, settings.overwrite) as writer:
        exported = exported_config(config, plan, dtype)
        files = read_source_files(settings.source)
        write_model_folder(writer, exported, tensors('writing'), tokenizer, files, settings.dtype)
        facts = CardFacts(
            name=out.name,
            source=public_name(settings.source),
            stage='imported',
            shape=target,
            parameters=writer.parameters,
            source_shape=source if masks else None,
        )
        write_model_card(writer.path, facts, files)
        compared = verify_tensors(writer.path, tensors('checking'), settings.convert)
        writer.commit()
    return {'shape': target, 'tensors_compared': compared, 'parameters': writer.parameters}


def export_legacy(folder: Path, out: Path, overwrite: bool = False) -> int:
    """Writes a plain Hugging Face LLaMA folder as a bare legacy state dict.

    Returns:
        int: Number of tensors written.

    Raises:
        ValueError: If the model is no multi-head LLaMA without biases, with a head of its own and LLaMA's first rotary
            settings, or its tensors do not fit its config.
    """
    folder, out = Path(folder), Path(out)
    config = read_config(folder)
    shape = shape_of(config)
    if config.model_type != 'llama' or config.tie_word_embeddings or shape.group_size != 1:
        raise ValueError(
            f'{folder}: only LLaMA with as many KV heads as heads and an LM head of its own has such a state dict; '
            f'got model_type {config.model_type!r}, {shape.num_attention_heads} heads, {shape.num_key_value_heads} KV '
            f'heads, tie_word_embeddings={config.tie_word_embeddings}.'
        )
    rotary = rotary_of(config)
    if rotary['rope_type'] != 'default' or rotary['rope_theta'] != 10000:
        listed = ', '.join(f'{key}: {value}' for key, value in rotary.items())
        raise ValueError(
            f'{folder}: its rotary settings are {listed}, and whoever reads such a state dict computes with a base of '
            '10000 without scaling; use the folder as it is.'
        )
    if out.is_dir():
        raise ValueError(f'{out} is a folder, but a state dict is one file; name such as {out / "model.pt"}.')
    if out.exists() and not overwrite:
        raise ValueError(f'{out} exists already; choose another file or allow overwriting it (--overwrite).')
    stored = read_weights(folder, config)
    parameter_shapes(config).check(str(folder), stored)
    unnamed = [name for name in stored if legacy_name(name) is None]
    if unnamed:
        raise ValueError(
            f'{folder}: {", ".join(unnamed[:12])} has no legacy name (biases are not part of that format).'
        )
    with atomic_path(out) as partial:
        torch.save({legacy_name(name): tensor.read() for name, tensor in stored.items()}, partial)
    return len(stored)


def _config(legacy: LegacyModel, settings: ImportSettings, folder: Path | None) -> PretrainedConfig:
    """A LLaMA config from the shapes of the tensors, other settings from the source or LLaMA-2's."""
    needed = (
        'model.embed_tokens.weight',
        'lm_head.weight',
        'model.layers.0.self_attn.q_proj.weight',
        'model.layers.0.mlp.up_proj.weight',
    )
    missing = [name for name in needed if name not in legacy.weights]
    if missing:
        raise ValueError(f'missing from the file: {", ".join(legacy_name(name) or name for name in missing)}.')
    if folder is None:
        base = LlamaConfig(rms_norm_eps=1e-5, max_position_embeddings=4096)
    else:
        base = read_config(folder)
    if base.model_type != 'llama':
        raise ValueError(f'source {folder} is a {base.model_type}; the first Sheared LLaMA code knew only llama.')
    if settings.rms_norm_eps is not None:
        check_number('--rms-norm-eps', settings.rms_norm_eps, 0, above=True)
        base.rms_norm_eps = settings.rms_norm_eps
    head_dim = settings.head_dim
    if folder is not None:
        stated = shape_of(base).head_dim
        if head_dim not in (None, stated):
            raise ValueError(f'--head-dim {head_dim}: heads of the source {folder} have {stated}; leave it out.')
        head_dim = stated
    if head_dim is None:
        raise ValueError(
            'the width of one attention head is not in the file; give --head-dim (128 for LLaMA-2) or --source FOLDER.'
        )
    if head_dim < 1:
        raise ValueError(f'--head-dim must be 1 or more, got {head_dim}; 128 for LLaMA-2.')
    vocab_size, hidden_size = legacy.weights['model.embed_tokens.weight'].shape
    width = legacy.weights['model.layers.0.self_attn.q_proj.weight'].shape[0]
    if width % head_dim:
        raise ValueError(
            f'q projections have {width} rows, which are no whole heads of width {head_dim}; correct --head-dim.'
        )
    layers = [int(name.split('.')[2]) for name in legacy.weights if name.startswith('model.layers.')]
    shape = ModelShape(
        num_hidden_layers=max(layers) + 1,
        hidden_size=hidden_size,
        num_attention_heads=width // head_dim,
        num_key_value_heads=width // head_dim,
        intermediate_size=legacy.weights['model.layers.0.mlp.up_proj.weight'].shape[0],
        head_dim=head_dim,
    )
    config = with_shape(base, shape)
    config.vocab_size, config.tie_word_embeddings, config.architectures = vocab_size, False, ['LlamaForCausalLM']
    layout_of(config)  # refuses what no model can be built from, such as a padding token beyond the file's vocabulary
    return config


def _tokenizer(settings: ImportSettings, folder: Path | None):
    if settings.tokenizer is not None:
        return read_named_tokenizer(settings.tokenizer)
    if folder is not None and any((folder / name).is_file() for name in ('tokenizer.json', 'tokenizer.model')):
        return read_tokenizer(folder)
    log.warning('The folder is written without a tokenizer; --tokenizer or --source FOLDER names one.')
    return None
