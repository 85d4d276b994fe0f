"""Files that do something when they are opened carelessly: they make a marker file, and tests look for it."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'touch {self.marker}',)


@contextlib.contextmanager
def disarmed(marker: Path) -> Iterator[Path]:
    """Fails if the marker is there afterwards."""
    yield marker
    assert not marker.exists(), 'code from the file was run'


def armed(path: Path, marker: Path, content: Any = None) -> Path:
    """A ``torch.save`` file with a payload beside ``content``."""
    torch.save({'state': {'model': content or {}, 'extra': Payload(marker)}}, path)
    return path


def armed_pickle(path: Path, marker: Path) -> Path:
    path.write_bytes(pickle.dumps(Payload(marker)))
    return path


def armed_archive(marker: Path) -> bytes:
    """A payload as one piece of a sharded checkpoint."""
    buffer = io.BytesIO()
    torch.save(Payload(marker), buffer)
    return buffer.getvalue()


def remote_code_model(folder: Path, marker: Path, model_type: str = 'not_a_type') -> Path:
    """A Hugging Face folder whose config and tokenizer bring code that makes the marker when it is imported."""
    folder.mkdir(parents=True, exist_ok=True)
    code = (
        f'import pathlib\npathlib.Path({str(marker)!r}).touch()\n'
        'from transformers import LlamaConfig, PreTrainedTokenizerFast\n\n\n'
        f'class Evil(LlamaConfig):\n    model_type = {model_type!r}\n\n\n'
        'class EvilTokenizer(PreTrainedTokenizerFast):\n    pass\n'
    )
    (folder / 'evil.py').write_text(code)
    (folder / 'config.json').write_text(f'{{"model_type": "{model_type}", "auto_map": {{"AutoConfig": "evil.Evil"}}}}')
    (folder / 'tokenizer_config.json').write_text(
        '{"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [null, "evil.EvilTokenizer"]}}'
    )
    (folder / 'tokenizer.json').write_text('{}')
    return folder
