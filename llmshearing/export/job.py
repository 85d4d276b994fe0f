"""``export_checkpoint``: a Composer checkpoint of either stage becomes a stock Hugging Face folder.

One tensor at a time goes from the checkpoint through the cut into the output shard, so memory holds the largest tensor
and one shard, whatever the size of the model. The folder is read back and compared before it gets its name.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from llmshearing.checkpoints.checkpoint import Checkpoint, open_checkpoint
from llmshearing.checkpoints.tokenizer_files import check_same_ids, read_named_tokenizer
from llmshearing.compat.transformers import attention_implementation, dtype_argument, set_dtype
from llmshearing.export.model_card import CardFacts, Training, write_model_card
from llmshearing.export.model_folder import Tokenizer, cut_tensors, shape_left, write_model_folder
from llmshearing.export.probe import Probe, probe_masked
from llmshearing.export.pruned_folder import Origin, check_shape_left, write_pruned_folder
from llmshearing.export.settings import ExportSettings
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.export.verification import verify_folder, verify_tensors
from llmshearing.masks.axis_reports import AxisReport
from llmshearing.masks.state import PruningState, refuse_open_widths, refuse_unconverged
from llmshearing.metrics.last_losses import last_logged_losses
from llmshearing.metrics.pruning_record import record_of, write_record
from llmshearing.models.cuttable import Cutter
from llmshearing.models.cutting import CutPlan
from llmshearing.models.families import family_of
from llmshearing.models.shapes import check_buildable, shape_of
from llmshearing.models.source_files import derived_from, local_folder, public_name
from llmshearing.models.units import kept_units
from llmshearing.utils.paths import refuse_existing

__all__ = ['export_checkpoint']

log = logging.getLogger(__name__)

UNCONVERGED_REMEDY = 'Train on from this checkpoint, or use --allow-unconverged to cut to the target anyway.'


def export_checkpoint(path: Path, out: Path, settings: ExportSettings | None = None) -> dict[str, Any]:
    """Exports a checkpoint and verifies what was written.

    Args:
        path (Path): ``.pt`` file or folder of a sharded checkpoint.
        out (Path): Destination.
        settings (ExportSettings | None): How. Default: ``None``, as its defaults say.

    Returns:
        dict[str, Any]: ``shape``, ``parameters``, ``tensors_compared`` and, for small models, ``logit_difference``.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it cannot be exported as asked; nothing is left at ``out``.
    """
    out, settings = Path(out), settings or ExportSettings()
    needed = (path, settings.source, settings.tokenizer, settings.metrics)
    refuse_existing('--out', out, settings.overwrite, needed)
    checkpoint = open_checkpoint(path, local_folder(settings.source))
    refuse_existing('--out', out, settings.overwrite, (checkpoint.source,))
    with ModelFolderWriter(out, settings.max_shard_bytes, settings.overwrite) as writer:
        if checkpoint.pruning is None and settings.masks != 'target':
            raise ValueError(f'masks={settings.masks!r}: {path} holds no masks; it is not from the pruning stage.')
        if checkpoint.pruning is None or settings.masks == 'keep':
            report = _write_uncut(writer, checkpoint, settings)
        else:
            report = _write_cut(writer, checkpoint, checkpoint.pruning, settings)
        report['parameters'] = writer.parameters
        writer.commit()
    log.info('Exported %s to %s: %s', path, out, report)
    return report


def _write_cut(
    writer: ModelFolderWriter, checkpoint: Checkpoint, pruning: PruningState, settings: ExportSettings
) -> dict[str, Any]:
    refuse_open_widths(pruning)
    away: list[AxisReport] = []
    if settings.masks == 'target':
        away = refuse_unconverged(pruning, settings.tolerance, settings.allow_unconverged, UNCONVERGED_REMEDY)
        masks = pruning.final_masks()
    else:
        masks = pruning.current_masks()
    config, tied = checkpoint.config, checkpoint.config.tie_word_embeddings
    plan = CutPlan(family_of(config), pruning.source, masks, energies=pruning.norm_energies)
    if settings.masks == 'target':
        check_shape_left(config, plan, pruning.target)
    else:
        _check_current(config, plan)

    def tensors(what: str) -> Iterator[tuple[str, Tensor]]:
        count = sum(not (tied and path == plan.family.head) for path, _ in plan.cuts())
        return settings.shown(cut_tensors(plan, checkpoint.get, tied), what, count)

    origin = dataclasses.replace(_origin(checkpoint, settings), unconverged=away)
    shape = write_pruned_folder(writer, pruning, config, plan, tensors('writing'), settings.dtype, origin)
    report: dict[str, Any] = {
        'shape': shape,
        'tensors_compared': verify_tensors(writer.path, tensors('checking'), settings.convert),
    }
    if checkpoint.shapes.count <= settings.logits_up_to:
        expected = _probe(checkpoint, masks, pruning.norm_energies)
        lowest = min(
            (stored.dtype for stored in checkpoint.weights.values()), key=lambda dtype: -torch.finfo(dtype).eps
        )
        # What a checkpoint of half precision holds is cut in half precision: there is nothing more exact to compare.
        meant = tensors('comparing') if lowest == torch.float32 else None
        report['logit_difference'] = verify_folder(writer.path, expected, settings.dtype or lowest, meant)
    return report


def _check_current(config: PretrainedConfig, plan: CutPlan) -> None:
    """Refuses sizes on the way to the target that transformers would refuse once all tensors are written."""
    shape = shape_left(config, plan)
    try:
        check_buildable(config, shape, plan.family.has_head_dim)
    except ValueError as error:
        raise ValueError(
            f'--masks current leaves {shape}, and transformers takes no {config.model_type} of it: {error.__cause__} '
            'Take another checkpoint, keep the masks beside the uncut model (--masks keep), or cut to the target '
            '(--masks target --allow-unconverged).'
        ) from error


def _write_uncut(writer: ModelFolderWriter, checkpoint: Checkpoint, settings: ExportSettings) -> dict[str, Any]:
    names = [name for name in checkpoint.weights if name not in checkpoint.shapes.tied]

    def tensors(what: str) -> Iterator[tuple[str, Tensor]]:
        return settings.shown(((name, checkpoint.weights[name].read()) for name in names), what, len(names))

    config, shape, origin = checkpoint.config, shape_of(checkpoint.config), _origin(checkpoint, settings)
    source = public_name(origin.source)
    if checkpoint.pruning is None:
        source = derived_from(origin.files) or source  # training began with a result of ours, mostly
        if not origin.files:
            began = f'{origin.source} is not on this machine' if origin.source else 'not noted in it'
            log.warning(
                '%s: the model that its training began with: %s. So the card has no licence, and the generation '
                'settings are made up from the config; --source FOLDER names it, for example the pruned folder.',
                checkpoint.path,
                began,
            )
    config.use_cache = True
    set_dtype(config, settings.dtype or checkpoint.weights[names[0]].dtype)
    write_model_folder(writer, config, tensors('writing'), origin.tokenizer, origin.files, settings.dtype)
    if checkpoint.pruning is not None:
        _write_masks(writer.path, checkpoint, checkpoint.pruning)
    facts = CardFacts(
        name=writer.folder.name,
        source=source,
        stage='continued' if checkpoint.pruning is None else 'kept',
        shape=shape,
        parameters=writer.parameters,
        training=origin.training,
    )
    write_model_card(writer.path, facts, origin.files)
    return {'shape': shape, 'tensors_compared': verify_tensors(writer.path, tensors('checking'), settings.convert)}


def _write_masks(folder: Path, checkpoint: Checkpoint, pruning: PruningState) -> None:
    """Writes ``pruning.json`` and ``masks/masks.safetensors``, where no loader takes it for weights."""
    kinds = {'target': pruning.final_masks(), 'current': pruning.current_masks(), 'score': pruning.learner.scores()}
    # Frozen masks are both target and current: each tensor in memory of its own, or safetensors refuses them.
    tensors = {
        f'{kind}.{axis}': mask.float().clone(memory_format=torch.contiguous_format)
        for kind, masks in kinds.items()
        for axis, mask in masks.items()
    }
    (folder / 'masks').mkdir()
    save_file(tensors, folder / 'masks' / 'masks.safetensors', metadata={'format': 'pt'})
    units = kept_units(pruning.final_masks(), pruning.source)
    name = Path(checkpoint.source or 'unknown').name
    write_record(folder, record_of(pruning, units, checkpoint.batches, checkpoint.tokens, name))


def _probe(checkpoint: Checkpoint, masks: Mapping[str, Tensor], energies: Tensor | None) -> Probe:
    """Logits of the masked model, computed in float32."""
    attention = attention_implementation(checkpoint.config)
    model = AutoModelForCausalLM.from_config(
        checkpoint.config, attn_implementation=attention, **dtype_argument(torch.float32)
    )
    # Not strict, since a tied head is stored once; every other name and shape was checked when the
    # checkpoint was opened.
    model.load_state_dict({name: stored.read().float() for name, stored in checkpoint.weights.items()}, strict=False)
    model.tie_weights()
    cutter = Cutter(model.eval())
    cutter.norm_energies = energies
    return probe_masked(cutter, masks)


def _origin(checkpoint: Checkpoint, settings: ExportSettings) -> Origin:
    losses, at = {}, None
    if settings.metrics is not None:
        losses, at = last_logged_losses(settings.metrics, checkpoint.batches)
    losses_of = 'the masked model during the run' if checkpoint.pruning is not None else 'this model'
    return Origin(
        source=checkpoint.source,
        parameters=checkpoint.shapes.count,
        training=Training(checkpoint.batches, checkpoint.tokens, losses, losses_of, at),
        files=checkpoint.files,
        tokenizer=_tokenizer(checkpoint, settings),
    )


def _tokenizer(checkpoint: Checkpoint, settings: ExportSettings) -> Tokenizer:
    if settings.tokenizer is not None:
        named = read_named_tokenizer(settings.tokenizer)
        check_same_ids(named, checkpoint.tokenizer, checkpoint.config.vocab_size, f'--tokenizer {settings.tokenizer}')
        return named
    if not checkpoint.tokenizer:
        log.warning(
            '%s carries no tokenizer; the folder is written without one. --tokenizer FOLDER names one.', checkpoint.path
        )
    return checkpoint.tokenizer or None
