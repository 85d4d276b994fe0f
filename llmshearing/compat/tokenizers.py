"""tokenizers: what a ``tokenizer.json`` says decides the ids, also where transformers 5 builds the tokenizer anew.

transformers 4 opens that file whatever class ``tokenizer_config.json`` names. transformers 5 takes no more than
vocabulary and merges from it for many classes (``GPT2Tokenizer``, ``Qwen2Tokenizer``, ``CohereTokenizer`` ...) and puts
the pre-tokenizer of the class around them. A model that was trained with digits one by one then reads other ids, and a
tokenizer that is saved again has lost what the file said. Its general class opens the file as it is, so that is taken
where the two make other ids of a sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmshearing.compat.versions import TRANSFORMERS_5

__all__ = ['GENERAL_CLASS', 'OF_THE_HUB', 'SAMPLE', 'TokenizerLoader', 'is_general', 'sample_ids']

OF_THE_HUB = ('cache_dir', 'local_files_only', 'revision', 'subfolder', 'token')
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
    """``AutoTokenizer`` for a caller of ours or of llm-foundry; with transformers 4 nothing else."""

    @staticmethod
    def from_pretrained(name: str | Path, **settings: Any) -> Any:
        """The tokenizer of a folder or of the hub; arguments as for ``AutoTokenizer.from_pretrained``."""
        from transformers import AutoTokenizer

        return _as_in_file(AutoTokenizer.from_pretrained(name, **settings), name, **settings)


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
    return tokenizer if sample_ids(tokenizer) == sample_ids(general) else general


def sample_ids(tokenizer: Any) -> list[int]:
    """What a tokenizer makes of :data:`SAMPLE`."""
    return tokenizer.encode(SAMPLE, add_special_tokens=False, verbose=False)


def is_general(tokenizer: Any) -> bool:
    """Whether a tokenizer is of the class that adds nothing to its tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    return type(tokenizer) is PreTrainedTokenizerFast
