"""``big``: a LLaMA of 7 billion random weights: export of its pruning checkpoint, and its cut on the card."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Mapping

import torch
from export_memory import MODELS, measure
from prune_step import target_masks
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu import timing
from benchmarks.gpu.cases import Case, NotThere, Row
from benchmarks.gpu.settings import Settings
from llmshearing.models.cuttable import Cutter
from llmshearing.models.cutting import CutPlan, flatten_masks
from llmshearing.models.shapes import shape_of

__all__ = ['cases']


def export(settings: Settings, rows: Mapping) -> Row:
    """Time and peak of ``llmshearing export`` in a process of its own, weights streamed from the file."""
    model = 'small' if settings.quick else '7b'
    free = shutil.disk_usage(settings.work).free
    if not settings.quick and free < 36e9:
        raise NotThere(f'36 GB of disk; {settings.work} has {free / 1e9:.0f}')
    result = measure(model, settings.work)
    return {'seconds': result.pop('seconds'), **result}


def cut(settings: Settings, rows: Mapping) -> Row:
    """Time and peak of cutting every parameter once, as an export does, on the device."""
    sizes, target, _ = MODELS['small' if settings.quick else '7b']
    config = LlamaConfig(**sizes)
    source = shape_of(config)
    with torch.device(settings.device):
        model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16).requires_grad_(False)
    masks = target_masks(source, dataclasses.replace(source, **target))
    family = Cutter(model).family

    def run() -> None:
        plan = CutPlan(family, source, masks, settings.device)
        for path, module in plan.cuts(flatten_masks(masks).to(settings.device)):
            module.parameters(dict(model.get_submodule(path).named_parameters(recurse=False)))

    row: Row = {'seconds': timing.median_seconds(run, settings.device, 1, 3)}
    return row | {f'{name} GiB': value / 2**30 for name, value in timing.peak_bytes(run, settings.device).items()}


def cases(settings: Settings) -> list[Case]:
    """Both cases."""
    name = 'small' if settings.quick else '7B'
    return [
        Case(f'{name}: export, streamed', functools.partial(export, settings)),
        Case(f'{name}: every parameter cut on the device', functools.partial(cut, settings)),
    ]
