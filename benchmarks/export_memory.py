"""Peak memory of `llmshearing export` on a checkpoint of the pruning stage, against the size of the checkpoint.

Writes a Composer checkpoint of a LLaMA with random weights in bfloat16 (nothing of it is held in memory: the file is
laid out first and filled afterwards), exports it in a process of its own, reads that process's peak resident memory,
and deletes both. Linux only.

    python benchmarks/export_memory.py [--model 7b|small] [--folder FOLDER] [--out FILE.json]

`7b` needs 35 GB of free disk and some minutes; the result is in results/estimates.md. `small` takes seconds and
runs in the tests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import mmap
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from llmshearing.masks.axes import plan_axes
from llmshearing.masks.state import KIND, STATE_VERSION
from llmshearing.models.shapes import ModelShape, shape_of

# model: (config of the source, target, size of output shards)
MODELS = {
    '7b': (
        dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
        dict(
            hidden_size=2048,
            intermediate_size=5504,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=16,
        ),
        '2GB',
    ),
    'small': (
        dict(vocab_size=8000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=8),
        dict(
            hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4
        ),
        '10MB',
    ),
}
BLOCK = 2**24  # random numbers that are drawn once and written again and again, each time from another place
EXPORT = """
import json, sys, time
from pathlib import Path
from llmshearing.export.job import export_checkpoint
from llmshearing.export.settings import ExportSettings
from llmshearing.utils.numbers import parse_size
checkpoint, out, shard = sys.argv[1:]


def memory(field):
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1024


before, imports_peak, start = memory('VmRSS'), memory('VmHWM'), time.perf_counter()
Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here on
settings = ExportSettings(max_shard_bytes=parse_size(shard), progress=False, logits_up_to=0)
report = export_checkpoint(Path(checkpoint), Path(out), settings)
json.dump({'after_imports_mb': before, 'imports_peak_mb': imports_peak, 'peak_mb': memory('VmHWM'),
           'seconds': round(time.perf_counter() - start, 3),
           'parameters': report['parameters'], 'tensors_compared': report['tensors_compared']}, sys.stderr)
"""


def write_checkpoint(path: Path, config: LlamaConfig, target: ModelShape) -> int:
    """Writes the checkpoint; returns the bytes of its weights."""
    with torch.device('meta'):
        shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    source, generator = shape_of(config), torch.Generator().manual_seed(0)
    plans = plan_axes(source, target)
    log_alpha = {axis: torch.empty(plan.mask_shape) for axis, plan in plans.items()}
    masks = {
        'kind': KIND,
        'version': STATE_VERSION,
        'source': dataclasses.asdict(source),
        'target': dataclasses.asdict(target),
        'mask_learning': 'lagrangian',
        'learner': {'log_alpha': log_alpha},
        'frozen_masks': None,
    }
    parts = {
        'model': {'config': {'file_extension': '.json', 'content': json.loads(config.to_json_string(use_diff=False))}},
        'tokenizer': {},
    }
    state = {
        'model': {f'model.{name}': torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()},
        'algorithms': [('TargetedPruning', masks)],
        'timestamp': {'Timestamp': {'batch': 3200, 'token': 3200 * 32 * 4096}},
        'integrations': {'huggingface': parts},
    }
    with torch.serialization.skip_data():  # leaves room in the file; the memory of the empty tensors is never touched
        torch.save({'state': state}, path)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        state = torch.load(path, mmap=True, weights_only=True)['state']
    block = (torch.randn(BLOCK, generator=generator) * 0.02).bfloat16()
    for number, tensor in enumerate(state['model'].values()):
        flat = tensor.view(-1)
        for start in range(0, len(flat), BLOCK):
            part = flat[start : start + BLOCK]
            part.copy_(block.roll(number * 7919 + start)[: len(part)])
    for axis, plan in plans.items():
        rows = torch.rand(plan.mask_shape, generator=generator).reshape(-1, plan.units)
        kept = rows.argsort(dim=1).argsort(dim=1) < plan.keep
        value = rows * 0.01 + torch.where(kept, 3.0, -4.61)
        dict(state['algorithms'])['TargetedPruning']['learner']['log_alpha'][axis].copy_(value.view(plan.mask_shape))
    return sum(shape.numel() * 2 for shape in shapes.values())


def measure(model: str, folder: Path) -> dict:
    """Writes, exports and deletes; see the head of this file."""
    settings, target, shard = MODELS[model]
    config = LlamaConfig(**settings, torch_dtype='bfloat16', architectures=['LlamaForCausalLM'])
    needed = 2.6 * sum(2 * p.numel() for p in _meta_parameters(config)) if model == '7b' else 10**9
    if shutil.disk_usage(folder).free < needed:
        raise OSError(
            f'{folder} has {shutil.disk_usage(folder).free / 1e9:.0f} GB free, '
            f'{needed / 1e9:.0f} GB are needed; see --folder.'
        )
    with tempfile.TemporaryDirectory(dir=folder) as name:
        checkpoint, out = Path(name) / 'checkpoint.pt', Path(name) / 'out'
        weights = write_checkpoint(checkpoint, config, dataclasses.replace(shape_of(config), **target))
        command = [sys.executable, '-c', EXPORT, str(checkpoint), str(out), shard]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f'the measured process failed:\n{done.stderr}')
        result = json.loads(done.stderr[done.stderr.rindex('{') :])
        largest = max(2 * p.numel() for p in _meta_parameters(config))
        shards = [path.stat().st_size for path in out.glob('*.safetensors')]
    return {
        'model': model,
        'checkpoint_mb': round(weights / 2**20),
        'largest_tensor_mb': round(largest / 2**20),
        'largest_shard_mb': round(max(shards) / 2**20),
        'exported_mb': round(sum(shards) / 2**20),
        **result,
    }


def _meta_parameters(config: LlamaConfig) -> list[torch.Tensor]:
    with torch.device('meta'):
        return list(AutoModelForCausalLM.from_config(config).parameters())


def main(argv: list[str] | None = None) -> dict:
    """Runs the benchmark, writes the result as JSON and returns it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--model', choices=MODELS, default='small')
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()), help='where to work')
    parser.add_argument('--out', type=Path, help='file for the result; default: standard output')
    args = parser.parse_args(argv)
    result = measure(args.model, args.folder)
    text = json.dumps(result, indent=2) + '\n'
    if args.out:
        args.out.write_text(text, encoding='utf-8')
    else:
        sys.stdout.write(text)
    return result


if __name__ == '__main__':
    main()
