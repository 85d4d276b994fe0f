"""The tokenizer of a run: it opens, and makes the ids that the source was trained on.

Another one of the same size trains without an error, on nonsense, and is exported beside the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.compat.transformers import read_tokenizer
from llmshearing.config.source import check_folder, read_config_at
from llmshearing.data.fingerprint import describe_tokenizer, tokenizer_difference, vocabulary_size

__all__ = ['TOKENIZER_FILES', 'check_rows', 'check_same_tokenizer', 'open_tokenizer']

log = logging.getLogger(__name__)

# A folder with a tokenizer has one of these.
TOKENIZER_FILES = ('tokenizer_config.json', 'tokenizer.json', 'tokenizer.model', 'vocab.json')


def open_tokenizer(section: Mapping[str, Any]) -> Any:
    """The tokenizer that a run names; ``None`` for one of those that llm-foundry has itself.

    Raises:
        ValueError: If none opens there; some errors of the libraries do not name it.
    """
    from llmfoundry import registry

    name = section['name']
    if name in registry.tokenizers:
        return None
    check_folder('tokenizer.name', name, TOKENIZER_FILES)
    try:
        return read_tokenizer(name, **(section.get('kwargs') or {}))
    except (OSError, ValueError) as error:
        if (Path(name) / 'config.json').is_file():  # by which transformers opens what lies beside it
            read_config_at('tokenizer.name', name)
        raise ValueError(
            f'tokenizer.name: no tokenizer of {name!r} can be read ({" ".join(str(error).split())}); name a folder '
            'that has one, or a model of the Hugging Face Hub that this machine can reach.'
        ) from error


def check_same_tokenizer(tokenizer: Any, name: str, model: Mapping[str, Any]) -> None:
    """Compares a run's tokenizer with the one in the source's folder; either may have more tokens at its end.

    Args:
        tokenizer (Any): From :func:`open_tokenizer`.
        name (str): What the run calls it.
        model (Mapping[str, Any]): The run's section; without pretrained weights any tokenizer will do.

    Raises:
        ValueError: If they make other ids, with the first difference.
    """
    source = model.get('pretrained_model_name_or_path')
    if source is None or not model.get('pretrained', True) or Path(source).resolve() == Path(name).resolve():
        return
    try:
        own = read_tokenizer(source, trust_remote_code=model.get('trust_remote_code', False))
    except (OSError, ValueError):  # a source without one
        log.warning('%s has no tokenizer that could be compared with tokenizer.name: %s.', source, name)
        return
    pairs = [(own, source), (tokenizer, name)]
    (smaller, one), (larger, other) = sorted(pairs, key=lambda pair: vocabulary_size(pair[0]))
    difference = tokenizer_difference(larger, describe_tokenizer(smaller))
    if difference is not None:
        raise ValueError(
            f'tokenizer.name: the tokenizer in {one} is another one than that in {other}: {difference}. Name the '
            f'one that the source was trained with, {source}, and use data prepared with it.'
        )


def check_rows(tokenizer: Any, name: str, model: Mapping[str, Any], rows: int) -> None:
    """Refuses a tokenizer with more ids than the source has rows for, such as one with a padding token put in later.

    Args:
        tokenizer (Any): From :func:`open_tokenizer`.
        name (str): What the run calls it.
        model (Mapping[str, Any]): The run's section.
        rows (int): Rows of the source's embedding.

    Raises:
        ValueError: Naming the first token without a row.
    """
    if model.get('allow_embedding_resizing', False):
        rows = max(rows, len(tokenizer))
    number, token = min(
        ((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows), default=(None, None)
    )
    if number is not None:
        raise ValueError(
            f'tokenizer.name: {name} has ids up to {vocabulary_size(tokenizer) - 1}, and the embedding of the source '
            f'{rows} rows: none for {token!r} ({number}). Take such tokens out of its files, or set '
            'model.allow_embedding_resizing: true, which adds rows for them.'
        )
