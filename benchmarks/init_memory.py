"""Peak memory of every rank while a sharded run is built: each rank reads the weights (cpu), or only the first (mixed).

Writes a LLaMA with random weights in bfloat16, starts one process per rank with Composer's launcher, and builds a
Trainer with FSDP2 from it twice, as a pruning run does: loading in float32, cutting prepared, sharding. What counts is
the growth of resident memory from before the model, at its peak and when the trainer stands, in sizes of the model in
float32. Linux only; CPU and gloo.

    python benchmarks/init_memory.py [--ranks 2] [--quick] [--output FILE.json]

Takes about 3 GB of memory per rank and two minutes; ``--quick`` takes a tenth and is what the tests run.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES = {
    'full': dict(
        vocab_size=8000, hidden_size=1536, intermediate_size=4096, num_hidden_layers=9, num_attention_heads=12
    ),
    'quick': dict(vocab_size=4000, hidden_size=640, intermediate_size=1728, num_hidden_layers=6, num_attention_heads=5),
}
MODES = ('mixed', 'cpu')


def write_model(folder: Path, settings: dict[str, int]) -> float:
    """Saves the model with a tokenizer. Returns its size in float32, MB."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(**settings, num_key_value_heads=settings['num_attention_heads'])
    model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size='200MB')
    tokenizer = Tokenizer(models.WordLevel({'<pad>': 0, '</s>': 1}, unk_token='<pad>'))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='<pad>', eos_token='</s>').save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters()) * 4 / 2**20


def memory(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, MB."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1024


def build(folder: Path, init_device: str) -> dict[str, Any]:
    """Builds a trainer on this rank; returns growth at the peak and at the end, and a sum over all weights."""
    import torch
    from composer import Trainer
    from transformers import AutoTokenizer

    from llmshearing.models.sheared_causal_lm import ShearedCausalLM

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here on
    model = ShearedCausalLM(AutoTokenizer.from_pretrained(folder), str(folder), init_device=init_device)
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-4),
        parallelism_config={'fsdp': {'state_dict_type': 'sharded'}},
        device='cpu',
        progress_bar=False,
        auto_log_hparams=False,
    )
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    result = {'peak_mb': memory('VmHWM') - before, 'built_mb': memory('VmRSS') - before}
    total = sum(parameter.full_tensor().double().abs().sum().item() for parameter in trainer.state.model.parameters())
    trainer.close()
    return {**result, 'sum_of_weights': total}


def worker(folder: Path) -> None:
    """One rank: builds once for each mode; rank 0 writes what all ranks measured."""
    from composer.utils import dist

    dist.initialize_dist('cpu')
    results = {mode: dist.all_gather_object(build(folder, mode)) for mode in MODES}
    if dist.get_global_rank() == 0:
        (folder / 'results.json').write_text(json.dumps(results))


def measure(size: str, ranks: int) -> dict[str, Any]:
    """Writes, builds and deletes; see the head of this file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_mb = write_model(folder, SIZES[size])
        environment = {**os.environ, 'FSDP_VERSION': '2', 'TOKENIZERS_PARALLELISM': 'false', 'HF_HUB_OFFLINE': '1'}
        command = [sys.executable, '-m', 'composer.cli.launcher', '-n', str(ranks), __file__, '--worker', name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f'the measured processes failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}')
        modes = json.loads((folder / 'results.json').read_text())
    for ranks_of_mode in modes.values():
        for rank in ranks_of_mode:
            rank.update({f'{key[:-3]}_models': round(rank[key] / model_mb, 2) for key in ('peak_mb', 'built_mb')})
    return {'model_mb': round(model_mb), 'ranks': ranks, 'modes': modes}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--ranks', type=int, default=2, help='processes')
    parser.add_argument('--quick', action='store_true', help='a small model')
    parser.add_argument('--output', type=Path, help='file for the result; default: standard output')
    parser.add_argument('--worker', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        worker(args.worker)
        return 0
    text = json.dumps(measure('quick' if args.quick else 'full', args.ranks), indent=2) + '\n'
    if args.output:
        args.output.write_text(text, encoding='utf-8')
    else:
        sys.stdout.write(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
