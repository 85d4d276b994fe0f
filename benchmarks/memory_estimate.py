"""How far the memory estimate is from what real steps take: peak resident memory on a CPU, one process per case.

Each case trains a random model for two batches of two micro-batches with Adam: a pruning step with masks as drawn at
the start of pruning, or plain training; in a plain loop, or through Composer's Trainer. What is compared is the highest
resident memory of the process above what it had after a step of a toy model, when all libraries were loaded, with the
estimate for one GPU without sharding. glibc is told to return freed blocks: the estimate knows no fragmentation.

usage: python benchmarks/memory_estimate.py [--quick] [--case NAME ...] [--output FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

SMALL = dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8, vocab_size=8192)
WIDE = dict(hidden_size=1024, intermediate_size=2752, num_hidden_layers=6, num_attention_heads=16, vocab_size=8192)
GQA = dict(num_key_value_heads=4)
NEOX = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=6, num_attention_heads=12, vocab_size=16384)
PRUNED = ('hidden', 'layer', 'head', 'intermediate')
GROUPED = ('hidden', 'layer', 'kv_group', 'intermediate')

# name: (model type, sizes, micro-batch, tokens per sequence, precision, activation checkpointing, masked axes, runner)
CASES: dict[str, tuple] = {
    'small, pruning': ('llama', SMALL, 2, 256, 'fp32', False, PRUNED, 'loop'),
    'small, plain': ('llama', SMALL, 2, 256, 'fp32', False, (), 'loop'),
    'small, pruning, Trainer': ('llama', SMALL, 2, 256, 'fp32', False, PRUNED, 'trainer'),
    'small, activations': ('llama', SMALL, 8, 256, 'fp32', False, (), 'loop'),
    'wide, pruning': ('llama', {**WIDE, **GQA}, 1, 512, 'fp32', False, GROUPED, 'loop'),
    'wide, pruning, checkpointing': ('llama', {**WIDE, **GQA}, 2, 512, 'fp32', True, GROUPED, 'loop'),
    'wide, pruning, bf16': ('llama', {**WIDE, **GQA}, 1, 512, 'amp_bf16', False, GROUPED, 'loop'),
    'gpt_neox, pruning': ('gpt_neox', NEOX, 2, 256, 'fp32', False, PRUNED, 'loop'),
    'gemma2, plain': ('gemma2', {**SMALL, 'head_dim': 64, 'num_key_value_heads': 4}, 2, 256, 'fp32', False, (), 'loop'),
}
QUICK = ('small, pruning', 'small, plain')


def config_of(model_type: str, sizes: dict[str, int], seq_len: int) -> Any:
    from transformers import CONFIG_MAPPING

    from llmshearing.compat.transformers import set_attention

    config = CONFIG_MAPPING[model_type](max_position_embeddings=seq_len, use_cache=False, **sizes)
    set_attention(config, 'sdpa')
    return config


def estimate(name: str) -> dict[str, int]:
    """Parts and total of the estimate of a case, in bytes."""
    import dataclasses

    from llmshearing.planning.memory import TrainingSetup, estimate_memory

    model_type, sizes, micro_batch, seq_len, precision, checkpointing, axes, _ = CASES[name]
    setup = TrainingSetup(1, 'ddp', micro_batch, seq_len, checkpointing, precision)
    parts = estimate_memory(config_of(model_type, sizes, seq_len), setup, axes)
    return {**dataclasses.asdict(parts), 'total': parts.total}


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) * 1024
    raise ValueError(f'no {field} in /proc/self/status; this benchmark needs Linux')


def masks_for(shape: Any, axes: tuple[str, ...]) -> Any:
    """The drawing of masks at the start of pruning, for halving every axis."""
    import dataclasses

    from llmshearing.masks.axes import plan_axes
    from llmshearing.masks.lagrangian import LagrangianMasks
    from llmshearing.masks.learner import LearnerSettings

    sizes = {f.name: getattr(shape, f.name) for f in dataclasses.fields(shape)}
    kept = ('head_dim', 'num_experts_per_tok')
    halved = {name: max(1, size // 2) for name, size in sizes.items() if size and name not in kept}
    plans = plan_axes(shape, dataclasses.replace(shape, **halved))
    plans = {axis: plan for axis, plan in plans.items() if axis in axes}
    return LagrangianMasks(plans, LearnerSettings(multiplier_damping=0.0))


def run_loop(config: Any, micro_batch: int, seq_len: int, precision: str, checkpointing: bool, axes: tuple) -> None:
    """Two batches of two micro-batches."""
    import functools

    import torch
    from torch.utils.checkpoint import checkpoint
    from transformers import AutoModelForCausalLM

    from llmshearing.models.cuttable import Cutter

    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    cutter = Cutter(model)
    masks = masks_for(cutter.shape, axes) if axes else None
    if checkpointing:
        for layer in model.get_submodule(cutter.family.decoder).layers:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    for batch in range(2):
        if masks is not None:
            cutter.set_masks(masks.draw(batch, 0.0))
        for _ in range(2):
            ids = torch.randint(0, config.vocab_size, (micro_batch, seq_len))
            context = torch.autocast('cpu', torch.bfloat16) if precision == 'amp_bf16' else contextlib.nullcontext()
            with context:
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def run_trainer(config: Any, micro_batch: int, seq_len: int, precision: str, checkpointing: bool, axes: tuple) -> None:
    """The same through Composer's Trainer."""
    import tempfile

    import torch
    from composer import Trainer
    from composer.core import DataSpec
    from composer.optim import DecoupledAdamW
    from torch.utils.data import DataLoader

    from llmshearing.algorithms.targeted_pruning import TargetedPruning
    from llmshearing.models.sheared_causal_lm import ShearedCausalLM

    if checkpointing or precision != 'fp32' or not axes:
        raise ValueError('the case with the Trainer prunes in float32 without checkpointing')
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        model = ShearedCausalLM(None, folder, pretrained=False, init_device='cpu')
    ids = torch.randint(0, config.vocab_size, (4 * micro_batch, seq_len))
    loader = DataLoader([{'input_ids': row, 'labels': row} for row in ids], 2 * micro_batch)
    names = ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads')
    target = {name: getattr(config, name) // 2 for name in names}
    Trainer(
        model=model,
        train_dataloader=DataSpec(loader, get_num_tokens_in_batch=lambda batch: batch['input_ids'].numel()),
        device_train_microbatch_size=micro_batch,
        max_duration='2ba',
        optimizers=DecoupledAdamW(model.parameters(), lr=1e-4),
        algorithms=[TargetedPruning(target, mask_learning='lagrangian', warmup='1ba')],
        progress_bar=False,
        auto_log_hparams=False,
        device='cpu',
    ).fit()


def measure_here(name: str) -> dict[str, float]:
    """Runs a case in this process; bytes above the state after a toy step, and seconds."""
    model_type, sizes, micro_batch, seq_len, precision, checkpointing, axes, runner = CASES[name]
    run = {'loop': run_loop, 'trainer': run_trainer}[runner]
    smaller = {'num_hidden_layers': 2, 'vocab_size': 96, 'head_dim': 16}
    toy = {key: smaller.get(key, value) for key, value in sizes.items()}
    heads = toy['num_attention_heads']
    toy.update(hidden_size=heads * 16, intermediate_size=64)
    run(config_of(model_type, toy, 32), 2, 32, precision, checkpointing, axes)
    Path('/proc/self/clear_refs').write_text('5')  # sets the peak back to what is resident now
    base, start = resident('VmRSS'), time.perf_counter()
    run(config_of(model_type, sizes, seq_len), micro_batch, seq_len, precision, checkpointing, axes)
    return {'measured': resident('VmHWM') - base, 'base': base, 'seconds': time.perf_counter() - start}


def measure(name: str) -> dict[str, float]:
    """Runs a case in a process of its own."""
    allocator = {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}
    quiet = {**allocator, 'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_OFFLINE': '1'}
    done = subprocess.run(
        [sys.executable, __file__, '--here', name],
        env={'OMP_NUM_THREADS': '1', **os.environ, **quiet},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f'case {name!r} failed:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--case', action='append', choices=list(CASES), help='only these cases')
    parser.add_argument('--quick', action='store_true', help=f'only {" and ".join(QUICK)}')
    parser.add_argument('--here', choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument('--output', type=Path, help='write the results as JSON')
    arguments = parser.parse_args()
    if arguments.here:
        sys.stdout.write(json.dumps(measure_here(arguments.here)) + '\n')
        return
    results = []
    for name in arguments.case or (QUICK if arguments.quick else CASES):
        result = {'case': name, **measure(name), 'estimate': estimate(name)}
        estimated, measured = result['estimate']['total'], result['measured']
        result['error'] = estimated / measured - 1
        results.append(result)
        sys.stdout.write(
            f'{name:<30} estimated {estimated / 2**20:7.0f} MiB  measured {measured / 2**20:7.0f} MiB  '
            f'error {result["error"]:+6.1%}  ({result["seconds"]:.0f} s)\n'
        )
        sys.stdout.flush()
    if arguments.output:
        machine = f'{platform.machine()}, {platform.libc_ver()}, 1 thread'
        document = {'date': date.today().isoformat(), 'machine': machine, 'results': results}
        arguments.output.write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
