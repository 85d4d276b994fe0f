"""The source model, as far as its config and the names and numbers in its files tell, before it is built."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmshearing.models.shapes import MIXTURE_FIELDS, TARGET_KEYS
from llmshearing.utils.checks import is_integer
from llmshearing.utils.files import load_json
from llmshearing.utils.paths import expand_path, names_a_path, refuse_lookalikes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['check_folder', 'check_source', 'read_config_at', 'read_source', 'read_to_plan', 'refuse_unusable']

log = logging.getLogger(__name__)

WHERE = 'model.pretrained_model_name_or_path'


def check_source(config: Mapping[str, Any]) -> PretrainedConfig | None:
    """Checks the model section, whose keys have been checked, against the folder that it names.

    Returns:
        PretrainedConfig | None: The source's config with the run's overrides; None for a model of llm-foundry's own.

    Raises:
        ValueError: If the folder is not there, or holds what cannot be trained as it is.
    """
    model = config['model']
    name = model.get('pretrained_model_name_or_path')
    if name is None:
        return None
    if not name:
        raise ValueError(f'{WHERE}: expected a Hugging Face folder or name, got {name!r}.')
    check_folder(WHERE, name, ('config.json',))
    source = read_config_at(WHERE, name, model.get('trust_remote_code', False))
    refuse_unusable(f'{WHERE}: {name}', source)
    if model['name'] == 'sheared_causal_lm':
        from llmshearing.models.families import family_of

        adapter = next((key for key in ('peft_config', 'pretrained_lora_id_or_path') if model.get(key)), None)
        if adapter is not None:
            raise ValueError(
                f'model.{adapter}: an adapter (LoRA) is not cut with its model; remove it here, and tune what is '
                'exported, with model.name: hf_causal_lm.'
            )
        family_of(source)  # refuses other model types, whose configs may have no such shape
    _check_weights(model, source)
    if model['name'] != 'sheared_causal_lm':
        from llmshearing.models.source_config import check_stock_reading

        check_stock_reading(name, source)
    source = _with_overrides(source, model)
    _check_computation(model, source, config['max_seq_len'])
    _tell_positions(source, config['max_seq_len'])
    return source


def read_config_at(where: str, name: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a folder or of a name of the hub.

    Raises:
        ValueError: If it cannot be read, with the place ``where``.
    """
    from llmshearing.models import source_config

    try:
        return source_config.read_config(name, trust_remote_code)
    except ValueError as error:
        raise ValueError(f'{where}: {name}: {error}') from error
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{where}: the config of {name} cannot be read ({error}).') from error


def read_source(source: str) -> PretrainedConfig:
    """The config of a model folder or of a config.json alone, of a model that can be pruned as it is.

    Raises:
        ValueError: If there is none, or as :func:`refuse_unusable`.
    """
    path, config = _config_at(source)
    refuse_unusable(str(path), config)
    return config


def read_to_plan(source: str) -> tuple[PretrainedConfig, list[str]]:
    """The config of what can be planned, which needs no weights, and what has to be done before it is a source.

    Of a multimodal model that is the text part; of a quantised one the model with plain weights.

    Raises:
        ValueError: If there is none, or no text part that is supported.
    """
    from llmshearing.models.source_config import refuse_quantised

    path, config = _config_at(source)
    notes = []
    try:
        refuse_quantised(str(path), config)
    except ValueError as error:
        notes.append(str(error))
    text = _text_part(str(path), config)
    if text is not None:
        notes.append(_only_text(str(path), config, text))
    planned = config if text is None else text
    vars(planned).pop('quantization_config', None)
    return planned, notes


def _config_at(source: str) -> tuple[Path, PretrainedConfig]:
    """A config and its file."""
    from llmshearing.models import source_config

    place = Path(expand_path('SOURCE', source))
    path = place / 'config.json' if place.is_dir() else place
    if not path.is_file():
        refuse_lookalikes(source, place)
        raise ValueError(
            f'{source}: no model folder with a config.json and no such file; download the config first, nothing is '
            'fetched here'
        )
    content = load_json(path)
    if not isinstance(content.get('model_type'), str):
        raise ValueError(f'{path} is no Hugging Face config: its model_type is {content.get("model_type")!r}')
    for key in ('vocab_size', 'max_position_embeddings', *TARGET_KEYS):
        value = content.get(key)
        least = 0 if key in MIXTURE_FIELDS else 1
        if value is not None and (not is_integer(value) or value < least):
            raise ValueError(f'{path}: {key} must be a whole number of {least} or more, got {value!r}')
    try:
        return path, source_config.read_config(path)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} is no Hugging Face config: {error}') from error


def refuse_unusable(where: str, config: PretrainedConfig) -> None:
    """Refuses sources whose weights are no plain decoder's, with the way to get one.

    Raises:
        ValueError: For quantised weights and multimodal models.
    """
    from llmshearing.models.source_config import refuse_quantised

    refuse_quantised(where, config)
    text = _text_part(where, config)
    if text is not None:
        raise ValueError(_only_text(where, config, text))


def _text_part(where: str, config: PretrainedConfig) -> PretrainedConfig | None:
    """Config of a multimodal model's text part; None of any other model.

    Raises:
        ValueError: For a text part that is not supported.
    """
    from llmshearing.models.families import find_table

    text = getattr(config, 'text_config', None)
    if text is None or text.model_type == config.model_type:
        return None
    if find_table(text) is None:
        raise ValueError(
            f'{where} is a multimodal model ({config.model_type}), and its text part, a {text.model_type}, is not '
            'supported.'
        )
    return text


def _only_text(where: str, config: PretrainedConfig, text: PretrainedConfig) -> str:
    return (
        f'{where} is a multimodal model ({config.model_type}): only its text part (text_config, a {text.model_type}) '
        'can be planned, pruned and trained. `llmshearing text-part SOURCE --output FOLDER` writes that part as a '
        'model of its own.'
    )


def check_folder(where: str, name: str, files: tuple[str, ...]) -> None:
    """Refuses a path that is no folder with one of ``files``; a name of a hub passes."""
    folder = Path(name)
    if (names_a_path(name) or folder.is_dir()) and not any((folder / file).is_file() for file in files):
        refuse_lookalikes(f'{where}: {name}', folder)
        raise ValueError(f'{where}: {name} is no Hugging Face model folder (no {" or ".join(files)} there).')


def _check_weights(model: Mapping[str, Any], source: PretrainedConfig, values: bool = True) -> None:
    """Every tensor is there, fits the config and holds numbers; the numbers are looked at by one process of a node."""
    from llmshearing.checkpoints.source import check_weights
    from llmshearing.checkpoints.weight_files import whole_folder

    folder = whole_folder(model['pretrained_model_name_or_path']) if model.get('pretrained', True) else None
    if folder is not None:
        check_weights(folder, source, values=values and os.environ.get('LOCAL_RANK', '0') == '0')


def _check_computation(model: Mapping[str, Any], source: PretrainedConfig, max_seq_len: int) -> None:
    """What the config asks for is what the run computes."""
    from llmshearing.compat.transformers import attention_implementation
    from llmshearing.models.source_config import check_attention

    attention = model.get('attn_implementation')
    if model.get('use_flash_attention_2'):
        attention = 'flash_attention_2'
    if model['name'] == 'sheared_causal_lm':  # which takes one that soft-caps by itself
        attention = attention_implementation(source, attention or 'sdpa')
    check_attention(source, attention or 'eager', max_seq_len)


def _with_overrides(source: PretrainedConfig, model: Mapping[str, Any]) -> PretrainedConfig:
    """The config as llm-foundry would change it; refuses changes that the source's weights do not fit."""
    overrides = model.get('config_overrides') or {}
    if not overrides:
        return source
    from llmfoundry.utils.config_utils import set_config_overrides

    from llmshearing.checkpoints.parameter_shapes import parameter_shapes
    from llmshearing.models.config_keys import number_out_of_range

    for key, value in overrides.items():
        _check_override(source, key, value)
    changed = copy.deepcopy(source)
    set_config_overrides(changed, dict(overrides))
    wrong = number_out_of_range(changed.to_dict())
    if wrong is not None:
        raise ValueError(f'model.config_overrides: {wrong}; correct or remove it.')
    try:
        shapes = parameter_shapes(changed).shapes
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        cause = error.__cause__ or error  # the error itself would name the config.json
        raise ValueError(
            f'model.config_overrides: no model can be built with {dict(overrides)} ({type(cause).__name__}: {cause}); '
            'correct or remove them.'
        ) from error
    differing = dict(shapes.items() ^ parameter_shapes(source).shapes.items()) if model.get('pretrained', True) else {}
    if differing:
        raise ValueError(
            f"model.config_overrides: {dict(overrides)} do not fit the source's weights ({next(iter(differing))} would "
            'have another shape). Sizes are changed by pruning (algorithms.targeted_pruning.target); remove them here.'
        )
    if changed.tie_word_embeddings != source.tie_word_embeddings:
        _check_override_of_head(model, changed)
    return changed


def _check_override_of_head(model: Mapping[str, Any], changed: PretrainedConfig) -> None:
    """A head that is to be the embedding is that in the files; one that is to be its own is there."""
    try:
        _check_weights(model, changed, values=False)
    except ValueError as error:
        reason = "the head of the source's weights is not the embedding"
        if not changed.tie_word_embeddings:
            reason = "the source's weights hold no head of its own, which would begin at random"
        raise ValueError(
            f'model.config_overrides.tie_word_embeddings: {changed.tie_word_embeddings}, but {reason}; remove it.'
        ) from error


def _check_override(source: PretrainedConfig, key: str, value: Any) -> None:
    """Refuses an override that llm-foundry does not take, with the way to write what is meant."""
    from llmshearing.compat.configs import OF_A_FORWARD_PASS
    from llmshearing.compat.rotary import rotary_spelling

    where, own = f'model.config_overrides.{key}', getattr(source, key, None)
    if key in OF_A_FORWARD_PASS:
        raise ValueError(f'{where}: a run decides this itself; remove it.')
    is_wider = isinstance(own, float) and is_integer(value)
    if isinstance(own, (int, float)) and type(own) is not type(value) and not is_wider:
        raise ValueError(f'{where}: expected {type(own).__name__}, as in the source ({own!r}), got {value!r}.')
    if isinstance(own, Mapping) and not isinstance(value, Mapping):
        raise ValueError(f'{where}: expected keys and values, as in the source ({dict(own)}), got {value!r}.')
    if _takes(source, key, value):
        return
    spelled = rotary_spelling(source, key, value)
    if spelled is None and own is None:
        raise ValueError(f'model.config_overrides: {key!r} is no key of the config of a {source.model_type}.')
    if spelled is not None and all(_takes(source, *item) for item in spelled.items()):
        raise ValueError(f'{where}: the installed transformers has this elsewhere; write config_overrides: {spelled}.')
    raise ValueError(
        f'{where}: llm-foundry changes entries of a mapping and adds none, so {value} is not possible here; write '
        f"{spelled or {key: value}} into a copy of the source's config.json, in the place of what it says there."
    )


def _takes(source: PretrainedConfig, key: str, value: Any) -> bool:
    """Whether llm-foundry takes an override; of a mapping it changes entries and adds none."""
    own = getattr(source, key, None)
    return hasattr(source, key) and not (isinstance(own, Mapping) and set(value) - set(own))


def _tell_positions(source: PretrainedConfig, max_seq_len: int) -> None:
    longest = getattr(source, 'max_position_embeddings', None)
    if isinstance(longest, int) and longest < max_seq_len:
        log.warning(
            'max_seq_len: %d is more than the %d positions that the source was trained for (max_position_embeddings); '
            'beyond them its losses are high and its masks learn from noise. Prepare shorter sequences.',
            max_seq_len,
            longest,
        )
