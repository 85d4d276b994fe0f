"""The files of a model folder that hold weights, and the tensors in them, each read when it is asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmshearing.checkpoints.lazy_tensors import StoredTensor, load_stored
from llmshearing.compat.huggingface_hub import HUB_COMMAND
from llmshearing.models.source_files import find_file
from llmshearing.utils.files import refuse_pointer
from llmshearing.utils.paths import check_safetensors_index, refuse_adapter, refuse_lookalikes

__all__ = [
    'WEIGHT_FILES',
    'check_has_config',
    'find_tensors',
    'find_weights',
    'weight_files',
    'weights_folder',
    'whole_folder',
]

log = logging.getLogger(__name__)

# In order of transformers' own preference.
WEIGHT_FILES = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
# What holds a model for other programs, or for transformers under another name.
OTHER_FILES = ('*.safetensors', '*model*.bin', '*.gguf', 'consolidated*.pth', '*.h5', '*.msgpack', '*.onnx')
SHARD = re.compile(r'^(model|pytorch_model)-\d+-of-\d+\.')
POINTED_TO = ('*.safetensors', '*.bin', 'tokenizer.json', 'tokenizer.model')
KINDS = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}
KINDS |= {'F8_E4M3': torch.float8_e4m3fn, 'F8_E5M2': torch.float8_e5m2, 'BOOL': torch.bool, 'C64': torch.complex64}


def check_has_config(where: str, folder: str | Path) -> None:
    """Raises a ValueError for what is no model's folder; ``where`` names it."""
    if not (Path(folder) / 'config.json').is_file():
        refuse_lookalikes(where, folder)
        raise ValueError(
            f'{where} is no Hugging Face model folder (no config.json there). Name one; a model of the hub is '
            f'downloaded by `{HUB_COMMAND} download NAME --local-dir FOLDER`.'
        )


def weights_folder(name: str) -> Path | None:
    """The folder of a model: itself, or where the hub's cache has it; None where it is not on this machine."""
    if Path(name).is_dir():
        return Path(name)
    config = find_file(name, 'config.json')
    return None if config is None else config.parent


def whole_folder(name: str) -> Path | None:
    """As :func:`weights_folder`, but None, and a word of it, for a name whose weights are yet to be downloaded."""
    folder = weights_folder(name)
    if folder is None or folder == Path(name):
        return folder
    try:
        find_weights(folder)
    except ValueError:  # reading its config alone puts that into the cache
        log.warning(
            'The weights of %s are not on this machine yet, so they are not checked before they are read; '
            '`%s download %s` gets them.',
            name,
            HUB_COMMAND,
            name,
        )
        return None
    return folder


def weight_files(folder: Path) -> list[Path]:
    """All files of a model folder that hold weights, in the order of their names; other programs' are among them."""
    return sorted(path for pattern in ('*.safetensors', '*.bin') for path in folder.glob(pattern))


def find_weights(folder: Path) -> list[Path]:
    """The files that transformers reads a model's weights from.

    Raises:
        ValueError: If there are none, one of several is missing, or an adapter lies beside them.
    """
    refuse_adapter(str(folder), folder)
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        refuse_lookalikes(str(folder), folder)
        others = sorted(path.name for pattern in OTHER_FILES for path in folder.glob(pattern))
        shards = [name for name in others if SHARD.search(name)]
        found = f' It has {", ".join(shards or others[:3])}: ' if others else ''
        if others:
            convert = 'convert them with a tool for their format into a folder that transformers opens.'
            found += 'copy the index that belongs to these shards as well.' if shards else convert
        raise ValueError(f'{folder} holds no weights: expected one of {", ".join(WEIGHT_FILES)}.{found}')
    files = [folder / name]
    if name.endswith('.index.json'):
        files = [folder / file for file in sorted(set(check_safetensors_index(folder / name).values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            refuse_lookalikes(str(folder), folder)
            raise ValueError(f'{folder}: {name} lists {", ".join(missing)}, which are not there; copy them as well.')
    return files


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by its name there, not yet read.

    Raises:
        ValueError: If there are no weights, a file cannot be read, or two hold one tensor with different values.
    """
    for pattern in POINTED_TO:
        for path in filter(Path.is_file, sorted(folder.glob(pattern))):
            refuse_pointer(path)
    stored: dict[str, StoredTensor] = {}
    held_by: dict[str, Path] = {}
    files, index = find_weights(folder), folder / WEIGHT_FILES[1]
    if files == [folder / WEIGHT_FILES[0]] and index.is_file():  # programs differ in which of the two they read
        files = sorted({*files, *(folder / file for file in check_safetensors_index(index).values())})
    for file in filter(Path.is_file, files):
        for name, tensor in _in_safetensors(file) if file.suffix == '.safetensors' else _in_pickle(file):
            if name in stored and not torch.equal(stored[name].read(), tensor.read()):
                raise ValueError(
                    f'{folder}: {name} is in {held_by[name].name} and, with other values, in {file.name}: files of two '
                    'models lie in one folder; copy the model again into an empty one.'
                )
            stored[name], held_by[name] = tensor, file
    return stored


def _in_safetensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        with safe_open(path, 'pt') as file:
            for name in file.keys():
                part = file.get_slice(name)
                kind = part.get_dtype()
                yield name, StoredTensor(tuple(part.get_shape()), KINDS.get(kind, torch.int8), _reader(path, name))
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} cannot be read ({error}): it was cut off or is damaged; copy it again.') from error


def _reader(path: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with safe_open(path, 'pt') as file:  # opened anew, so that no mapped page stays
            return file.get_tensor(name)

    return read


def _in_pickle(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    content: Any = load_stored(path)
    for name, tensor in content.items() if isinstance(content, dict) else ():
        if isinstance(tensor, StoredTensor):
            yield name, tensor
