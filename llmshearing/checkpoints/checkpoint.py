"""Opens a Composer checkpoint of either stage: config, tokenizer, weights and masks, without naming a shape by hand.

Composer keeps the config and the tokenizer's files of a Hugging Face model in each checkpoint; the pruning algorithm
keeps the shapes and the masks. Weights stay on disk until they are asked for. Every tensor that the config calls for
must be there with its shape, and no other: nothing is ever filled in.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor, load_stored, read_all
from llmshearing.checkpoints.shards import load_stored_shards
from llmshearing.masks.state import PruningState, find_pruning_state, read_pruning_state
from llmshearing.utils.paths import plain_name

__all__ = ['Checkpoint', 'check_tensors', 'expected_shapes', 'open_checkpoint', 'write_tokenizer_files']

log = logging.getLogger(__name__)

PARTS = ('model', 'algorithms', 'callbacks', 'integrations', 'timestamp')
LISTED = 12  # names in one message
NOTE_SOURCE = ('ExportPruned', 'ModelCard')  # callbacks whose state names the model that the run began with
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
        pruning (PruningState | None): Masks, in a checkpoint of the pruning stage.
        batches (int): Batches trained.
        tokens (int): Tokens trained on.
        source (str | None): Name or folder of the source, where the run noted it.
    """

    path: Path
    config: PretrainedConfig
    tokenizer: Mapping[str, Mapping[str, Any]]
    weights: dict[str, StoredTensor]
    pruning: PruningState | None
    batches: int
    tokens: int
    source: str | None

    def get(self, name: str) -> Tensor | None:
        """Reads one parameter; None where there is none of that name."""
        stored = self.weights.get(name)
        return None if stored is None else stored.read()


def open_checkpoint(path: Path, source: Path | None = None) -> Checkpoint:
    """Opens a ``.pt`` file or the folder of a sharded checkpoint.

    Args:
        path (Path): File, folder, or a link to one of them such as ``latest-rank0.pt``.
        source (Path | None): Hugging Face folder whose config is used where the checkpoint carries none.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If it is no complete Composer checkpoint of a Hugging Face model; names what is wrong.
    """
    path = Path(path)
    if path.is_dir():
        state = load_stored_shards(path, PARTS)
    else:
        content = load_stored(path)
        state = content.get('state') if isinstance(content, dict) else None
        if not isinstance(state, dict) or 'model' not in state:
            raise ValueError(
                f'{path} is no Composer checkpoint (no state -> model in it). Legacy state dicts: `llmshearing import`.'
            )
    config, tokenizer = _hugging_face_parts(path, state, source)
    weights = {_hugging_face_name(name): stored for name, stored in state['model'].items()}
    check_tensors(
        str(path), {name: stored.shape for name, stored in weights.items()}, expected_shapes(config), tied_names(config)
    )
    algorithms = dict(state.get('algorithms') or ())
    pruning, saved = None, find_pruning_state(algorithms)
    if saved is not None:
        pruning = read_pruning_state(read_all(saved), config)
    elif not {'algorithms', 'timestamp'} & set(state):
        log.warning(
            '%s holds weights only (save_weights_only). If it is from the pruning stage, its masks are not in it, and '
            'what is exported is the uncut model.',
            path,
        )
    timestamp = (state.get('timestamp') or {}).get('Timestamp', {})
    callbacks = state.get('callbacks') or {}
    noted = next((callbacks[name].get('source') for name in NOTE_SOURCE if callbacks.get(name)), None)
    return Checkpoint(
        path,
        config,
        tokenizer,
        weights,
        pruning,
        timestamp.get('batch', 0),
        timestamp.get('token', 0),
        None if source is None and noted is None else str(source or noted),
    )


def expected_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a config's causal language model; no memory is taken."""
    with torch.device('meta'):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def tied_names(config: PretrainedConfig) -> set[str]:
    """Names that may be absent because another tensor stands for them."""
    if not config.tie_word_embeddings:
        return set()
    with torch.device('meta'):
        model = AutoModelForCausalLM.from_config(config)
    return set(model._tied_weights_keys or ())


def check_tensors(
    where: str,
    got: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    optional: Iterable[str] = (),
) -> None:
    """Raises a ValueError that names every missing, extra or mis-shaped tensor.

    Args:
        where (str): What is checked, for the message.
        got (Mapping[str, tuple[int, ...]]): Shapes by name.
        expected (Mapping[str, tuple[int, ...]]): Shapes by name.
        optional (Iterable[str]): Names that may be absent.
    """
    problems = []
    missing = sorted(set(expected) - set(got) - set(optional))
    extra = sorted(set(got) - set(expected))
    shaped = [
        f'{name} is {list(got[name])}, expected {list(expected[name])}'
        for name in expected
        if name in got and got[name] != expected[name]
    ]
    for what, names in (('missing', missing), ('not expected', extra), ('of another shape', shaped)):
        if names:
            more = f', and {len(names) - LISTED} more' if len(names) > LISTED else ''
            problems.append(f'  - {what}: {", ".join(names[:LISTED])}{more}')
    if problems:
        listed = '\n'.join(problems)
        raise ValueError(f'{where}: the tensors do not fit the config:\n{listed}')


def write_tokenizer_files(files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Writes the tokenizer's files as Composer read them.

    Raises:
        ValueError: If one of them is code or of a kind this release does not know.
    """
    for name, file in files.items():
        kind, content = file['file_extension'], file['content']
        path = folder / plain_name("the checkpoint's tokenizer", name)
        if kind == '.json':
            if name.startswith('tokenizer_config'):
                content = {key: value for key, value in content.items() if key != 'auto_map'}  # leads to code
            path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + '\n', encoding='utf-8')
        elif kind == '.txt':
            path.write_text('\n'.join(content), encoding='utf-8')
        elif kind == '.jinja':
            path.write_text(content, encoding='utf-8')
        elif kind == '.model':
            path.write_bytes(content)
        else:
            raise ValueError(
                f"the checkpoint's tokenizer has a file {name!r}, which is not written (code, or unknown); "
                'give --tokenizer FOLDER.'
            )


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
    return AutoConfig.from_pretrained(source, trust_remote_code=False), {}


def _stored_config(path: Path, content: Mapping[str, Any]) -> PretrainedConfig:
    """The config in a checkpoint, of a model type that transformers itself knows.

    Composer's own reader would go by the path and the ``trust_remote_code`` that stand in the checkpoint where
    the type is unknown.
    """
    settings = {key: value for key, value in content.items() if key not in NO_SETTINGS}
    if settings.get('model_type') not in CONFIG_MAPPING:
        raise ValueError(
            f'{path} holds a model of type {settings.get("model_type")!r}, which transformers does not know.'
        )
    if isinstance(settings.get('id2label'), dict):  # JSON made strings of the numbers
        settings['id2label'] = {int(number): label for number, label in settings['id2label'].items()}
    config = AutoConfig.for_model(**settings)
    config._name_or_path = str(content.get('_name_or_path', ''))
    return config


def _hugging_face_name(name: str) -> str:
    return name.replace(_CHECKPOINT_PREFIX, '').removeprefix('model.')
