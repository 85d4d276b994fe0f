"""What a ``tokenizer.json`` is: which kind, which token has which id, and which tokens any text may need.

Three kinds can be trimmed: byte-level BPE, BPE over characters with byte tokens beside them (SentencePiece's), and
Unigram. The decision here: the file is read as the `tokenizers` library's JSON and never through a class of its own, so
one set of rules serves every model, and what cannot be followed is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from llmshearing.utils.files import load_json

__all__ = ['TOKENIZER', 'TokenizerFile', 'change_written_ids', 'parse_tokenizer_file', 'read_tokenizer_file']

TOKENIZER = 'tokenizer.json'
BYTE_TOKEN = re.compile(r'<0x[0-9A-F]{2}>')
BYTES = 256
KINDS = ('BPE', 'Unigram')


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A checked ``tokenizer.json``.

    Attributes:
        content (dict[str, Any]): The file.
        kind (str): ``'BPE'`` or ``'Unigram'``.
        model_ids (dict[str, int]): Id of every token of the model, without those added to it.
        added_ids (dict[str, int]): Id of every added token; some are tokens of the model as well.
    """

    content: dict[str, Any]
    kind: str
    model_ids: dict[str, int]
    added_ids: dict[str, int]

    @property
    def model(self) -> dict[str, Any]:
        """The part ``model``."""
        return self.content['model']

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of every token."""
        return {**self.model_ids, **self.added_ids}

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs that BPE merges, the first one first; empty for Unigram."""
        return [_split_merge(merge) for merge in self.model.get('merges') or ()]

    @property
    def scores(self) -> dict[str, float]:
        """Log-probability of every piece of a Unigram model."""
        return dict(self.model['vocab'])

    def needed_ids(self) -> set[int]:
        """Ids that stay whatever the text is: added tokens, the unknown token, and what any text can be written with.

        That is one token per byte where there are such. Where one of them is missing, or not fallen back on, characters
        without a token would be lost as unknown, so all tokens of one character stay. Of Unigram the piece of least
        score stays too: the score of an unknown character is counted from it (:mod:`llmshearing.vocabulary.choice`).
        """
        padding = self.content.get('padding') or {}
        needed = set(self.added_ids.values())
        change_written_ids(self.content.get('post_processor'), needed.add)
        needed |= {padding['pad_id']} & set(self.ids.values()) if padding else set()
        bytes_ = {number for token, number in self.model_ids.items() if BYTE_TOKEN.fullmatch(token)}
        if self._is_byte_level():
            bytes_ |= {self.model_ids[token] for token in ByteLevel.alphabet() if token in self.model_ids}
        elif not self.model.get('byte_fallback') or len(bytes_) < BYTES:
            bytes_ |= {number for token, number in self.model_ids.items() if len(token) == 1}
        if self.model.get('unk_token') in self.ids:
            needed.add(self.ids[self.model['unk_token']])
        if self.kind == 'Unigram':
            scores = self.scores
            needed.add(self.model_ids[min(scores, key=lambda token: (scores[token], self.model_ids[token]))])
            if self.model.get('unk_id') is not None:
                needed.add(self.model['unk_id'])
        return needed | bytes_

    def _is_byte_level(self) -> bool:
        parts = (self.content.get(name) for name in ('normalizer', 'pre_tokenizer', 'decoder'))
        return any('"ByteLevel"' in json.dumps(part) for part in parts)


def _split_merge(merge: str | list[str]) -> tuple[str, str]:
    """A merge as its two parts; older files write them in one string with a blank between."""
    left, right = merge.split(' ') if isinstance(merge, str) else merge
    return left, right


def read_tokenizer_file(folder: Path) -> TokenizerFile:
    """Reads and checks the ``tokenizer.json`` of a model folder.

    Raises:
        ValueError: If there is none, or one of a kind that cannot be trimmed; says which can.
    """
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        raise ValueError(
            f'{folder} holds no {TOKENIZER}, which is what is trimmed; write one with transformers: '
            'AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER).'
        )
    try:
        return parse_tokenizer_file(load_json(path))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} cannot be trimmed: {error}') from error


def parse_tokenizer_file(content: dict[str, Any]) -> TokenizerFile:
    """What :func:`read_tokenizer_file` does with the JSON.

    Raises:
        ValueError: See there.
    """
    model = content['model']
    kind = model.get('type') or ('BPE' if 'merges' in model else None)
    if kind not in KINDS:
        raise ValueError(f'its tokens are made by {kind}; only {" and ".join(KINDS)} can be trimmed.')
    odd = [name for name in ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix') if model.get(name)]
    if odd:
        raise ValueError(f'it sets {odd[0]} to {model[odd[0]]!r}, with which tokens are made in another way.')
    if kind == 'BPE':
        model_ids = dict(model['vocab'])
    else:
        model_ids = {token: number for number, (token, _) in enumerate(model['vocab'])}
        if len(model_ids) != len(model['vocab']):
            raise ValueError('a piece stands in it twice.')
    added_ids = {token['content']: token['id'] for token in content.get('added_tokens') or ()}
    file = TokenizerFile(content, kind, model_ids, added_ids)
    if len(set(file.ids.values())) != len(file.ids) or any(
        number != model_ids.get(token, number) for token, number in added_ids.items()
    ):
        raise ValueError('two tokens have one id, or one token two.')
    return file


def change_written_ids(processor: Any, change: Callable[[int], Any]) -> Any:
    """A post-processor with a function applied to every id that it writes around a text."""
    if isinstance(processor, list):
        return [change_written_ids(part, change) for part in processor]
    if not isinstance(processor, Mapping):
        return processor
    result = {}
    for name, value in processor.items():
        if name == 'ids':
            result[name] = [change(number) for number in value]
        elif name in ('sep', 'cls') and isinstance(value, list):
            result[name] = [value[0], change(value[1])]
        else:
            result[name] = change_written_ids(value, change)
    return result
