"""What `llmshearing trim-vocab` costs and gives: parameters, nats per byte, tokens per byte, speed, by vocabulary size.

SmolLM2-135M is trimmed to 32,000 and 16,000 of its 49,152 tokens, counted on the demo's text without every tenth
document. Of these the beginnings are what losses and lengths are measured on. A loss is the sum over all tokens of a
passage by its bytes, so that vocabularies can be compared; nothing is trained.

    python benchmarks/vocabulary.py --work runs/demo [--sizes 32000 16000] [--output FILE.json] [--quick]

The folder is that of ``make demo``; what is missing there is made. It takes about four minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from llmshearing.cut.speed import tokens_per_second
from llmshearing.demo.source_model import build_source_model
from llmshearing.demo.text import harvest_text
from llmshearing.export.model_folder import open_strictly
from llmshearing.utils.markdown import markdown_table
from llmshearing.vocabulary.settings import TrimSettings
from llmshearing.vocabulary.trim_source import trim_source

DOMAINS = ('python', 'api_docs', 'descriptions', 'licences')  # the demo's
QUICK_DOMAINS = ('python', 'descriptions')
EVERY = 10  # one document of so many is held out
CHARACTERS = 1024  # of each held-out passage


def toy_source(work: Path) -> Path:
    """Two domains, a tokenizer of 512 tokens trained on them, and a random model."""
    harvest_text(work / 'text', max_chars=200_000, domains=QUICK_DOMAINS)
    tokenizer = ByteLevelBPETokenizer()
    files = [str(work / 'text' / f'{name}.jsonl') for name in QUICK_DOMAINS]
    tokenizer.train(files, vocab_size=512, special_tokens=['</s>'], show_progress=False)
    names = dict(eos_token='</s>', bos_token='</s>', pad_token='</s>')
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **names).save_pretrained(work / 'source')
    sizes = dict(vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    LlamaForCausalLM(LlamaConfig(**sizes, **ids, max_position_embeddings=1024)).save_pretrained(work / 'source')
    return work / 'source'


def split_text(text: Path, out: Path, passages: int) -> dict[str, list[str]]:
    """Writes the documents to count on, and returns held-out passages by domain."""
    held_out = {}
    out.mkdir(parents=True)
    for path in sorted(text.glob('*.jsonl')):
        lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
        counted = [line for number, line in enumerate(lines) if number % EVERY]
        (out / path.name).write_text(''.join(counted), encoding='utf-8')
        documents = [json.loads(line)['text'][:CHARACTERS] for line in lines[::EVERY]]
        held_out[path.stem] = documents[:passages]
    return held_out


def tell(line: str) -> None:
    sys.stderr.write(f'{line}\n')


@torch.inference_mode()
def nats_and_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: Sequence[str]
) -> tuple[float, int]:
    """Sum of the losses of all tokens of some passages behind a beginning token, and how many they are."""
    sums, count = [], 0
    for passage in passages:
        ids = tokenizer(passage, add_special_tokens=False)['input_ids']
        whole = torch.tensor([[tokenizer.bos_token_id, *ids]], device=model.device)
        logits = model(input_ids=whole, use_cache=False).logits[0, :-1].float()
        sums.append(torch.nn.functional.cross_entropy(logits, whole[0, 1:], reduction='sum').item())
        count += len(ids)
    return math.fsum(sums), count


def measure_folder(folder: Path, held_out: Mapping[str, Sequence[str]], length: int) -> dict[str, Any]:
    """Parameters, losses and tokens per byte by domain, and speed."""
    model, tokenizer = open_strictly(folder), AutoTokenizer.from_pretrained(folder)
    sizes = {name: sum(len(passage.encode()) for passage in passages) for name, passages in held_out.items()}
    sums = {name: nats_and_tokens(model, tokenizer, passages) for name, passages in held_out.items()}
    lengths = {name: tokens / sizes[name] for name, (_, tokens) in sums.items()}
    speed = tokens_per_second(model, length, new_tokens=length // 8)
    return {
        'vocabulary': model.config.vocab_size,
        'parameters': model.num_parameters(),
        'nats_per_byte': {name: nats / sizes[name] for name, (nats, _) in sums.items()},
        'tokens_per_byte': lengths,
        'tokens_per_second': speed,
        'bytes_per_second': {way: rate / statistics.fmean(lengths.values()) for way, rate in speed.items()},
    }


def measure(
    source: Path, text: Path, sizes: Sequence[int], multiple_of: int, passages: int, length: int
) -> list[dict[str, Any]]:
    """The source and its trimmed models, the source again at the end: the machine's own unrest."""
    with tempfile.TemporaryDirectory() as scratch:
        held_out = split_text(text, Path(scratch) / 'counted', passages)
        folders, checks = [source], [{}]
        for size in sizes:
            folders.append(Path(scratch) / str(size))
            settings = TrimSettings(size, multiple_of)
            record = trim_source(source, folders[-1], settings, [Path(scratch) / 'counted'], report=tell)
            checks.append({'checked': record['checked']})
        return [
            {**measure_folder(folder, held_out, length), **check}
            for folder, check in zip([*folders, source], [*checks, {}])
        ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row per model; losses and lengths are means over the domains."""
    models = []
    for row in rows:
        means = [statistics.fmean(row[name].values()) for name in ('nats_per_byte', 'tokens_per_byte')]
        speeds = [
            f'{row[unit][way]:.1f}'
            for way in ('forward', 'generate')
            for unit in ('tokens_per_second', 'bytes_per_second')
        ]
        size, millions = f'{row["vocabulary"]:,}', f'{row["parameters"] / 1e6:.2f}M'
        models.append([size, millions, f'{means[0]:.4f}', f'{means[1]:.4f}', *speeds])
    domains = list(rows[0]['nats_per_byte'])
    by_domain = [
        [
            f'{row["vocabulary"]:,}',
            *(f'{row["nats_per_byte"][name]:.4f} ({row["tokens_per_byte"][name]:.4f})' for name in domains),
        ]
        for row in rows[:-1]
    ]
    first = ['tokens', 'parameters', 'nats per byte', 'tokens per byte', 'reading, tokens/s', 'bytes/s']
    first += ['generating, tokens/s', 'bytes/s']
    second = ['nats per byte (tokens per byte)', *domains]
    return f'{markdown_table(first, models)}\n\n{markdown_table(second, by_domain)}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder for text and source, as of the demo')
    parser.add_argument('--sizes', type=int, nargs='+', default=[32_000, 16_000], help='default: 32000 16000')
    parser.add_argument('--passages', type=int, default=8, help='held out of each domain (default: %(default)s)')
    parser.add_argument('--quick', action='store_true', help='toy sizes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write the measurements as JSON')
    arguments = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    if arguments.quick:
        source, settings = toy_source(arguments.work), ([384, 320], 64, 2, 16)
    else:
        source = build_source_model(arguments.work / 'source', arguments.work / 'downloads')
        settings = (arguments.sizes, 64, arguments.passages, 256)
        if not (arguments.work / 'text').exists():
            harvest_text(arguments.work / 'text', domains=DOMAINS)
    rows = measure(source, arguments.work / 'text', *settings)
    sys.stdout.write(table(rows) + '\n')
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
