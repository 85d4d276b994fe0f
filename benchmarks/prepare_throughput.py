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

MAX_SEQ_LEN = 2048
EOS = '</s>'

# Each runs in a fresh interpreter with the arguments: input, output folder, tokenizer, workers.
PREPARE = '''
import json, resource, sys, time
import streaming
from transformers import AutoTokenizer
from llmshearing.data.prepare import prepare
path, out, tokenizer, workers = sys.argv[1:]
spec = {'tokenizer': tokenizer, 'max_seq_len': %d, 'out': out, 'domains': {'text': path}, 'splits': {'continue': {}},
        'bos': False, 'eos': True, 'hashes': []}
start = time.perf_counter()
manifest = prepare(spec, workers=int(workers))
seconds = time.perf_counter() - start
peaks = [resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
json.dump({'seconds': seconds, 'tokens': manifest['splits']['continue']['tokens'], 'main_mb': peaks[0],
           'worker_mb': peaks[1]}, sys.stderr)
''' % MAX_SEQ_LEN
FOUNDRY = '''
import json, resource, sys, time
from pathlib import Path
from llmfoundry.command_utils.data_prep.convert_dataset_json import convert_dataset_json
path, out, tokenizer, workers = sys.argv[1:]
start = time.perf_counter()
convert_dataset_json(path=path, out_root=out, compression=None, concat_tokens=%d, split='train', tokenizer=tokenizer,
                     eos_text='%s', num_workers=int(workers))
seconds = time.perf_counter() - start
samples = sum(shard['samples'] for shard in json.loads((Path(out) / 'index.json').read_text())['shards'])
json.dump({'seconds': seconds, 'tokens': samples * %d,
           'main_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}, sys.stderr)
''' % (MAX_SEQ_LEN, EOS, MAX_SEQ_LEN)


def read_library(limit: int) -> list[str]:
    """Source files of the standard library, up to ``limit`` characters in all."""
    texts, size = [], 0
    for path in sorted(Path(os.__file__).parent.rglob('*.py')):
        if 'site-packages' in path.parts:
            continue
        try:
            text = path.read_text(encoding='utf-8')
        except UnicodeDecodeError:
            continue
        if text.strip():
            texts.append(text)
            size += len(text)
        if size >= limit:
            break
    return texts


def train_tokenizer(texts: list[str], vocab_size: int, folder: Path) -> str:
    """A byte-level BPE tokenizer as today's models have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=['<s>', EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token=EOS).save_pretrained(folder)
    return str(folder)


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
        done = subprocess.run([sys.executable, str(file), path, f'{out}/out', tokenizer, str(workers)],
                              env={**os.environ, 'HF_DATASETS_CACHE': str(cache), 'HF_HUB_OFFLINE': '1'},
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'the measured process failed:\n{done.stderr}')
    result = json.loads(done.stderr[done.stderr.rindex('{'):])
    return {**result, 'tokens_per_second': result['tokens'] / result['seconds']}


def measure(quick: bool, workers: int, repeats: int) -> dict:
    """All measurements; see the head of this file."""
    texts = read_library(3_000_000 if quick else 40_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer(texts[:400], 1000 if quick else 8192, folder / 'tokenizer')
        path = write_input(folder / 'text.jsonl', texts, 1)
        ours, cold, warm = [], [], []
        for repeat in range(repeats):
            cache = folder / f'cache{repeat}'
            ours.append(run(PREPARE, path, folder, tokenizer, workers, cache))
            cold.append(run(FOUNDRY, path, folder, tokenizer, workers, cache))
            if not quick:
                warm.append(run(FOUNDRY, path, folder, tokenizer, workers, cache))
        larger = [] if quick else [
            run(PREPARE, write_input(folder / 'larger.jsonl', texts, 4), folder, tokenizer, workers, folder / 'cache')]
        result = {'cores': len(os.sched_getaffinity(0)), 'workers': workers, 'input_bytes': os.path.getsize(path),
                  'prepare': ours, 'foundry': cold, 'foundry_warm_cache': warm, 'prepare_four_times_the_input': larger}
    speed = {key: statistics.median(r['tokens_per_second'] for r in result[key])
             for key in ('prepare', 'foundry', 'foundry_warm_cache') if result[key]}
    result['tokens_per_second'] = {key: round(value) for key, value in speed.items()}
    result['ratio'] = {key: round(speed['prepare'] / value, 2) for key, value in speed.items() if key != 'prepare'}
    return result


def main(argv: list[str] | None = None) -> dict:
    """Runs the benchmark, writes the result as JSON and returns it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--quick', action='store_true', help='3 MB, one repeat: to see that it runs')
    parser.add_argument('--workers', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--out', help='file for the result; default: standard output')
    args = parser.parse_args(argv)
    result = measure(args.quick, args.workers, 1 if args.quick else args.repeats)
    text = json.dumps(result, indent=2) + '\n'
    if args.out:
        Path(args.out).write_text(text, encoding='utf-8')
    else:
        sys.stdout.write(text)
    return result


if __name__ == '__main__':
    main()
