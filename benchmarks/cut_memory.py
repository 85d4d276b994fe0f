"""Peak memory of `llmshearing cut` or `rotate` on a large source; of `cut`, against what its first lines say.

Writes a LLaMA with random weights in bfloat16, cuts it in a process of its own and samples that process's memory that
lies in no file: the weights are in one, whose pages the system drops when it needs the room. Linux only.

    python benchmarks/cut_memory.py [--model 7b|1b|small | --quick] [--command rotate] [--dtype float32] [--tokens N]
                                    [--folder FOLDER] [--output FILE.json]

`7b` needs 40 GB of free disk and, on two cores, an hour; `1b` 10 GB; `small`, which takes seconds, is cut in memory
like all sources of its size. A large source is computed in the type that is written, and many CPUs take float32 for
bfloat16 in a tenth of the time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, PreTrainedTokenizerFast

from llmshearing.checkpoints.parameter_shapes import parameter_shapes

MODELS = {
    '7b': dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    '1b': dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16),
    'small': dict(hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8),
}
SHARE = 0.6  # of the source's parameters
WATCHED = """
import json, sys, threading, time
from pathlib import Path

source, text, output, parameters, tokens, dtype = sys.argv[1:]
peak, done = [0], threading.Event()


def report(line):
    print(line, file=sys.stderr)


def watch():
    while not done.wait(0.02):
        lines = Path('/proc/self/status').read_text().splitlines()
        peak[0] = max(peak[0], next(int(line.split()[1]) for line in lines if line.startswith('RssAnon')) * 1024)


watching, start = threading.Thread(target=watch), time.perf_counter()
watching.start()
try:
    numbers = {}
    COMMAND
finally:
    done.set()
    watching.join()
print(json.dumps({**numbers, 'peak': peak[0], 'seconds': round(time.perf_counter() - start, 1)}))
"""
COMMANDS = {
    'cut': """
    from llmshearing.cut.cut_source import cut_source
    from llmshearing.cut.settings import CutSettings

    target = {'params': int(parameters), 'tolerance': 0.1}
    settings = CutSettings(tokens=int(tokens), held_out=256, dtype=dtype)
    plan = cut_source(source, target, [text], output, settings, 'cpu', report).plan
    numbers = {'said': plan.memory}
""",
    'rotate': """
    from llmshearing.rotation.rotate_source import rotate_source
    from llmshearing.rotation.settings import RotationSettings

    settings = RotationSettings(tokens=int(tokens), held_out=256, batch_tokens=256, seq_len=256, dtype=dtype)
    rotate_source(source, text, output, settings, False, 'cpu', report)
""",
}


def write_source(folder: Path, config: LlamaConfig) -> int:
    """Writes random weights, a file a tensor, and a tokenizer; returns how many parameters there are."""
    folder.mkdir()
    generator, files, count = torch.Generator().manual_seed(0), {}, 0
    for number, (name, shape) in enumerate(parameter_shapes(config).shapes.items()):
        tensor = torch.randn(shape, generator=generator, dtype=torch.float32) * 0.02
        files[name] = f'model-{number:05}.safetensors'
        save_file({name: (tensor + name.endswith('norm.weight')).bfloat16()}, folder / files[name], {'format': 'pt'})
        count += tensor.numel()
    index = {'metadata': {'total_size': 2 * count}, 'weight_map': files}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    config.save_pretrained(folder)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([__doc__ or ''], vocab_size=300, special_tokens=['</s>'], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token='</s>').save_pretrained(folder)
    return count


def measure(name: str, model: str, place: Path, tokens: int, dtype: str) -> dict[str, float]:
    """Writes a source, runs the command and deletes both; returns bytes and seconds."""
    config = LlamaConfig(vocab_size=32000, **MODELS[model], torch_dtype='bfloat16', architectures=['LlamaForCausalLM'])
    with tempfile.TemporaryDirectory(dir=place) as work:
        source, text = Path(work) / 'source', Path(work) / 'text.txt'
        parameters = write_source(source, config)
        text.write_text('\n\n'.join(path.read_text() for path in sorted(Path(__file__).parent.glob('*.py'))))
        code = WATCHED.replace('    COMMAND\n', COMMANDS[name])
        arguments = [source, text, Path(work) / 'out', int(SHARE * parameters), tokens, dtype]
        command = [sys.executable, '-c', code, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise RuntimeError('the measured process failed; see above.')
        numbers = json.loads(done.stdout.splitlines()[-1])
    return {'parameters': parameters, 'weights': 2 * parameters, **numbers}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', choices=list(MODELS), default='1b')
    parser.add_argument('--command', choices=list(COMMANDS), default='cut')
    parser.add_argument('--quick', action='store_true', help='the same as --model small --tokens 256')
    parser.add_argument('--dtype', choices=('bfloat16', 'float32'), default='bfloat16', help='of the result')
    parser.add_argument('--tokens', type=int, default=1024, help='to choose units by (default: %(default)s)')
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()), help='for the models')
    parser.add_argument('--output', type=Path, help='write the numbers as JSON')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.tokens = 'small', 256
    numbers = measure(arguments.command, arguments.model, arguments.folder, arguments.tokens, arguments.dtype)
    if arguments.output:
        arguments.output.write_text(json.dumps(numbers, indent=1))
    sys.stdout.write('| parameters | source | memory, as said | peak | seconds |\n|---|---|---|---|---|\n')
    sizes = (f'{numbers[key] / 1e9:.2f} GB' if key in numbers else '' for key in ('weights', 'said', 'peak'))
    sys.stdout.write(f'| {numbers["parameters"]:,} | {" | ".join(sizes)} | {numbers["seconds"]:.0f} |\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
