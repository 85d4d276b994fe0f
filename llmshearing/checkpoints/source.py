"""Checks the weights of a source model against its config before anything is built from them.

transformers fills tensors that a folder lacks with random numbers and says so in a warning among many; training then
goes on. Here every tensor must be there, with its shape, and hold finite numbers. Names, shapes and types come from the
headers of the files, which takes milliseconds.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor, load_stored
from llmshearing.checkpoints.parameter_shapes import ParameterShapes, check_tensors, parameter_shapes
from llmshearing.models.families import find_table
from llmshearing.models.stored_names import stored_pieces, stored_tensors
from llmshearing.utils.paths import check_safetensors_index

__all__ = [
    'WHOLE_UP_TO',
    'MultimodalWeights',
    'check_weights',
    'read_multimodal_weights',
    'read_weights',
    'weight_files',
    'weights_folder',
]

WHOLE_UP_TO = 10**9  # parameters; commands compute larger sources in the type they are stored in, read from their files

# In order of transformers' own preference.
WEIGHT_FILES = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
POINTED_TO = ('*.safetensors', '*.bin', 'tokenizer.json', 'tokenizer.model')
EMBEDDINGS = ('embed_tokens.weight', 'embed_in.weight')
TEXT_PART = 'language_model.'  # in names of tensors of a multimodal model
JOINT_EXPERTS = ('.experts.gate_up_proj', '.experts.down_proj')
WRAPPERS = ('module.', '_orig_mod.', 'model.module.', 'model._orig_mod.', 'model.model.', 'base_model.model.')
LFS_POINTER = b'version https://git-lfs.github.com/spec/'
FLOATS = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}
FLOATS |= {'F8_E4M3': torch.float8_e4m3fn, 'F8_E5M2': torch.float8_e5m2}
# Buffers that older releases of transformers saved, and newer ones compute.
OLD_BUFFERS = (
    r'rotary_emb\.inv_freq$',
    r'attention\.bias$',
    r'attention\.masked_bias$',
    r'rotary_emb\.(cos|sin)_cached$',
)


def weights_folder(name: str) -> Path | None:
    """The folder of a model: itself, or where the hub's cache has it; None where it is not on this machine."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, 'config.json')
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def weight_files(folder: Path) -> list[Path]:
    """The files of a model folder that hold its weights, in the order of their names."""
    return sorted(path for pattern in ('*.safetensors', '*.bin') for path in folder.glob(pattern))


def check_weights(folder: Path, config: PretrainedConfig, values: bool = True) -> None:
    """Raises a ValueError, naming the tensor, for weights that training could not begin with.

    Args:
        folder (Path): Model folder: safetensors or ``pytorch_model.bin``, in one file or in shards.
        config (PretrainedConfig): Its config, as :func:`~llmshearing.models.source_config.read_config` gives it.
        values (bool): Look for NaN and infinity as well, one tensor at a time. This reads all weights once: on a
            local disk about a second per gigabyte, and memory for the largest tensor. Default: ``True``.
    """
    folder = Path(folder)
    shapes = parameter_shapes(config, in_files=True)
    stored = _named_tensors(folder, config, shapes)
    for name, tensor in stored.items():
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise ValueError(
                f'{folder}: {name} is stored as {str(tensor.dtype).removeprefix("torch.")}: quantised weights can '
                'neither be cut nor trained; use the model that they were made from.'
            )
    try:
        check_tensors(str(folder), {name: tensor.shape for name, tensor in stored.items()}, shapes.shapes, shapes.tied)
    except ValueError as error:
        wrapper = next((prefix for prefix in WRAPPERS if any(name.startswith(prefix) for name in stored)), None)
        if wrapper is not None:
            raise ValueError(
                f'{folder}: its tensors are called {wrapper}..., as a wrapper around the model calls them, and '
                'transformers would fill the model at random; save the model that is inside the wrapper once more.'
            ) from None
        raise ValueError(
            f'{error}\nMissing tensors would begin at random. Copy the model again, save it with its LM head, or '
            'correct its config.json.'
        ) from None
    _check_tied_head(folder, stored, shapes)
    if values:
        for name, tensor in stored.items():
            if not torch.isfinite(tensor.read()).all():
                raise ValueError(f'{folder}: {name} holds NaN or infinity; copy the model again, or take another one.')


def read_weights(folder: Path, config: PretrainedConfig) -> dict[str, StoredTensor]:
    """The tensors of a model folder by their names there, each still in its file.

    Args:
        folder (Path): As in :func:`check_weights`, which says whether they fit the config.
        config (PretrainedConfig): Its config.
    """
    return _named_tensors(Path(folder), config, parameter_shapes(config, in_files=True))


@dataclasses.dataclass(frozen=True)
class MultimodalWeights:
    """The tensors of a multimodal model, still in their files.

    Attributes:
        text (dict[str, StoredTensor]): Of its text part, by their names in a folder without the rest.
        others (dict[str, StoredTensor]): Of all other parts, by their names in the folder.
        before (str): What stands in names before the words for the text part.
    """

    text: dict[str, StoredTensor]
    others: dict[str, StoredTensor]
    before: str

    def name_inside(self, name: str) -> str:
        """What the whole model's files call a tensor of a decoder's folder."""
        inside = name.startswith(self.before)
        return f'{self.before}{TEXT_PART}{name.removeprefix(self.before)}' if inside else name


def read_multimodal_weights(folder: Path, config: PretrainedConfig) -> MultimodalWeights:
    """The tensors of a multimodal model, its text part apart from the others.

    Args:
        folder (Path): Folder of the whole model.
        config (PretrainedConfig): Config of the text part.
    """
    _refuse_pointers(folder)
    expected = parameter_shapes(config, in_files=True).shapes
    stored = _stored_tensors(folder)
    renamed = _as_expected(config, {name.replace(TEXT_PART, '', 1): tensor for name, tensor in stored.items()})
    return MultimodalWeights(
        text={name: tensor for name, tensor in renamed.items() if name in expected},
        others={name: tensor for name, tensor in stored.items() if TEXT_PART not in name and name not in expected},
        before=next((name.split(TEXT_PART)[0] for name in stored if TEXT_PART in name), ''),
    )


def _named_tensors(folder: Path, config: PretrainedConfig, shapes: ParameterShapes) -> dict[str, StoredTensor]:
    """What the files hold, with the names of a whole model and without the buffers that are computed now."""
    _refuse_pointers(folder)
    stored = _stored_tensors(folder)
    prefix = _missing_prefix(stored, shapes)
    ignored = [re.compile(pattern) for pattern in (*shapes.ignored, *OLD_BUFFERS)]
    named = {
        f'{prefix}{name}': tensor
        for name, tensor in stored.items()
        if not any(pattern.search(name) for pattern in ignored)
    }
    return _as_expected(config, named)


def _as_expected(config: PretrainedConfig, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors as :mod:`~llmshearing.models.stored_names` says that files hold them, which transformers varies.

    Some releases wrote all experts of a layer into one tensor. Where a kind of layer has names of its own in files,
    others use them in every layer, and cut what lies there in pieces into equal ones.
    """
    named = dict(stored)
    for name in [name for name in named if name.endswith(JOINT_EXPERTS)]:
        parts = _parts(config, name, [named.pop(name)])
        twice = next((part for part in parts if part in named), None)
        if twice is not None:
            raise ValueError(
                f'the folder holds {twice} twice: by itself and within {name}; remove the file that is left over of '
                'another export.'
            )
        named |= parts
    family = find_table(config)
    if family is None or family.stored_pieces is None:
        return named
    for layer, (inside, pieces) in itertools.product(
        range(config.num_hidden_layers), family.stored_pieces.names.items()
    ):
        place = f'{family.decoder}.layers.{layer}.'
        name, others = f'{place}{inside}', [f'{place}{piece}' for piece in pieces]
        if not stored_pieces(config, name):
            if others[0] in named:
                named[name] = named.pop(others[0])
        elif name in named or all(piece in named for piece in others):
            held = [named.pop(piece) for piece in ([name] if name in named else others)]
            rows = family.stored_pieces.rows(config) if len(others) > 1 else [held[0].shape[0]]
            fits = sum(tensor.shape[0] for tensor in held) == sum(rows)
            named |= _parts(config, name, held) if fits else dict(zip(others, held))
    return named


def _parts(config: PretrainedConfig, name: str, held: list[StoredTensor]) -> dict[str, StoredTensor]:
    """What files hold of a parameter that lies in other pieces, or in one: read when it is asked for."""

    @functools.lru_cache(maxsize=1)  # its parts are asked for in turn
    def read_parts() -> dict[str, Tensor]:
        return dict(stored_tensors(config, name, torch.cat([tensor.read() for tensor in held])))

    def reader(part: str) -> Callable[[], Tensor]:
        return lambda: read_parts()[part].clone()

    shape = (sum(tensor.shape[0] for tensor in held), *held[0].shape[1:])
    views = stored_tensors(config, name, torch.empty(shape, device='meta'))
    return {part: StoredTensor(tuple(view.shape), held[0].dtype, reader(part)) for part, view in views}


def _refuse_pointers(folder: Path) -> None:
    for pattern in POINTED_TO:
        for path in sorted(folder.glob(pattern)):
            with path.open('rb') as file:
                if file.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise ValueError(
                        f'{path} is a pointer of git-lfs, not the file itself; run `git lfs pull` in that folder.'
                    )


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by its name there, not yet read."""
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None and (folder / 'adapter_config.json').is_file():
        raise ValueError(
            f'{folder} holds an adapter (LoRA) and no model; merge it into its base model first, with peft: '
            'AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(OTHER).'
        )
    if name is None:
        raise ValueError(f'{folder} holds no weights: expected one of {", ".join(WEIGHT_FILES)}.')
    files = [folder / name]
    if name.endswith('.index.json'):
        files = [folder / file for file in sorted(set(check_safetensors_index(folder / name).values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(f'{folder}: {name} lists {", ".join(missing)}, which are not there; copy them as well.')
    stored: dict[str, StoredTensor] = {}
    held_by: dict[str, Path] = {}
    for file in files:
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
                yield name, StoredTensor(tuple(part.get_shape()), FLOATS.get(kind, torch.int8), _reader(path, name))
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


def _missing_prefix(stored: dict[str, StoredTensor], shapes: ParameterShapes) -> str:
    """What stands before the names in memory where a decoder was saved on its own (``AutoModel``)."""
    expected = shapes.shapes
    for prefix in sorted({f'{name.split(".")[0]}.' for name in expected}):
        if stored and not any(name in expected for name in stored):
            if any(f'{prefix}{name}' in expected for name in stored):
                return prefix
    return ''


def _check_tied_head(folder: Path, stored: dict[str, StoredTensor], shapes: ParameterShapes) -> None:
    """A head that is written although it is tied must be the embedding."""
    embedding = next((name for name in shapes.shapes if name.endswith(EMBEDDINGS)), None)
    for name in sorted(shapes.tied & set(stored)):
        if embedding in stored and not torch.equal(stored[name].read(), stored[embedding].read()):
            raise ValueError(
                f'{folder}: {name} differs from {embedding}, but the config says that they are one '
                '(tie_word_embeddings); if the head is its own, set tie_word_embeddings: false in its config.json.'
            )
