"""Opens a Composer checkpoint of either stage: config, tokenizer, weights and masks, without naming a shape by hand.

Composer keeps the config and the tokenizer's files of a Hugging Face model in each checkpoint; the pruning algorithm
keeps the shapes and the masks. Weights stay on disk until they are asked for. Every tensor that the config calls for
must be there with its shape, and no other: nothing is ever filled in.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor, load_stored, read_all
from llmshearing.checkpoints.parameter_shapes import ParameterShapes, check_generation, parameter_shapes
from llmshearing.checkpoints.shards import load_stored_shards
from llmshearing.compat.torch import CHECKPOINT_PREFIX
from llmshearing.masks.state import PruningState, find_pruning_state, read_pruning_state
from llmshearing.models.families import find_table
from llmshearing.models.source_config import OF_ANOTHER_PACKAGE, config_from, is_known_type, read_config
from llmshearing.models.source_files import local_folder, read_source_files
from llmshearing.models.stored_names import read_parameter, stored_tensors
from llmshearing.utils.files import load_json

__all__ = ['Checkpoint', 'holds_masks', 'open_checkpoint', 'weight_shapes']

log = logging.getLogger(__name__)

PARTS = ('model', 'algorithms', 'callbacks', 'integrations', 'timestamp')
HEADS = ('lm_head', 'embed_out')
NOTE_SOURCE = ('ExportPruned', 'ModelCard')  # callbacks whose state names the model that the run began with
NOTE_PRUNES = 'ResumeSettings'  # the callback whose settings say whether the run prunes
# Entries of a stored config that lead to code or belong to this process.
NO_SETTINGS = ('_name_or_path', 'auto_map', 'trust_remote_code', 'code_revision', '_attn_implementation_autoset')


@dataclasses.dataclass
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path (Path): Where it is.
        config (PretrainedConfig): Config of the model in it: the source's during pruning.
        tokenizer (Mapping[str, Mapping[str, Any]]): Tokenizer files as Composer keeps them; empty where there is none.
        weights (dict[str, StoredTensor]): Parameters under their Hugging Face names.
        shapes (ParameterShapes): What the config calls for; the weights have been held against it.
        pruning (PruningState | None): Masks, in a checkpoint of the pruning stage.
        batches (int): Batches trained.
        tokens (int): Tokens trained on.
        source (str | None): Name or folder of the source, where the run noted it.
        files (dict[str, str]): Small files of the source
            (:func:`~llmshearing.models.source_files.read_source_files`): of its folder, and what that lacks as the run
            noted it.
    """

    path: Path
    config: PretrainedConfig
    tokenizer: Mapping[str, Mapping[str, Any]]
    weights: dict[str, StoredTensor]
    shapes: ParameterShapes
    pruning: PruningState | None
    batches: int
    tokens: int
    source: str | None
    files: dict[str, str]

    def get(self, name: str) -> Tensor | None:
        """Reads one parameter; None where there is none of that name."""
        stored = self.weights.get(name)
        return None if stored is None else stored.read()


def open_checkpoint(path: Path, source: Path | None = None) -> Checkpoint:
    """Opens a ``.pt`` file or the folder of a sharded checkpoint.

    Args:
        path (Path): File, folder, or a link to one of them such as ``latest-rank0.pt``.
        source (Path | None): Hugging Face folder of the model that the run began with. Default: ``None``, what the run
            noted of it.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If it is no complete Composer checkpoint of a Hugging Face model; names what is wrong.
    """
    path = Path(path)
    state = _stored_state(path, PARTS)
    config, tokenizer = _hugging_face_parts(path, state, source)
    shapes = parameter_shapes(config)
    weights = {_hugging_face_name(name, config): stored for name, stored in state['model'].items()}
    weights = _join_experts(config, weights, shapes)
    check_generation(path, weights, shapes.shapes)
    shapes.check(str(path), weights)
    algorithms = dict(state.get('algorithms') or ())
    pruning, saved = None, find_pruning_state(algorithms)
    if saved is not None:
        pruning = read_pruning_state(read_all(saved), config)
    elif _is_of_pruning(state.get('callbacks') or {}):
        raise ValueError(
            f'{path} is a checkpoint of pruning without its masks (save_ignore_keys): what it holds is the uncut '
            'model. Name another checkpoint of the run; without one, prune anew from the source.'
        )
    elif not {'algorithms', 'timestamp'} & set(state):
        log.warning(
            '%s holds weights only (save_weights_only). If it is from the pruning stage, its masks are not in it, and '
            'what is exported is the uncut model.',
            path,
        )
    timestamp = (state.get('timestamp') or {}).get('Timestamp', {})
    noted, files = _noted_source(pruning, state.get('callbacks') or {})
    noted = noted if source is None else str(source)
    folder = local_folder(noted)
    if source is not None and (source / 'config.json').is_file():
        kind = load_json(source / 'config.json').get('model_type')
        if kind != config.model_type:
            raise ValueError(
                f'--source {source} is a {kind}, and {path} of a {config.model_type}; name the model that its training '
                'began with, or leave --source out.'
            )
    if folder is not None:
        files = {**files, **_files_of(folder, files)}
    return Checkpoint(
        path=path,
        config=config,
        tokenizer=tokenizer,
        weights=weights,
        shapes=shapes,
        pruning=pruning,
        batches=timestamp.get('batch', 0),
        tokens=timestamp.get('token', 0),
        source=noted,
        files=files,
    )


def weight_shapes(path: Path, config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a checkpoint under their Hugging Face names; none of them is read.

    Raises:
        ValueError: As :func:`open_checkpoint`.
    """
    model = _stored_state(path, ('model',))['model']
    return {_hugging_face_name(name, config): stored.shape for name, stored in model.items()}


def _join_experts(
    config: PretrainedConfig, weights: dict[str, StoredTensor], shapes: ParameterShapes
) -> dict[str, StoredTensor]:
    """The weights of a mixture as transformers 5 has them, where transformers 4 had every expert by itself.

    Files hold experts in the way of transformers 4, so what joins those joins these.
    """
    joined = dict(weights)
    for name in [name for name in shapes.shapes if name not in weights]:
        pieces = dict(stored_tensors(config, name, torch.empty(shapes.shapes[name], device='meta')))
        if pieces.keys() <= joined.keys():
            held = {piece: joined.pop(piece) for piece in pieces}
            read = functools.partial(read_parameter, config, name, lambda piece, held=held: held[piece].read())
            joined[name] = StoredTensor(shapes.shapes[name], next(iter(held.values())).dtype, read)
    return joined


def holds_masks(path: Path) -> bool:
    """Whether a checkpoint is of the pruning stage; no tensor is read.

    Raises:
        ValueError: As :func:`open_checkpoint`.
    """
    return find_pruning_state(dict(_stored_state(path, ('algorithms',)).get('algorithms') or ())) is not None


def _stored_state(path: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    """The state that Composer saved; of a folder, these parts."""
    if path.is_dir():
        return load_stored_shards(path, parts)
    content = load_stored(path)
    state = content.get('state') if isinstance(content, dict) else None
    if not isinstance(state, dict) or 'model' not in state:
        raise ValueError(
            f'{path} is no Composer checkpoint (no state -> model in it). Legacy state dicts: `llmshearing import`.'
        )
    return state


def _is_of_pruning(callbacks: Mapping[str, Any]) -> bool:
    """Whether the run noted that it prunes, whatever else is in its checkpoint."""
    return bool(json.loads((callbacks.get(NOTE_PRUNES) or {}).get('settings', '{}')).get('prunes'))


def _noted_source(pruning: PruningState | None, callbacks: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """Name and small files of the source, as the run noted them; older releases noted its name alone."""
    notes = [pruning and pruning.origin, *((callbacks.get(name) or {}).get('source') for name in NOTE_SOURCE)]
    for note in notes:
        if note is not None:
            return (note, {}) if isinstance(note, str) else (note[0], dict(note[1]))
    return None, {}


def _files_of(folder: Path, noted: Mapping[str, str]) -> dict[str, str]:
    """Small files of the source's folder. Generation settings that only its config has do not replace noted ones."""
    name = 'generation_config.json'
    files = read_source_files(str(folder))
    if name in noted and not (folder / name).is_file():
        files.pop(name, None)
    return files


def _hugging_face_parts(
    path: Path, state: dict[str, Any], source: Path | None
) -> tuple[PretrainedConfig, dict[str, Any]]:
    parts = (state.get('integrations') or {}).get('huggingface')
    if parts is not None:
        return _stored_config(path, parts['model']['config']['content']), parts.get('tokenizer') or {}
    if source is None:
        raise ValueError(
            f'{path} carries no Hugging Face config (state -> integrations -> huggingface); '
            'name a folder that has it: --source.'
        )
    return read_config(source), {}


def _stored_config(path: Path, content: Mapping[str, Any]) -> PretrainedConfig:
    """The config in a checkpoint, of a model type that transformers or an installed package knows.

    Composer's own reader would go by the path and the ``trust_remote_code`` that stand in the checkpoint where
    the type is unknown.
    """
    settings = {key: value for key, value in content.items() if key not in NO_SETTINGS}
    if not is_known_type(settings.get('model_type')):
        raise ValueError(
            f'{path} holds a model of type {settings.get("model_type")!r}, which transformers does not know. '
            f'{OF_ANOTHER_PACKAGE}'
        )
    return config_from(settings, name_or_path=str(content.get('_name_or_path', '')))


def _hugging_face_name(name: str, config: PretrainedConfig) -> str:
    """A parameter's name in the model's own memory, whichever generation of transformers the run had."""
    name = name.replace(CHECKPOINT_PREFIX, '').removeprefix('model.')
    family = find_table(config)
    if family is not None and family.head in family.stored_names:
        for head in HEADS:
            if name.startswith(f'{head}.'):
                return f'{family.head}.{name.removeprefix(f"{head}.")}'
    return name
