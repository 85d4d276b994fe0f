"""``big``: a LLaMA of 7 billion random weights: its pruning checkpoint exported, itself cut, every parameter cut."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import cut_memory
import torch
from export_memory import MODELS, measure
from prune_step import target_masks
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu import timing
from benchmarks.gpu.cases import Case, NotThere, Row
from benchmarks.gpu.settings import Settings
from llmshearing.compat.transformers import dtype_argument
from llmshearing.cut.cut_source import cut_source
from llmshearing.cut.settings import CutSettings
from llmshearing.models.cuttable import Cutter
from llmshearing.models.cutting import CutPlan, flatten_masks
from llmshearing.models.shapes import shape_of

__all__ = ['cases']

DISK = 40e9  # bytes that a 7B source, a copy of its weights and the result take


def _empty_folder(settings: Settings) -> Path:
    """A folder for large files, without those that a killed command left there."""
    folder = settings.work / 'big'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    free = shutil.disk_usage(folder).free
    if not settings.quick and free < DISK:
        raise NotThere(f'{DISK / 1e9:.0f} GB of disk; {folder} has {free / 1e9:.0f}')
    return folder


def export(settings: Settings, rows: Mapping) -> Row:
    """Time and peak of ``llmshearing export`` in a process of its own, weights streamed from the file."""
    result = measure('small' if settings.quick else '7b', _empty_folder(settings))
    return {'seconds': result.pop('seconds'), **result}


def cut(settings: Settings, rows: Mapping) -> Row:
    """Time and peak of what ``llmshearing cut`` does, from the source's folder to the result's, on the device."""
    folder, tokens = _empty_folder(settings), 256 if settings.quick else 4096
    sizes = cut_memory.MODELS['small' if settings.quick else '7b']
    config = LlamaConfig(vocab_size=32000, **sizes, architectures=['LlamaForCausalLM'], **dtype_argument('bfloat16'))
    parameters = cut_memory.write_source(folder / 'source', config)
    (folder / 'text.txt').write_text(
        '\n\n'.join(path.read_text() for path in sorted(Path(__file__).parent.glob('*.py')))
    )
    target = {'params': int(cut_memory.SHARE * parameters), 'tolerance': 0.1}
    choices = CutSettings(tokens=tokens, held_out=256, dtype='bfloat16')

    def run() -> None:
        cut_source(folder / 'source', target, [folder / 'text.txt'], folder / 'out', choices, settings.device)

    start = time.perf_counter()
    peak = timing.peak_bytes(run, settings.device)
    row: Row = {'seconds': time.perf_counter() - start, 'parameters': parameters}
    shutil.rmtree(folder)
    return row | {f'{name} GiB': value / 2**30 for name, value in peak.items()}


def cut_alone(settings: Settings, rows: Mapping) -> Row:
    """Time and peak of cutting every parameter once, as an export does, on the device."""
    sizes, target, _ = MODELS['small' if settings.quick else '7b']
    config = LlamaConfig(**sizes)
    source = shape_of(config)
    with torch.device(settings.device):
        model = AutoModelForCausalLM.from_config(config, **dtype_argument(torch.bfloat16)).requires_grad_(False)
    masks = target_masks(source, dataclasses.replace(source, **target))
    family = Cutter(model).family

    def run() -> None:
        plan = CutPlan(family, source, masks, settings.device)
        for path, module in plan.cuts(flatten_masks(masks).to(settings.device)):
            module.parameters(dict(model.get_submodule(path).named_parameters(recurse=False)))

    row: Row = {'seconds': timing.median_seconds(run, settings.device, 1, 3)}
    return row | {f'{name} GiB': value / 2**30 for name, value in timing.peak_bytes(run, settings.device).items()}


def cases(settings: Settings) -> list[Case]:
    """All cases of the part."""
    name = 'small' if settings.quick else '7B'
    return [
        Case(f'{name}: export, streamed', functools.partial(export, settings)),
        Case(f'{name}: cut, from folder to folder', functools.partial(cut, settings)),
        Case(f'{name}: every parameter cut on the device', functools.partial(cut_alone, settings)),
    ]
