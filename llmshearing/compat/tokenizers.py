"""tokenizers: what a ``tokenizer.json`` says decides the ids, also where transformers 5 builds the tokenizer anew.

transformers 4 opens that file whatever class ``tokenizer_config.json`` names. transformers 5 takes no more than
vocabulary and merges from it for many classes (``GPT2Tokenizer``, ``Qwen2Tokenizer``, ``CohereTokenizer`` ...) and puts
the pre-tokenizer of the class around them. A model that was trained with digits one by one then reads other ids, and a
tokenizer that is saved again has lost what the file said. Its general class opens the file as it is, so that is taken
where the two make other ids of a sample, or around special tokens: there alone older files of LLaMA differ.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmshearing.compat.versions import TRANSFORMERS_5

__all__ = [
    'GENERAL_CLASS',
    'OF_THE_HUB',
    'SAMPLE',
    'TokenizerLoader',
    'around_special',
    'is_general',
    'opens_as_general',
    'plain_ids',
    'same_ids',
    'save_tokenizer',
    'special_in_text',
]

OF_THE_HUB = ('cache_dir', 'local_files_only', 'revision', 'subfolder', 'token')
SPECIAL_TOKENS = 32  # that texts are made of; some vocabularies have thousands in reserve
GENERAL_CLASS = 'PreTrainedTokenizerFast'  # by which either generation opens a tokenizer.json as it is

SAMPLE = (
    "It's 1,234.5 of HTTP requests: the model_layer's weights (d\u00e9j\u00e0 vu) were re-read, weren't they?\n"
    'def f(x):\n    return {"a": x ** 2}  # \u4f60\u597d \U0001f600\n\n'
    'Stra\u00dfe \u043f\u0440\u0438\u0432\u0435\u0442 \u3053\u3093\u306b\u3061\u306f  \t\\frac{a}{b} '
    '<p>antidisestablishmentarianism</p>\n'
    "| 7 |   10 |\n    x =  20241129  # DON'T I'LL\r\n\t\t12:05, 3 000 000 0x1F\n\n\n"
    "  '' `` e\u0301 \uff11\u00bd\u2026 "
)
"""Text that tells tokenizers apart: contractions, digits and blanks, code, several scripts, marks and an emoji."""


class TokenizerLoader:
    """``AutoTokenizer`` for a caller of ours or of llm-foundry; with transformers 4 without its alarm about classes."""

    @staticmethod
    def from_pretrained(name: str | Path, **settings: Any) -> Any:
        """The tokenizer of a folder or of the hub; arguments as for ``AutoTokenizer.from_pretrained``."""
        from transformers import AutoTokenizer

        with _silence_class_warning():
            return _as_in_file(AutoTokenizer.from_pretrained(name, **settings), name, **settings)


@contextlib.contextmanager
def _silence_class_warning() -> Iterator[None]:
    """Silences transformers where a file is opened by another class than it names: that is chosen, by its ids."""
    log = logging.getLogger('transformers.tokenization_utils_base')

    def is_other(record: logging.LogRecord) -> bool:
        return 'The tokenizer class you load from this checkpoint is not the same' not in record.getMessage()

    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)


def _as_in_file(tokenizer: Any, name: str | Path, **settings: Any) -> Any:
    """A tokenizer that transformers opened, or the general class's where it makes other ids than the file says."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.hub import cached_file

    if not TRANSFORMERS_5 or not tokenizer.is_fast or is_general(tokenizer):
        return tokenizer
    file = cached_file(
        str(name),
        'tokenizer.json',
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **{key: value for key, value in settings.items() if key in OF_THE_HUB},
    )
    if file is None:
        return tokenizer
    general = PreTrainedTokenizerFast.from_pretrained(name, **settings)
    return tokenizer if same_ids(general, tokenizer) else general


def around_special(tokenizer: Any) -> str:
    """Text around a tokenizer's own special tokens, the first by their ids, where classes differ on any other text."""
    added = sorted(tokenizer.added_tokens_decoder.items())
    special = [token.content for _, token in added if token.special][:SPECIAL_TOKENS]
    return ''.join(f'x{token} y\n{token}z' for token in special)


def same_ids(tokenizer: Any, other: Any, add_special_tokens: bool = False) -> bool:
    """Whether two tokenizers make the same of :data:`SAMPLE`, and of text around the first one's special tokens."""
    texts = [SAMPLE, around_special(tokenizer)]
    settings = {'add_special_tokens': add_special_tokens, 'verbose': False}
    ids = []
    for each in (tokenizer, other):
        with _explain_failures(each):
            ids.append([each.encode(text, **settings) for text in texts])
    return ids[0] == ids[1]


def opens_as_general(folder: str | Path, tokenizer: Any) -> bool:
    """Whether a folder's tokenizer.json is to be opened by the general class, which ``tokenizer`` may be of already.

    With transformers 4, where the two have the same ids, put the same around a text and have the same special tokens.
    With 5 a tokenizer of another class was looked at when it was opened: it does what the file says.
    """
    from transformers import PreTrainedTokenizerFast

    if TRANSFORMERS_5 or is_general(tokenizer):
        return is_general(tokenizer)
    with _silence_class_warning():
        general = PreTrainedTokenizerFast.from_pretrained(folder)
    alike = general.special_tokens_map == tokenizer.special_tokens_map
    return alike and same_ids(general, tokenizer, add_special_tokens=True)


def special_in_text(tokenizer: Any) -> re.Pattern[str]:
    """What finds a special token that a text spells, of those which this tokenizer then turns into their ids."""
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = plain_ids(tokenizer, [f'x{token} y' for token in special.values()]) if special else []
    found = [token for (number, token), own in zip(special.items(), ids) if number in own]
    return re.compile('|'.join(map(re.escape, sorted(found, key=len, reverse=True))) or '(?!)')


def plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids of each text, without what the tokenizer would put around it.

    Raises:
        ValueError: For a tokenizer that has no ids for a character of them.
    """
    with _explain_failures(tokenizer):
        return tokenizer(texts, add_special_tokens=False, verbose=False)['input_ids']


def save_tokenizer(tokenizer: Any, folder: Path, **settings: Any) -> None:
    """``save_pretrained``, whose errors are of the system's kind.

    Raises:
        OSError: If the disk is full, or does not take the files.
    """
    try:
        tokenizer.save_pretrained(folder, **settings)
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library has no kind of its own
            raise
        raise OSError(f'the tokenizer cannot be written to {folder} ({error}).') from error


@contextlib.contextmanager
def _explain_failures(tokenizer: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library has no kind of its own
            raise
        raise ValueError(
            f'the tokenizer in {tokenizer.name_or_path} cannot encode every text ({error}); give its tokenizer.json a '
            'token for characters that it does not know, or take another tokenizer'
        ) from error


def is_general(tokenizer: Any) -> bool:
    """Whether a tokenizer is of the class that adds nothing to its tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    return type(tokenizer) is PreTrainedTokenizerFast
