"""Files of a source that a folder made from it has, too: tokenizer, generation config, licence, records. No code."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from llmshearing.checkpoints.rotated import RECORD
from llmshearing.checkpoints.tokenizer_files import make_portable, name_general_class
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.models.source_files import LICENCE_FILES, TEMPLATE_FOLDER

__all__ = ['copy_companions']

COMPANIONS = (
    'tokenizer*',
    'special_tokens_map.json',
    'added_tokens.json',
    'vocab.*',
    'merges.txt',
    '*.model',
    'chat_template*',
    f'{TEMPLATE_FOLDER}/*.jinja',
    'generation_config.json',
    *LICENCE_FILES,
    RECORD,  # of the basis, which another vocabulary leaves as it is
    'vocabulary.json',  # of the tokens that trim-vocab kept, which another basis leaves as they are
)
NO_COMPANIONS = ('.py', '.safetensors', '.bin', '.pt', '.gguf')


def copy_companions(source: Path, folder: Path) -> None:
    """Copies tokenizer, generation config, licence files and records as they are, byte for byte.

    Records are those of ``llmshearing rotate`` and ``trim-vocab``, each of which then writes its own anew. Alone the
    tokenizer's settings are put into words of either generation, and its class is named anew where transformers would
    open another one by it.
    """
    for path in {path for pattern in COMPANIONS for path in source.glob(pattern)}:
        if path.is_file() and path.suffix not in NO_COMPANIONS:
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    make_portable(folder)
    with contextlib.suppress(OSError, ValueError):  # a source without a tokenizer
        name_general_class(folder, read_tokenizer(source))
