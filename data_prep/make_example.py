"""Writes the input of the worked example: text that every machine has, and a tokenizer trained on it.

python data_prep/make_example.py example [CHARACTERS]

An installation of Python carries three kinds of text different enough to be domains: source code, documentation strings
and descriptions of packages. Each is written in another of the formats that `prepare` reads.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

__all__ = ['EOS', 'make_example', 'read_library', 'train_tokenizer']

EOS = '</s>'


def read_library(limit: int) -> Iterator[str]:
    """Source files of Python's standard library in order of path, until ``limit`` characters are passed."""
    size = 0
    for path in sorted(Path(os.__file__).parent.rglob('*.py')):
        if 'site-packages' in path.parts or size >= limit:
            continue
        try:
            text = path.read_text(encoding='utf-8')
        except UnicodeDecodeError:
            continue
        if text.strip():
            size += len(text)
            yield text


def _read_docstrings(sources: Iterable[str]) -> Iterator[str]:
    """Documentation strings of the modules, classes and functions of some source files."""
    for source in sources:
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):  # test files of the library are broken on purpose
            continue
        for node in nodes:
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                yield text


def _read_descriptions() -> Iterator[tuple[str, str]]:
    """Name and description of every installed package, in order of name."""
    found = {package.metadata['Name']: package.read_text('METADATA') or '' for package in metadata.distributions()}
    for name, text in sorted(found.items(), key=str):
        description = text.partition('\n\n')[2]  # after the fields
        if name and description.strip():
            yield name, description


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> str:
    """Trains and saves a byte-level BPE tokenizer with ``<s>`` and ``</s>``, and returns the folder's name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=['<s>', EOS],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token=EOS).save_pretrained(folder)
    return str(folder)


def make_example(folder: Path, limit: int) -> None:
    """Writes the input of ``yamls/data/example.yaml``.

    Args:
        folder (Path): Gets ``code.jsonl``, ``docs.jsonl.gz``, ``packages/*.txt`` and ``tokenizer/``.
        limit (int): Characters of source code to take.
    """
    folder = Path(folder)
    (folder / 'packages').mkdir(parents=True, exist_ok=True)
    sources = list(read_library(limit))
    with open(folder / 'code.jsonl', 'w', encoding='utf-8') as file:
        file.writelines(json.dumps({'text': text}) + '\n' for text in sources)
    with gzip.open(folder / 'docs.jsonl.gz', 'wt', encoding='utf-8') as file:
        file.writelines(json.dumps({'text': text}) + '\n' for text in _read_docstrings(sources))
    for name, text in _read_descriptions():
        (folder / 'packages' / f'{name}.txt').write_text(text, encoding='utf-8', errors='replace')
    train_tokenizer(sources[:300], 4096, folder / 'tokenizer')


if __name__ == '__main__':
    make_example(Path(sys.argv[1]), int(float(sys.argv[2])) if len(sys.argv) > 2 else 2_000_000)
