"""Tokenizers of every kind that can be trimmed, made of this repository's own pages, and tiny models with them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from tests.models.tiny import tiny_model
from tests.rotation.models import save_source

ROOT = Path(__file__).parents[2]
SPECIAL = ['<unk>', '<s>', '</s>', '<pad>']
BYTES = [f'<0x{number:02X}>' for number in range(256)]
KINDS = ('byte-level', 'llama3', 'byte-fallback', 'unigram', 'unigram-bytes')
SIZES = {'byte-level': 640, 'llama3': 640, 'byte-fallback': 640, 'unigram': 500, 'unigram-bytes': 640}


@functools.cache
def pages() -> tuple[str, str]:
    """Text to train tokenizers on, and other text."""
    names = ('ARCHITECTURE.md', 'CONTRIBUTING.md', 'RELIABILITY.md')
    return ''.join((ROOT / name).read_text() for name in names), (ROOT / 'COMPATIBILITY.md').read_text()


@functools.cache
def tokenizer_json(kind: str) -> str:
    """A ``tokenizer.json``; its special tokens are :data:`SPECIAL`, of Llama 3 behind the others."""
    text = pages()[0].splitlines(keepends=True)
    if kind in ('byte-level', 'llama3'):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = SPECIAL if kind == 'byte-level' else []
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        size = SIZES[kind] - (len(SPECIAL) + 2) * (kind == 'llama3')
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(text, trainer)
        return tokenizer.to_str() if kind == 'byte-level' else _like_llama3(json.loads(tokenizer.to_str()))
    if kind == 'byte-fallback':
        tokenizer = Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')  # to be trained in seconds
        trainer = trainers.BpeTrainer(vocab_size=SIZES[kind] - 256, special_tokens=SPECIAL, show_progress=False)
        tokenizer.train_from_iterator(text, trainer)
        content = json.loads(tokenizer.to_str())
        tokens = [token for token, _ in sorted(content['model']['vocab'].items(), key=lambda item: item[1])]
        tokens[4:4] = BYTES
        content['model'] |= {'vocab': {token: n for n, token in enumerate(tokens)}, 'byte_fallback': True}
        content['pre_tokenizer'] = None  # as Llama's: a whole text is one word
        return json.dumps(_like_sentencepiece(content))
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    size = SIZES[kind] - (256 if kind == 'unigram-bytes' else 0)
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=SPECIAL, unk_token='<unk>', show_progress=False, n_sub_iterations=1
    )
    tokenizer.train_from_iterator(text, trainer)
    content = json.loads(tokenizer.to_str())
    if kind == 'unigram-bytes':
        content['model']['vocab'][4:4] = [[token, 0.0] for token in BYTES]
        content['model']['byte_fallback'] = True
        content['decoder'] = json.loads(Tokenizer.from_str(tokenizer_json('byte-fallback')).to_str())['decoder']
    return json.dumps(content)


def _like_llama3(content: dict) -> str:
    """Whole words are looked up first, one of which merges never make; special tokens stand behind all others."""
    vocab = content['model']['vocab']
    vocab['Ġmodelshearing'] = len(vocab)
    content['model']['ignore_merges'] = True
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([*SPECIAL, '<reserved>'])
    start = tokenizer.token_to_id('<s>')
    tokenizer.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', start)])
    return tokenizer.to_str()


def _like_sentencepiece(content: dict) -> dict:
    tokenizer = Tokenizer.from_str(json.dumps({**content, 'added_tokens': []}))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    start = tokenizer.token_to_id('<s>')
    tokenizer.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', start)])
    return json.loads(tokenizer.to_str())


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(tokenizer_json(kind))
    names = dict(unk_token='<unk>', bos_token='<s>', eos_token='</s>', pad_token='<pad>')
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_source(folder: Path, kind: str = 'byte-level', variant: str = 'llama', **overrides) -> Path:
    """A tiny model of a variant with a tokenizer of a kind, a card and a licence."""
    tokenizer = make_tokenizer(kind)
    ids = {f'{name}_token_id': getattr(tokenizer, f'{name}_token_id') for name in ('bos', 'eos', 'pad')}
    settings = {'vocab_size': SIZES[kind], **ids, **overrides}
    model = phi_model(**settings) if variant == 'phi' else tiny_model(variant, **settings)
    return save_source(folder, model, tokenizer)


def phi_model(**settings) -> PhiForCausalLM:
    """A tiny model of a type without a table, whose LM head has a bias."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6)
    model = PhiForCausalLM(PhiConfig(**sizes, max_position_embeddings=128, **settings)).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def make_text(folder: Path) -> Path:
    """Two domains: JSON lines and plain text."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for line in pages()[1].splitlines() if line]
    (folder / 'pages.jsonl').write_text(''.join(json.dumps({'text': line}) + '\n' for line in lines))
    (folder / 'code.txt').write_text((ROOT / 'llmshearing' / 'cli.py').read_text())
    return folder
