"""The teacher of a distillation: checked before its weights are read, frozen, and sharded where the student is.

Sharding is FSDP2's own ``fully_shard`` through Composer's functions, with the student's device mesh: rank 0 reads the
weights, the others receive their shards, so that a node needs the teacher once in host memory however many ranks it
runs. Without FSDP every rank holds a whole copy.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from composer.core import Precision, State
from composer.distributed.fsdp2 import prepare_fully_shard, sync_module_states
from composer.models import HuggingFaceModel
from composer.utils import FSDP2Config, FSDPConfig, dist
from llmfoundry.models.hf.hf_fsdp import hf_get_causal_base_model, hf_get_hidden_layers
from torch.distributed.fsdp.wrap import CustomPolicy
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmshearing.checkpoints.source import load_source
from llmshearing.compat.transformers import attention_of, dtype_argument, read_tokenizer
from llmshearing.models.on_meta import parameters_on_meta
from llmshearing.models.source_config import read_config
from llmshearing.utils.paths import names_a_path

__all__ = ['build_teacher', 'check_copy_fits', 'missing_folder']

log = logging.getLogger(__name__)


def missing_folder(name: str) -> bool:
    """Whether a name that can only be that of a folder has no model in it."""
    folder = Path(name).expanduser()
    return (names_a_path(name) or folder.is_dir()) and not (folder / 'config.json').is_file()


def _check_vocabulary(
    teacher: PretrainedConfig,
    student: PretrainedConfig,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase | None,
    shared_vocab_size: int | None,
) -> int:
    """How many tokens, from id 0 on, take part in the loss.

    Args:
        teacher (PretrainedConfig): Of the teacher.
        student (PretrainedConfig): Of the student.
        teacher_tokenizer (PreTrainedTokenizerBase): Of the teacher.
        student_tokenizer (PreTrainedTokenizerBase | None): Of the run; None where it has none, which leaves the numbers
            to compare.
        shared_vocab_size (int | None): What the user says they share; None: everything.

    Raises:
        ValueError: If the vocabularies differ in size and ``shared_vocab_size`` is not given, if it is larger than
            either, or if an id below it stands for different tokens.
    """
    smaller = min(teacher.vocab_size, student.vocab_size)
    if shared_vocab_size is None and teacher.vocab_size != student.vocab_size:
        raise ValueError(
            f'distillation: the teacher predicts {teacher.vocab_size} tokens, the student {student.vocab_size}; '
            "logits of different vocabularies cannot be compared. Choose a teacher with the student's vocabulary; "
            'where they only differ in padding at the end, set shared_vocab_size to the tokens that both really use '
            f'(its tokenizer has {len(teacher_tokenizer)}).'
        )
    if shared_vocab_size is not None and not 1 < shared_vocab_size <= smaller:
        raise ValueError(
            f'distillation: shared_vocab_size={shared_vocab_size} is not possible; it must be from 2 to {smaller}.'
        )
    shared = shared_vocab_size or smaller
    if student_tokenizer is not None:
        ours, theirs = (_tokens_by_id(tokenizer, shared) for tokenizer in (student_tokenizer, teacher_tokenizer))
        different = [index for index in sorted({*ours, *theirs}) if ours.get(index) != theirs.get(index)]
        if different:
            first = different[0]
            raise ValueError(
                f'distillation: {len(different)} of the first {shared} token ids stand for different tokens, the '
                f'first is {first}: {theirs.get(first)!r} to the teacher, {ours.get(first)!r} to the student. Choose '
                'a teacher with the same tokenizer.'
            )
    return shared


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items() if index < size}


def check_copy_fits(needed: int, free: int) -> None:
    """Raises a ValueError where a whole copy of the teacher needs more bytes than are free on the device."""
    if needed > free:
        raise ValueError(
            f'distillation: without FSDP every rank holds the whole teacher, {needed / 1e9:.1f} GB, and this device '
            f'has {free / 1e9:.1f} GB free. Set fsdp_config, which shards the teacher with the student, or choose a '
            'smaller teacher.'
        )


def build_teacher(
    name: str, student: HuggingFaceModel, state: State, shared_vocab_size: int | None
) -> tuple[PreTrainedModel, int]:
    """Reads and places the teacher of a run, after checking that it fits the student.

    Args:
        name (str): Hugging Face folder or name.
        student (HuggingFaceModel): The model that trains.
        state (State): Of the run at ``Event.INIT``: precision, device, FSDP settings.
        shared_vocab_size (int | None): See :func:`_check_vocabulary`.

    Returns:
        tuple[PreTrainedModel, int]: The frozen model on its device, in evaluation mode, and how many tokens they share.

    Raises:
        ValueError: For a vocabulary that differs, FSDP1, a teacher that does not fit or whose weights are not complete.
    """
    sharding = state.fsdp_config
    if isinstance(sharding, FSDPConfig):
        raise ValueError('distillation shards its teacher with FSDP2 and is not built for FSDP1; set FSDP_VERSION=2.')
    config = read_config(name)
    shared = _check_vocabulary(config, student.config, _tokenizer(name), student.tokenizer, shared_vocab_size)
    settings = dict(
        **dtype_argument(torch.bfloat16 if state.precision == Precision.AMP_BF16 else torch.float32),
        attn_implementation=attention_of(student.config),
    )
    if sharding is not None:
        return _read_sharded(name, config, state, sharding, settings), shared
    teacher = _read(name, config, settings)
    if state.device.name == 'gpu':
        check_copy_fits(sum(p.numel() * p.element_size() for p in teacher.parameters()), torch.cuda.mem_get_info()[0])
    return state.device.module_to_device(teacher), shared


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return read_tokenizer(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"distillation: {name} has no tokenizer, so whether its token ids mean the same as the student's cannot "
            'be checked; save its tokenizer there.'
        ) from error


def _read(name: str, config: PretrainedConfig, settings: dict[str, Any]) -> PreTrainedModel:
    return _freeze(load_source(f'distillation: {name}', name, config, **settings))


def _read_sharded(
    name: str, config: PretrainedConfig, state: State, sharding: FSDP2Config, settings: dict[str, Any]
) -> PreTrainedModel:
    weights = {}
    if dist.get_global_rank() == 0:
        teacher = _read(name, config, settings)
        weights = teacher.state_dict()
    else:
        # Buffers stay real: RoPE keeps a second reference to its frequencies, which nothing would bring back from meta.
        with parameters_on_meta():
            teacher = _freeze(AutoModelForCausalLM.from_config(config, trust_remote_code=False, **settings))
        teacher.tie_weights()  # registering a parameter as empty makes a new one
    block = type(hf_get_hidden_layers(hf_get_causal_base_model(teacher))[0])
    policy = CustomPolicy(lambda module: module is teacher or isinstance(module, block))
    prepare_fully_shard(teacher, sharding, state.precision, policy)
    sync_module_states(teacher, weights)
    return teacher


def _freeze(model: PreTrainedModel) -> PreTrainedModel:
    model.config.use_cache = False
    return model.requires_grad_(False).eval()
