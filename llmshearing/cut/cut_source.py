"""A source folder in, a smaller model out: plan, rotate, choose, compensate, export, compare.

Everything that config.json, the text and the output's place can tell is told before a weight is read. The model stays
in memory from the first loss to the export, and nothing but the finished folder is written: whoever is killed leaves at
most a hidden folder that the next start removes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from llmshearing.checkpoints.weight_files import find_weights
from llmshearing.compat.torch import DTYPES, usable_device
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.cut.one_shot import prune_in_one_shot
from llmshearing.cut.plan import PlannedCut, plan_cut
from llmshearing.cut.result import CutResult
from llmshearing.cut.settings import CutSettings
from llmshearing.cut.source import losses_of, open_result, open_source
from llmshearing.cut.speed import tokens_per_second
from llmshearing.cut.text import Text, read_texts, token_batches
from llmshearing.export.model_card import Training
from llmshearing.export.model_folder import cut_tensors, full_tensors
from llmshearing.export.probe import probe_masked
from llmshearing.export.pruned_folder import Origin, write_pruned_folder
from llmshearing.export.shard_writer import SHARD_BYTES, ModelFolderWriter
from llmshearing.export.verification import verify_folder, verify_tensors
from llmshearing.masks.scores import Calibration
from llmshearing.masks.state import PruningState
from llmshearing.models.cuttable import Cutter
from llmshearing.models.cutting import CutPlan
from llmshearing.models.families import family_of
from llmshearing.models.source_files import read_source_files
from llmshearing.rotation.in_memory import Rotated, rotate_in_memory
from llmshearing.utils.files import refuse_unwritable
from llmshearing.utils.numbers import with_unit

__all__ = ['cut_source', 'stage_bar']

NO_TEXT = (
    'name some text with --text FILE ...: units are chosen by what they do on it, so text of the kind that the model '
    'is for keeps what it is for, and other text would keep something else.'
)

Report = Callable[[str], None]


def cut_source(
    source: str | Path,
    target: Mapping[str, Any],
    text: Sequence[str | Path],
    output: str | Path,
    settings: CutSettings | None = None,
    device: str | None = None,
    report: Report = lambda line: None,
    progress: bool = False,
) -> CutResult:
    """Cuts a model to a target in one shot and writes it as a stock Hugging Face folder.

    The same source, text and settings give the same bytes on the same machine.

    Args:
        source (str | Path): Folder of a Hugging Face model.
        target (Mapping[str, Any]): Such as ``{'params': '80M'}``; see :func:`~llmshearing.models.targets.target_shape`.
        text (Sequence[str | Path]): Files to choose units by and to measure losses on: JSON lines, Parquet, plain text.
        output (str | Path): Folder to write; must not exist.
        settings (CutSettings | None): What else decides the result. Default: all defaults.
        device (str | None): Where to compute. Default: a GPU if there is one.
        report (Callable): Receives a line now and then. Default: nothing.
        progress (bool): Show a bar for each stage on a terminal. Default: ``False``.

    Raises:
        ValueError: For a source, target, text, device or output that is not possible, before any weight is read; for
            weights that do not fit the config; and if the written folder does not compute what the cut model does.
    """
    settings, output = settings or CutSettings(), Path(output)
    if not text:
        raise ValueError(NO_TEXT)
    device = usable_device(device)
    plan = plan_cut(source, target, settings, device)
    for line in plan.lines():
        report(line)
    _check_place(output, plan)
    wanted = (settings.tokens, settings.held_out, settings.seed, settings.text_key)
    texts = read_texts(text, plan.folder, plan.config.vocab_size, plan.length, *wanted)
    report(f'text: {_count(texts, "seen"):,} tokens to choose by, {_count(texts, "held_out"):,} held out')
    losses, speed, rotated, difference = _cut(plan, texts, output, settings, device, report, progress)
    result = open_result(plan, output, device)  # the source is gone from memory
    return CutResult(
        folder=output,
        plan=plan,
        losses=losses,
        bytes_per_token={each.name: each.bytes_per_token for each in texts},
        speeds=(speed, tokens_per_second(result)),
        disk_bytes=(_weight_bytes(plan.folder), _weight_bytes(output)),
        rotated=rotated,
        difference=difference,
    )


def _cut(
    plan: PlannedCut,
    texts: Sequence[Text],
    output: Path,
    settings: CutSettings,
    device: str,
    report: Report,
    progress: bool,
) -> tuple[dict[str, tuple[float, float]], dict[str, float], Rotated | None, float | None]:
    """All that needs the source in memory: losses before and after, its speed, the rotation, a logit's difference."""
    model = open_source(plan, device, _disk_of(output))
    decoder = model.get_submodule(family_of(plan.config).decoder)
    held_out_passes = sum(-(-len(each.held_out) // plan.sequences_per_pass) for each in texts)
    batches = token_batches(texts, plan.sequences_per_pass, device)
    with stage_bar(decoder, 'losses of the source', held_out_passes, progress):
        before = losses_of(model, texts, plan.sequences_per_pass)
    report(f'source: {_in_words(before)} nats per token')
    speed, rotated = tokens_per_second(model), None
    if plan.rotates:
        with stage_bar(decoder, 'rotating', len(batches) + 3, progress):
            rotated = rotate_in_memory(model, [batch['input_ids'] for batch in batches])
        fixed = f', {rotated.fixed_axes} axes fixed' if rotated.fixed_axes else ''
        report(f'rotated{fixed}: {rotated.loss_before:.4f} nats on seen text before, {rotated.loss_after:.4f} after')
    calibration = Calibration(Cutter(model), batches, seed=settings.seed)
    passes = len(batches) * (len({plan.scores[axis] for axis in plan.axes}) + 1 + settings.compensate)
    with stage_bar(decoder, 'choosing', passes + settings.compensate * plan.config.num_hidden_layers, progress) as bar:
        pruning = prune_in_one_shot(calibration, plan.target, plan.scores, settings.compensate, bar.update)
    with stage_bar(decoder, 'losses of the result', held_out_passes, progress):
        after = losses_of(model, texts, plan.sequences_per_pass)
    report(f'cut: {_in_words(after)} nats per token')
    names = ', '.join(each.name for each in texts)
    recipe = {
        'scores': ', '.join(f'{axis} by {plan.scores[axis]}' for axis in pruning.plans),
        'text': f'{_count(texts, "seen"):,} tokens of {names}, seed {settings.seed}',
        'rotated': 'yes; hidden units are numbered in the rotated basis' if rotated else 'no',
        'compensated': 'yes' if settings.compensate else 'no',
    }
    difference = _export(calibration.cutter, pruning, output, plan, after, recipe)
    calibration.cutter.set_masks(None)  # and with them, that the model refers to itself: it is to leave memory
    return {name: (loss, after[name]) for name, loss in before.items()}, speed, rotated, difference


@contextlib.contextmanager
def stage_bar(decoder: nn.Module, name: str, passes: int, shown: bool) -> Iterator[tqdm]:
    """Shows how many passes over the decoder a stage has done while the block runs, where stderr is a terminal.

    Args:
        decoder (nn.Module): The module whose forward passes are counted.
        name (str): What is done.
        passes (int): About how many there will be.
        shown (bool): Whether to show it at all.
    """
    with tqdm(total=passes, desc=name, leave=False, disable=None if shown else True) as bar:
        with decoder.register_forward_hook(lambda *_: bar.update()):
            yield bar


def _check_place(output: Path, plan: PlannedCut) -> None:
    """Refuses an output that is there, cannot be written, or does not fit on its disk."""
    if output.exists() and output.samefile(plan.folder):
        raise ValueError(f'--output: {output} is the source itself; name a folder that does not exist.')
    if output.exists():
        raise ValueError(f'--output: {output} exists already; choose another folder, or remove it.')
    refuse_unwritable('--output', output)
    free = shutil.disk_usage(_disk_of(output)).free
    if free < plan.bytes + plan.scratch:
        meanwhile = " with the source's weights beside it" if plan.scratch else ''
        raise ValueError(
            f'--output: {output} takes {with_unit(plan.bytes + plan.scratch, "B")}{meanwhile}, and '
            f'{with_unit(free, "B")} are free there; choose another disk, or a smaller target.'
        )


def _disk_of(output: Path) -> Path:
    """The nearest folder above the output that is there."""
    return next(parent for parent in output.absolute().parents if parent.exists())


def _count(texts: Sequence[Text], kind: str) -> int:
    """Tokens of all texts together, ``seen`` or ``held_out``."""
    return sum(row.size for each in texts for row in getattr(each, kind))


def _in_words(losses: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {loss:.3f}' for name, loss in losses.items())


def _export(
    cutter: Cutter,
    pruning: PruningState,
    output: Path,
    plan: PlannedCut,
    losses: Mapping[str, float],
    recipe: Mapping[str, Any],
) -> float | None:
    """The ordinary export with its checks; returns the largest difference of a logit.

    A large model is compared tensor by tensor instead, and no number returned.
    """
    masks, model = pruning.final_masks(), cutter.model
    cuts = CutPlan(cutter.family, cutter.shape, masks, energies=pruning.norm_energies)
    full = full_tensors(model)
    origin = Origin(
        source=str(plan.folder),
        parameters=plan.source_parameters,
        training=Training(losses=losses, losses_of='this model on held-out text'),
        files=read_source_files(str(plan.folder)),
        tokenizer=read_tokenizer(plan.folder),
        stage='cut',
        recipe=recipe,
    )
    dtype = DTYPES[plan.dtype]

    def tensors() -> Iterator[tuple[str, Tensor]]:
        return cut_tensors(cuts, full, model.config.tie_word_embeddings)

    difference = None
    with ModelFolderWriter(output, SHARD_BYTES) as writer:
        write_pruned_folder(writer, pruning, model.config, cuts, tensors(), dtype, origin)
        if plan.scratch:
            verify_tensors(writer.path, tensors(), lambda tensor: tensor.to(dtype))
        else:
            difference = verify_folder(writer.path, probe_masked(cutter, masks), dtype, tensors())
        writer.commit()
    return difference


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in find_weights(folder))
