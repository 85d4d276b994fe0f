"""Tokens per second and memory of `llmshearing prepare` beside llm-foundry's `convert_dataset_json`.

Same input (the source of Python's standard library, one file a document), same tokenizer (byte-level BPE trained on a
part of it), same cores; every run is a process of its own and imports are not counted. The two take turns. llm-foundry
is also timed with its data set cache filled, that is without the conversion to Arrow. Memory is the peak of the main
process and of the largest worker, for the input and for four times as much.

    python benchmarks/prepare_throughput.py [--quick] [--workers N] [--repeats N] [--out FILE.json]

About 4 minutes on 2 cores, 20 seconds with --quick. Result on 2 cores of an Intel Xeon: see data_prep/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / 'data_prep'))  # a script as this one, and no package
from make_example import EOS, read_library, train_tokenizer

MAX_SEQ_LEN = 2048

# Each runs in a fresh interpreter with the arguments: input, output folder, tokenizer, workers.
PREPARE = (
    """
import json, os, sys, time
import streaming
from transformers import AutoTokenizer
from llmshearing.prepare import pool as prepare_pool
from llmshearing.prepare.pipeline import prepare
def peak(pid):  # not getrusage, whose maximum is that of the starting process where it was larger
    with open(f'/proc/{pid}/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) // 1024
leave, workers_mb = prepare_pool.WorkerPool.__exit__, []
def watched(self, *error):
    workers_mb.extend(peak(process.pid) for process in self.processes)
    leave(self, *error)
prepare_pool.WorkerPool.__exit__ = watched
path, out, tokenizer, workers = sys.argv[1:]
spec = {'tokenizer': tokenizer, 'max_seq_len': %d, 'out': out, 'domains': {'text': path}, 'splits': {'continue': {}},
        'bos': False, 'eos': True, 'hashes': []}
idle = os.times()
start = time.perf_counter()
manifest = prepare(spec, workers=int(workers))
seconds, used = time.perf_counter() - start, os.times()
json.dump({'seconds': seconds, 'cpu_seconds': sum(used[:4]) - sum(idle[:4]),
           'tokens': manifest['splits']['continue']['tokens'], 'main_mb': peak('self'), 'worker_mb': max(workers_mb)},
          sys.stderr)
"""
    % MAX_SEQ_LEN
)
FOUNDRY = """
import json, os, sys, time
from pathlib import Path
from llmfoundry.command_utils.data_prep.convert_dataset_json import convert_dataset_json
path, out, tokenizer, workers = sys.argv[1:]
idle = os.times()
start = time.perf_counter()
convert_dataset_json(path=path, out_root=out, compression=None, concat_tokens=%d, split='train', tokenizer=tokenizer,
                     eos_text='%s', num_workers=int(workers))
seconds, used = time.perf_counter() - start, os.times()
samples = sum(shard['samples'] for shard in json.loads((Path(out) / 'index.json').read_text())['shards'])
with open('/proc/self/status') as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) // 1024
json.dump({'seconds': seconds, 'cpu_seconds': sum(used[:4]) - sum(idle[:4]), 'tokens': samples * %d, 'main_mb': peak},
          sys.stderr)
""" % (MAX_SEQ_LEN, EOS, MAX_SEQ_LEN)


def write_input(path: Path, texts: list[str], copies: int) -> str:
    """``copies`` times the texts, made distinct by their first line, one JSON object a line."""
    with open(path, 'w', encoding='utf-8') as file:
        for copy in range(copies):
            file.writelines(json.dumps({'text': f'# {copy} {i}\n{text}'}) + '\n' for i, text in enumerate(texts))
    return str(path)


def run(script: str, path: str, folder: Path, tokenizer: str, workers: int, cache: Path) -> dict[str, float]:
    """One measurement in a process of its own."""
    file = folder / 'run.py'
    file.write_text(script)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        done = subprocess.run(
            [sys.executable, str(file), path, f'{out}/out', tokenizer, str(workers)],
            env={**os.environ, 'HF_DATASETS_CACHE': str(cache), 'HF_HUB_OFFLINE': '1'},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f'the measured process failed:\n{done.stderr}')
    result = json.loads(done.stderr[done.stderr.rindex('{') :])
    return {**result, 'tokens_per_second': result['tokens'] / result['seconds']}


def measure(quick: bool, workers: int, repeats: int, alone: bool = False) -> dict:
    """All measurements; see the head of this file."""
    texts = list(read_library(2_000_000 if quick else 40_000_000))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer(texts[: 40 if quick else 400], 600 if quick else 8192, folder / 'tokenizer')
        path = write_input(folder / 'text.jsonl', texts, 1)
        ours, cold, warm = [], [], []
        for repeat in range(repeats):
            cache = folder / f'cache{repeat}'
            ours.append(run(PREPARE, path, folder, tokenizer, workers, cache))
            if not alone:
                cold.append(run(FOUNDRY, path, folder, tokenizer, workers, cache))
            if not quick and not alone:
                warm.append(run(FOUNDRY, path, folder, tokenizer, workers, cache))
        larger = (
            {}
            if quick or alone
            else {  # from some shards on, memory should not follow
                factor: run(
                    PREPARE,
                    write_input(folder / 'larger.jsonl', texts, factor),
                    folder,
                    tokenizer,
                    workers,
                    folder / 'cache',
                )
                for factor in (4, 12)
            }
        )
        result = {
            'cores': len(os.sched_getaffinity(0)),
            'workers': workers,
            'input_bytes': os.path.getsize(path),
            'prepare': ours,
            'foundry': cold,
            'foundry_warm_cache': warm,
            'prepare_times_the_input': larger,
        }
    speed = {
        key: statistics.median(r['tokens_per_second'] for r in result[key])
        for key in ('prepare', 'foundry', 'foundry_warm_cache')
        if result[key]
    }
    result['tokens_per_second'] = {key: round(value) for key, value in speed.items()}
    result['ratio'] = {key: round(speed['prepare'] / value, 2) for key, value in speed.items() if key != 'prepare'}
    return result


def main(argv: list[str] | None = None) -> dict:
    """Runs the benchmark, writes the result as JSON and returns it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--quick', action='store_true', help='2 MB, one repeat: to see that it runs')
    parser.add_argument('--alone', action='store_true', help='prepare on one input, nothing beside it')
    parser.add_argument('--workers', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--out', help='file for the result; default: standard output')
    args = parser.parse_args(argv)
    result = measure(args.quick, args.workers, 1 if args.quick else args.repeats, args.alone)
    text = json.dumps(result, indent=2) + '\n'
    if args.out:
        Path(args.out).write_text(text, encoding='utf-8')
    else:
        sys.stdout.write(text)
    return result


if __name__ == '__main__':
    main()
