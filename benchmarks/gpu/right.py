"""``right``: what the tests show on a CPU holds on the card.

Masked against exported logits for every family; whole runs against the same ones on the CPU; precisions, kinds of
attention, sharding, checkpointing, automatic micro-batches, and a killed run that goes on bit for bit. Models are the
tests' tiny ones.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.gpu.cases import Case, NotThere, Row
from benchmarks.gpu.rotated import rotated_logits
from benchmarks.gpu.runs import BATCHES, KILLED_IN, run
from benchmarks.gpu.settings import Settings
from llmshearing.algorithms.distillation import Distillation
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.compat.transformers import dtype_argument
from llmshearing.export.model_folder import open_strictly
from llmshearing.models.cuttable import Cutter
from llmshearing.models.shapes import shape_of
from tests.export.cut_folder import AXES, export, uniform_soft_masks
from tests.models.tiny import MIXTURES, VARIANTS, random_masks, tiny_model
from tests.tiny_run import tiny_source

__all__ = ['cases']

SUBSETS = [*((axis,) for axis in AXES), AXES]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest logit, or of one where all are smaller
RUN_STEPS, RUN_BOUND = 30, 1e-4
BFLOAT16_LOSS = 0.05
SHARDED = ('fsdp2', 'fsdp2+checkpointing', 'fsdp2+offload')
IDS = torch.randint(3, 97, (2, 21), generator=torch.Generator().manual_seed(4))


def without_tf32() -> None:
    """Products in float32 as they are on a CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def masked_against_exported(variant: str, dtype: torch.dtype, settings: Settings, rows: Mapping) -> Row:
    """The largest difference of logits over all axes, relative to the largest logit, and the axes it is on."""
    without_tf32()
    worst, where, folder = -1.0, '', settings.work / 'exported'
    every = [*SUBSETS, ('expert',)] if variant in MIXTURES else SUBSETS
    for axes in SUBSETS[-1:] if settings.quick else every:
        model = tiny_model(variant)
        masks = uniform_soft_masks(model.config, axes)
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        model = open_strictly(folder, dtype)  # .to(dtype) would round the rotary frequencies as well
        shutil.rmtree(folder)
        export(model, masks, folder, dtype=dtype)
        ids = IDS.to(settings.device)
        with torch.no_grad():
            exported = open_strictly(folder, dtype).to(settings.device)(ids, use_cache=False).logits.float()
            model.to(settings.device)
            Cutter(model).set_masks(masks)
            masked = model(ids, use_cache=False).logits.float()
        difference = _difference(masked, exported)
        if difference > worst:
            worst, where = difference, '+'.join(axes)
    return {'difference': worst, 'bound': BOUNDS[dtype], 'worst on': where}


def _difference(got: Tensor, want: Tensor) -> float:
    """Largest difference, relative to the largest value where that is above one; infinite for NaN."""
    difference = ((got - want).abs().max() / want.abs().max().clamp(min=1.0)).item()
    return math.inf if math.isnan(difference) else difference


def source_of(settings: Settings) -> Path:
    """A tiny LLaMA with its tokenizer, made once."""
    folder = settings.work / 'tiny-source'
    return folder if folder.exists() else tiny_source(folder)


def _apart(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    if set(first) != set(second):
        raise ValueError(f'batches {sorted(first)} against {sorted(second)}')
    return max(abs(first[batch] - second[batch]) for batch in first)


def against_cpu(settings: Settings, rows: Mapping, learning: str, distilled: bool = False) -> Row:
    """The same run on the device and on the CPU."""
    source, batches = source_of(settings), 4 if settings.quick else RUN_STEPS
    losses = {}
    for device in (settings.device, 'cpu'):
        algorithms = (Distillation(teacher=str(source), temperature=2.0),) if distilled else ()
        losses[device] = run(source, device, batches, learning, algorithms=algorithms)['losses']
    return {'difference': _apart(losses[settings.device], losses['cpu']), 'bound': RUN_BOUND, 'steps': batches}


def amp_bf16(settings: Settings, rows: Mapping) -> Row:
    """A run in ``amp_bf16`` that exports at its end: its losses against those in float32."""
    _need_gpu(settings)
    source, out = source_of(settings), settings.work / 'amp'
    shutil.rmtree(out, ignore_errors=True)
    whole = run(source, settings.device, RUN_STEPS)['losses']
    export_pruned = ExportPruned(str(out), allow_unconverged=True)
    half = run(source, settings.device, RUN_STEPS, precision='amp_bf16', callbacks=[export_pruned])
    logged = half['log']['export/logit_difference'][-1][1]
    return {
        'difference': _apart(half['losses'], whole),
        'bound': BFLOAT16_LOSS,
        'steps': RUN_STEPS,
        'exported against masked': float(logged),
    }


def attention(kind: str, settings: Settings, rows: Mapping) -> Row:
    """Masked logits in bfloat16 with one kind of attention, against eager attention in float32."""
    if kind == 'flash_attention_2':
        _need_gpu(settings)
        if importlib.util.find_spec('flash_attn') is None:
            raise NotThere('flash_attn is not installed')
    without_tf32()
    logits, folder = {}, settings.work / 'attention'
    tiny_model('llama', hidden_size=192, intermediate_size=256, head_dim=32).save_pretrained(folder)
    for name, dtype in (('eager', torch.float32), (kind, torch.bfloat16)):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=name, **dtype_argument(dtype))
        model.to(settings.device)
        Cutter(model).set_masks(random_masks(shape_of(model.config), AXES))
        ids = torch.randint(3, 97, (2, 100), generator=torch.Generator().manual_seed(4)).to(settings.device)
        with torch.no_grad():
            logits[name] = model(ids, use_cache=False).logits.float()
    return {'difference': _difference(logits[kind], logits['eager']), 'bound': 2 * BOUNDS[torch.bfloat16]}


def activation_checkpointing(settings: Settings, rows: Mapping) -> Row:
    """Gradients of weights and masks when layers are computed twice, against those when they are not."""
    without_tf32()
    found = []
    for twice in (False, True):
        model = tiny_model('llama').to(settings.device).train()
        if twice:
            model.gradient_checkpointing_enable({'use_reentrant': False})
        cutter = Cutter(model)
        cutter.set_masks(random_masks(cutter.shape, AXES))
        ids = IDS.to(settings.device)
        model(ids, labels=ids, use_cache=False).loss.backward()
        weights = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat([*weights, *(g.flatten() for g in cutter.mask_gradients().values())]))
    return {'difference': _difference(found[1], found[0]), 'bound': 1e-6}


def automatic_microbatches(settings: Settings, rows: Mapping) -> Row:
    """A run that is left too little memory for its batch finds a smaller micro-batch, and computes the same."""
    _need_gpu(settings)
    source, batch = source_of(settings), 8192
    options = dict(device=settings.device, batches=3, batch_size=batch)
    whole = run(source, **options, device_train_microbatch_size=batch // 16)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 0.8 * 2**30
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        found = run(source, **options, device_train_microbatch_size='auto')
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    size = found['trainer'].state.device_train_microbatch_size
    if size >= batch:
        raise ValueError(f'the whole batch of {batch} fitted; nothing was found out')
    difference = _apart(found['losses'], whole['losses'])
    return {'difference': difference, 'bound': RUN_BOUND, 'micro-batch': size, 'of': batch}


def _launch(settings: Settings, out: Path, modes: tuple[str, ...]) -> str:
    """Runs modes of ``runs`` in a process of their own, which is the only rank; returns its most telling line."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get('PYTHONPATH'))))
    command = [sys.executable, '-m', 'benchmarks.gpu.runs', settings.device, source_of(settings), out, *modes]
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=400,
        cwd=root,
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    telling = [line for line in lines if 'Error' in line]
    return (telling or lines or ['it said nothing'])[-1]


@functools.cache
def _launched(settings: Settings) -> dict[str, Any]:
    """Losses by mode, or why there are none, of the runs that have a process of their own: one dies, one runs the rest.

    Composer's launcher would add nothing: one rank initialises its process group in the same way without it.
    """
    folder, modes = settings.work / 'launched', (*SHARDED, 'whole', 'resumed')
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    out, results = folder / 'out.json', {}
    try:
        last = _launch(settings, folder / 'killed.json', ('killed',))
        if (folder / 'killed.json').exists() or not (folder / 'killed').exists():
            results['killed'] = f'it was not killed as it should be: {last}'
        last = _launch(settings, out, modes)
    except subprocess.TimeoutExpired as error:
        last = f'it took longer than {error.timeout:.0f} s'
    results |= json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    return {**dict.fromkeys(modes, f'its process ended before: {last}'), **results}


def _losses(settings: Settings, mode: str) -> dict[int, float]:
    found = _launched(settings)[mode]
    if isinstance(found, str):
        raise RuntimeError(f'{mode}: {found}')
    return {int(batch): loss for batch, loss in found.items()}


def sharded(mode: str, settings: Settings, rows: Mapping) -> Row:
    """A sharded run on one rank against a run that is not sharded, in this process."""
    losses, plain = _losses(settings, mode), run(source_of(settings), settings.device)['losses']
    backend = _launched(settings)['backend']
    return {'difference': _apart(losses, plain), 'bound': RUN_BOUND, 'steps': BATCHES, 'backend': backend}


def killed_and_resumed(settings: Settings, rows: Mapping) -> Row:
    """A run that is killed in a batch and goes on from its last checkpoint, with deterministic algorithms."""
    whole, resumed, killed = _losses(settings, 'whole'), _losses(settings, 'resumed'), _launched(settings).get('killed')
    if killed is not None:
        raise RuntimeError(killed)
    later = {batch: loss for batch, loss in whole.items() if batch >= KILLED_IN}
    return {'difference': _apart(resumed, later), 'bound': 0.0, 'steps': len(later)}


def rotation(settings: Settings, rows: Mapping) -> Row:
    """A rotated source computes what the source computes."""
    without_tf32()
    source, rotated = rotated_logits(source_of(settings), settings.work, settings.device)
    return {'difference': _difference(rotated, source), 'bound': 1e-4}


def _need_gpu(settings: Settings) -> None:
    if settings.device != 'cuda':
        raise NotThere('a GPU')


def cases(settings: Settings) -> list[Case]:
    """All cases of the part."""
    variants = ['llama', 'gemma2'] if settings.quick else list(VARIANTS)
    bind = functools.partial
    return [
        *(
            Case(f'30 steps against the CPU, {learning}', bind(against_cpu, settings, learning=learning))
            for learning in ('lagrangian', 'progressive')
        ),
        Case('distillation against the CPU', bind(against_cpu, settings, learning='progressive', distilled=True)),
        Case('amp_bf16 against float32', bind(amp_bf16, settings)),
        *(Case(f'attention: {kind}', bind(attention, kind, settings)) for kind in ('sdpa', 'flash_attention_2')),
        Case('activation checkpointing', bind(activation_checkpointing, settings)),
        Case('device_train_microbatch_size: auto', bind(automatic_microbatches, settings)),
        *(Case(f'one rank: {mode}', bind(sharded, mode, settings)) for mode in SHARDED),
        Case('killed and resumed, bit for bit', bind(killed_and_resumed, settings)),
        Case('rotation', bind(rotation, settings)),
        *(
            Case(f'masked against exported: {variant}, {name}', bind(masked_against_exported, variant, dtype, settings))
            for variant in variants
            for name, dtype in (('float32', torch.float32), ('bfloat16', torch.bfloat16))
        ),
    ]
