"""The tokenizer's files, as Composer keeps them in a checkpoint and as they are written into an exported folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmshearing.compat.tokenizers import GENERAL_CLASS, OF_THE_HUB, opens_as_general, same_ids, save_tokenizer
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.models.source_files import TEMPLATE_FOLDER
from llmshearing.utils.files import dump_json, load_json
from llmshearing.utils.paths import plain_name

__all__ = [
    'check_same_ids',
    'make_portable',
    'name_general_class',
    'read_named_tokenizer',
    'write_tokenizer',
    'write_tokenizer_files',
]

CONFIG_NAME = 'tokenizer_config.json'
GENERAL_NAMES = (GENERAL_CLASS, 'PreTrainedTokenizer', 'TokenizersBackend')  # as transformers 4 saves it, and 5
OF_THE_CLASS = ('model_input_names', 'padding_side', 'clean_up_tokenization_spaces')  # where settings do not say
# What leads to code, and what transformers 5 notes of how it came to a tokenizer.
NOT_FOR_OTHERS = ('auto_map', 'backend', 'is_local', *OF_THE_HUB)
AS_THEY_ARE = ('special_tokens_map.json', 'chat_template.jinja', 'chat_template.json')


def write_tokenizer(
    tokenizer: PreTrainedTokenizerBase | Mapping[str, Mapping[str, Any]], folder: Path, source: Mapping[str, str]
) -> None:
    """Writes a tokenizer so that either generation of transformers opens it, and opens it here.

    Args:
        tokenizer (PreTrainedTokenizerBase | Mapping[str, Mapping[str, Any]]): From memory, or as Composer keeps it.
        folder (Path): Where to write it.
        source (Mapping[str, str]): See :func:`write_tokenizer_files`; not used for one from memory.

    Raises:
        ValueError: If what was written does not open.
    """
    if isinstance(tokenizer, Mapping):
        write_tokenizer_files(tokenizer, folder, source)
    else:
        # transformers 5 puts named templates into files of their own, which version 4 does not read
        inside: dict[str, Any] = {'save_jinja_files': False} if isinstance(tokenizer.chat_template, dict) else {}
        save_tokenizer(tokenizer, folder, **inside)
        make_portable(folder)
    try:
        opened = read_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f'the written tokenizer does not open ({error}); give another one: --tokenizer.') from error
    name_general_class(folder, opened)


def name_general_class(folder: Path, opened: PreTrainedTokenizerBase) -> None:
    """Has a folder's tokenizer.json opened as it is by anyone, where the class of its settings might not do so.

    What a class does besides is put into words that the general one reads. Under transformers 4 every class opens the
    file as it is; which of them version 5 builds anew is not known there, so all are named anew.

    Args:
        folder (Path): With the files of a tokenizer.
        opened (PreTrainedTokenizerBase): The same one, as :func:`~llmshearing.compat.transformers.read_tokenizer`
            opened it: of the general class where the named one makes other ids.
    """
    settings = folder / CONFIG_NAME
    if not (settings.is_file() and (folder / 'tokenizer.json').is_file()):
        return
    content = load_json(settings)
    if content.get('tokenizer_class') in GENERAL_NAMES or not opens_as_general(folder, opened):
        return
    own = {name: getattr(opened, name) for name in OF_THE_CLASS}
    dump_json(settings, {**own, **content, 'tokenizer_class': GENERAL_CLASS}, ensure_ascii=False)


def read_named_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that a person names with ``--tokenizer``.

    Raises:
        ValueError: If none opens there.
    """
    try:
        return read_tokenizer(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f'--tokenizer {name}: no tokenizer opens there ({str(error).splitlines()[0]}); name a folder that has one.'
        ) from error


def check_same_ids(
    named: PreTrainedTokenizerBase, trained: Mapping[str, Mapping[str, Any]], rows: int, option: str
) -> None:
    """Refuses a tokenizer whose ids are not those that a model was trained on.

    Args:
        named (PreTrainedTokenizerBase): What would be written; it may have more tokens than the model's.
        trained (Mapping[str, Mapping[str, Any]]): The model's, as Composer keeps it; empty where that is not known.
        rows (int): Rows of the embedding.
        option (str): Names it in the message.

    Raises:
        ValueError: Naming a token, or what is too many.
    """
    ids = named.get_vocab()
    largest = max(ids.values(), default=0)
    if largest >= rows:
        raise ValueError(
            f'{option} has ids up to {largest}, and the embedding of this model {rows} rows; name the tokenizer that '
            'it was trained with.'
        )
    if not trained:
        return
    with TemporaryDirectory() as place:
        write_tokenizer_files(trained, Path(place))
        try:
            own = read_tokenizer(place)
        except (OSError, ValueError):  # so another one has to be named
            return
    other = next((token for token, number in own.get_vocab().items() if ids.get(token) != number), None)
    if other is None and same_ids(own, named):
        return
    difference = 'it splits text otherwise' if other is None else f'{other!r} has another id or none in it'
    raise ValueError(
        f'{option} is not the tokenizer that this model was trained with: {difference}. Without --tokenizer the one in '
        'the checkpoint is written.'
    )


def make_portable(folder: Path) -> None:
    """Rewrites a saved tokenizer_config.json so that either generation of transformers opens it; none is no trouble."""
    path = folder / CONFIG_NAME
    if path.is_file() and (content := load_json(path)) != (portable := _portable(content)):
        dump_json(path, portable, ensure_ascii=False)


def write_tokenizer_files(
    files: Mapping[str, Mapping[str, Any]], folder: Path, source: Mapping[str, str] | None = None
) -> None:
    """Writes the tokenizer's files as Composer read them, with the settings of the source's own.

    Args:
        files (Mapping[str, Mapping[str, Any]]): As Composer keeps them: ``file_extension`` and ``content`` by name.
        folder (Path): Where to write them.
        source (Mapping[str, str] | None): Small files of the source
            (:func:`~llmshearing.models.source_files.read_source_files`); a run may have shortened
            ``model_max_length``, for instance.

    Raises:
        ValueError: If one of them is code or of a kind this release does not know.
    """
    source = source or {}
    for name, file in files.items():
        kind, content = file['file_extension'], file['content']
        path = folder / plain_name("the checkpoint's tokenizer", name)
        if kind == '.json':
            if name == CONFIG_NAME:
                content = _portable(json.loads(source[name]) if name in source else content)
            elif name == 'tokenizer.json':
                content = _with_empty_parts(content)
            dump_json(path, content, ensure_ascii=False)
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
    for name, text in source.items():
        inside, _, plain = name.rpartition('/')
        if name in AS_THEY_ARE or inside == TEMPLATE_FOLDER:
            path = folder / inside / plain_name("the checkpoint's tokenizer", plain)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding='utf-8')


def _portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json that either generation of transformers opens, without :data:`NOT_FOR_OTHERS`.

    transformers 5 saves its general class under a name that 4 does not know, and calls more special tokens otherwise.
    """
    settings = {key: value for key, value in settings.items() if key not in NOT_FOR_OTHERS}
    if settings.get('tokenizer_class') == 'TokenizersBackend':
        settings['tokenizer_class'] = GENERAL_CLASS
    if isinstance(settings.get('extra_special_tokens'), list):
        settings['additional_special_tokens'] = settings.pop('extra_special_tokens')
    return settings


def _with_empty_parts(content: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json with the empty mapping that its reader asks for: sharded checkpoints lose such."""
    processor = content.get('post_processor')
    if not isinstance(processor, Mapping):
        return dict(content)
    parts = processor.get('processors')
    if parts:
        return {**content, 'post_processor': {**processor, 'processors': [_with_special(part) for part in parts]}}
    return {**content, 'post_processor': _with_special(processor)}


def _with_special(processor: Mapping[str, Any]) -> dict[str, Any]:
    empty = {'special_tokens': {}} if processor.get('type') == 'TemplateProcessing' else {}
    return {**empty, **processor}
