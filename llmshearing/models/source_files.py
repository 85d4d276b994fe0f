"""What an export needs of the source's folder besides config, weights and vocabulary, as texts for a checkpoint.

A checkpoint is often exported where the source is not: on another machine, or when the folder is gone. The generation
settings, the tokenizer's settings (which a run may have changed for its own sequences), the chat template and the
licence are a few kilobytes; a run notes them when it begins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llmshearing.utils.files import load_json
from llmshearing.utils.paths import names_a_path

__all__ = [
    'LICENCE_FILES',
    'TAG',
    'TEMPLATE_FOLDER',
    'derived_from',
    'find_file',
    'local_folder',
    'public_name',
    'read_source_files',
    'source_licence',
]

TAG = 'llmshearing'
LICENCE_KEYS = ('license', 'license_name', 'license_link', 'language')
NOTHING = ('', '~', 'null')  # in YAML
LICENCE_FILES = ('LICENSE', 'LICENCE', 'LICENSE.txt', 'LICENSE.md', 'USE_POLICY.md', 'NOTICE', 'Notice.txt')
MODEL_FILES = ('README.md', 'generation_config.json', *LICENCE_FILES)
# The second names special tokens that the first may be without; transformers 5 reads it and writes it no more.
TOKENIZER_FILES = ('tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja', 'chat_template.json')
TEMPLATE_FOLDER = 'additional_chat_templates'  # beside those, one file for each template that has a name
OF_A_FORWARD_PASS = ('_', 'output_', 'return_dict', 'transformers_version', 'use_cache')
LARGEST = 4 * 2**20  # bytes; a tokenizer_config.json with thousands of added tokens has one


def read_source_files(model: str | None, tokenizer: str | None = None) -> dict[str, str]:
    """The small text files of a model and of its tokenizer, by name; of a README its front matter alone.

    Args:
        model (str | None): Folder, or name of a hub's model that this machine has in its cache.
        tokenizer (str | None): The same of the tokenizer. Default: ``None``, the model's.

    Raises:
        ValueError: If generation settings or front matter cannot be read, which an export would need at its end.
    """
    files = {}
    tokenizer = tokenizer or model
    for where, names in ((model, MODEL_FILES), (tokenizer, (*TOKENIZER_FILES, *_named_templates(tokenizer)))):
        for name in names:
            path = find_file(where, name) if where else None
            if path is not None and path.stat().st_size <= LARGEST:
                files[name] = _read_text(path)
    if 'README.md' in files:
        files['README.md'] = _front_matter(files['README.md'])
        _card(files)
    config = find_file(model, 'config.json') if model else None
    if 'generation_config.json' not in files and config is not None and (settings := _generation_settings(config)):
        files['generation_config.json'] = json.dumps(settings)
    if 'generation_config.json' in files:
        _check_generation(files['generation_config.json'])
    return files


def source_licence(files: Mapping[str, str]) -> dict[str, Any]:
    """Licence entries of the front matter of a source's ``README.md``; empty where there are none.

    Raises:
        ValueError: If the front matter is not YAML.
    """
    head = _card(files)
    return {key: head[key] for key in LICENCE_KEYS if head.get(key, '') not in NOTHING}


def derived_from(files: Mapping[str, str]) -> str | None:
    """The source that a card of ours names; None where there is no such card.

    Raises:
        ValueError: If the front matter is not YAML.
    """
    head = _card(files)
    tags, source = head.get('tags'), head.get('base_model')
    return source if isinstance(tags, list) and TAG in tags and isinstance(source, str) else None


def find_file(where: str, name: str) -> Path | None:
    """A file of a model's folder, or of the hub's cache of it; None where it is not on this machine."""
    folder = Path(where)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(where, name)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def local_folder(source: str | None) -> Path | None:
    """The source's folder where it is on this machine."""
    return Path(source) if source and Path(source).is_dir() else None


def public_name(source: str | None) -> str | None:
    """The source's name without the folders it happens to be in; a hub name stays whole."""
    if source is None:
        return None
    return Path(source).name if names_a_path(source) or Path(source).is_dir() else source


def _named_templates(where: str | None) -> list[str]:
    settings = find_file(where, 'tokenizer_config.json') if where else None
    paths = settings.parent.glob(f'{TEMPLATE_FOLDER}/*.jinja') if settings else ()
    return sorted(f'{TEMPLATE_FOLDER}/{path.name}' for path in paths)


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode('utf-8')
    except UnicodeDecodeError:
        return content.decode('latin-1')  # as older licences are


def _generation_settings(config: Path) -> dict[str, Any]:
    """Those in a config.json, where transformers looks for them if there is no file of their own."""
    from transformers import GenerationConfig

    names = {name for name in GenerationConfig().to_dict() if not name.startswith(OF_A_FORWARD_PASS)}
    content = load_json(config)
    return {name: value for name, value in content.items() if name in names and value is not None}


def _check_generation(text: str) -> None:
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(json.loads(text))
    except Exception as error:  # settings of every kind are read there
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the source's generation_config.json cannot be read ({reason}); mend or remove it."
        ) from error


def _front_matter(text: str) -> str:
    """The part between the first two lines of ``---``, those included; empty where there is none."""
    text = text.removeprefix('\ufeff').replace('\r\n', '\n')  # as Windows writes it
    if not text.startswith('---\n') or '\n---' not in text[4:]:
        return ''
    return text[: text.index('\n---', 4) + 4] + '\n'


def _card(files: Mapping[str, str]) -> dict[str, Any]:
    head = files.get('README.md', '').removeprefix('---\n').removesuffix('\n---\n')
    try:
        content = yaml.load(head, Loader=yaml.BaseLoader)  # all strings: the language `no` is no boolean
    except yaml.YAMLError as error:
        raise ValueError(
            f"the front matter of the source's README.md, between the first two lines of ---, is not YAML: {error}"
        ) from error
    return content if isinstance(content, dict) else {}
