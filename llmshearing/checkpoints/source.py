"""Checks the weights of a source model against its config before anything is built from them.

transformers fills tensors that a folder lacks with random numbers and says so in a warning among many; training then
goes on. Here every tensor must be there, with its shape, and hold finite numbers. Names, shapes and types come from the
headers of the files, which takes milliseconds.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor
from llmshearing.checkpoints.parameter_shapes import ParameterShapes, parameter_shapes
from llmshearing.checkpoints.weight_files import find_tensors, whole_folder
from llmshearing.compat.transformers import load_complete_causal_lm
from llmshearing.models.families import find_table, stored_name
from llmshearing.models.roles import Linear, Norm
from llmshearing.models.source_config import refuse_quantised
from llmshearing.models.stored_names import stored_pieces, stored_tensors

__all__ = ['WHOLE_UP_TO', 'name_as_expected', 'check_weights', 'load_source', 'read_weights']

WHOLE_UP_TO = 10**9  # parameters; commands compute larger sources in the type they are stored in, read from their files

EMBEDDINGS = ('embed_tokens.weight', 'embed_in.weight')
JOINT_EXPERTS = ('.experts.gate_up_proj', '.experts.down_proj')
WRAPPERS = ('module.', '_orig_mod.', 'model.module.', 'model._orig_mod.', 'model.model.', 'base_model.model.')
ADAPTERS = ('.lora_', '.base_layer.', '.modules_to_save.')  # as peft calls its parts
MISSING = (
    'Missing tensors would begin at random. Copy the model again, save it with its LM head, or correct its config.json.'
)
LEFT_OVER = (
    'What is not expected, transformers would leave out. Correct the config.json of the model if it is part of it; if '
    'not, open the model with AutoModelForCausalLM.from_pretrained and save it once more (save_pretrained).'
)
# Buffers that older releases of transformers saved, and newer ones compute.
OLD_BUFFERS = (
    r'rotary_emb\.inv_freq$',
    r'attention\.bias$',
    r'attention\.masked_bias$',
    r'rotary_emb\.(cos|sin)_cached$',
)


def check_weights(folder: Path, config: PretrainedConfig, values: bool = True) -> None:
    """Raises a ValueError, naming the tensor, for weights that training could not begin with.

    Args:
        folder (Path): Model folder: safetensors or ``pytorch_model.bin``, in one file or in shards.
        config (PretrainedConfig): Its config, as :func:`~llmshearing.models.source_config.read_config` gives it.
        values (bool): Look for NaN and infinity as well, one tensor at a time. This reads all weights once: on a
            local disk about a second per gigabyte, and memory for the largest tensor. Default: ``True``.
    """
    folder = Path(folder)
    refuse_quantised(str(folder), config)
    shapes = parameter_shapes(config, in_files=True)
    stored = read_weights(folder, config, shapes)
    for name, tensor in stored.items():
        if tensor.dtype.is_complex or tensor.dtype == torch.bool:
            raise ValueError(
                f'{folder}: {name} is stored as {str(tensor.dtype).removeprefix("torch.")}, and weights are real '
                'numbers such as float32 or bfloat16; save the model again, or take another copy.'
            )
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise ValueError(
                f'{folder}: {name} is stored as {str(tensor.dtype).removeprefix("torch.")}: quantised weights can '
                'neither be cut nor trained; use the model that they were made from.'
            )
    try:
        shapes.check(str(folder), stored)
    except ValueError as error:
        wrapper = next((prefix for prefix in WRAPPERS if any(name.startswith(prefix) for name in stored)), None)
        if wrapper is not None:
            raise ValueError(
                f'{folder}: its tensors are called {wrapper}..., as a wrapper around the model calls them, and '
                'transformers would fill the model at random; save the model that is inside the wrapper once more.'
            ) from None
        adapter = next((name for name in stored if any(part in name for part in ADAPTERS)), None)
        if adapter is not None:
            raise ValueError(
                f'{folder}: {adapter} is of an adapter (LoRA) that lies among the weights; merge it into them first, '
                'with peft: model.merge_and_unload().save_pretrained(OTHER).'
            ) from None
        is_whole = all(name in stored and stored[name].shape == shape for name, shape in shapes.needed.items())
        raise ValueError(f'{error}\n{LEFT_OVER if is_whole else MISSING}') from None
    _check_tied_head(folder, stored, shapes)
    if values:
        never_zero = _never_zero(config)
        for name, tensor in stored.items():
            held = tensor.read()
            if not torch.isfinite(held).all():
                raise ValueError(f'{folder}: {name} holds NaN or infinity; copy the model again, or take another one.')
            if name in never_zero and not held.any():
                raise ValueError(
                    f'{folder}: {name} holds nothing but zeros, as a file does whose download was cut off; copy the '
                    'model again, or take another one.'
                )


def load_source(where: str, name: str, config: PretrainedConfig, **settings: Any) -> Any:
    """The causal language model of a folder or a name, as its config and its files have it.

    transformers by itself leaves out layers that a config does not count, and a head that it says is tied.

    Args:
        where (str): Names the model, for messages.
        name (str): Folder, or name on the hub.
        config (PretrainedConfig): As :func:`~llmshearing.models.source_config.read_config` gives it.
        settings (Any): Of ``from_pretrained``.

    Raises:
        ValueError: As :func:`check_weights`.
    """
    refuse_quantised(where, config)
    if (folder := whole_folder(name)) is not None:
        check_weights(folder, config, values=False)
    return load_complete_causal_lm(where, name, config=config, **settings)


def _never_zero(config: PretrainedConfig) -> frozenset[str]:
    """Weights that a model of a family's table would compute nothing without, by their names in files.

    What adds to the stream may be zero, in layers that were put in to do nothing yet; so may biases, and gains that are
    stored as their distance from a number.
    """
    family = find_table(config)
    if family is None:
        return frozenset()
    modules = list(family.for_layers_of(config).modules(config.num_hidden_layers))
    distances = any(isinstance(role, Norm) and role.offset for _, role, _ in modules)  # those of queries too
    kinds = Linear if distances else (Linear, Norm)
    paths = [path for path, role, _ in modules if isinstance(role, kinds) and not role.writes]
    return frozenset(stored_name(config, f'{path}.weight') for path in paths)


def read_weights(
    folder: Path, config: PretrainedConfig, shapes: ParameterShapes | None = None
) -> dict[str, StoredTensor]:
    """The tensors of a model folder, each still in its file, without the buffers that are computed now.

    Args:
        folder (Path): As in :func:`check_weights`, which says whether they fit the config.
        config (PretrainedConfig): Its config.
        shapes (ParameterShapes | None): What it calls for in files. Default: found anew.

    Returns:
        dict[str, StoredTensor]: By the names of a whole model in files.
    """
    shapes = shapes or parameter_shapes(config, in_files=True)
    stored = find_tensors(Path(folder))
    prefix = _missing_prefix(stored, shapes)
    ignored = [re.compile(pattern) for pattern in (*shapes.ignored, *OLD_BUFFERS)]
    named = {
        f'{prefix}{name}': tensor
        for name, tensor in stored.items()
        if f'{prefix}{name}' in shapes.shapes or not any(pattern.search(name) for pattern in ignored)
    }
    return name_as_expected(config, named)


def name_as_expected(config: PretrainedConfig, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
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
        place = family.layer_path(layer)
        name, others = f'{place}.{inside}', [f'{place}.{piece}' for piece in pieces]
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
