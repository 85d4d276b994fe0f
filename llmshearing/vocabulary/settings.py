"""What decides a trimmed vocabulary, checked before any text is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from llmshearing.utils.checks import check_integer
from llmshearing.utils.files import load_json
from llmshearing.vocabulary.text import READ_BYTES

__all__ = ['RECORD', 'TrimSettings', 'read_kept', 'read_wished']

RECORD = 'vocabulary.json'


@dataclasses.dataclass(frozen=True)
class TrimSettings:
    """What decides the result, beside source and text.

    Attributes:
        size (int | None): Tokens of the result; None where a list of tokens is given.
        multiple_of (int): What the size must be a multiple of, as matrix products like it.
        keep (Path | None): File with tokens that must stay, one a line.
        text_key (str): Field or column that holds the text.
        read_bytes (int): Bytes to read of each domain.
    """

    size: int | None = None
    multiple_of: int = 64
    keep: Path | None = None
    text_key: str = 'text'
    read_bytes: int = READ_BYTES

    def check(self, least: int, present: int) -> int:
        """The size, if it is possible between the ``least`` that stay at any size and those that are ``present``.

        Raises:
            ValueError: Saying which sizes are.
        """
        size, step = self.size, self.multiple_of
        check_integer('--multiple-of', step, 1)
        check_integer('--read-bytes', self.read_bytes, 1)
        lowest, highest = -(-least // step) * step, (present - 1) // step * step
        possible = (
            f'possible are multiples of {step} from {lowest:,} to {highest:,}'
            if lowest <= highest
            else f'no multiple of {step} is possible, set --multiple-of'
        )
        if size is None or size < least:
            raise ValueError(
                f'--size {size}: {least:,} tokens stay at any size (special and added ones, bytes or characters, and '
                f'what --keep names); {possible}.'
            )
        if size >= present:
            raise ValueError(f'--size {size}: the tokenizer has {present:,} tokens, and fewer are to stay; {possible}.')
        if size % step:
            raise ValueError(f'--size {size} is no multiple of {step} (--multiple-of); {possible}.')
        return size


def read_wished(path: Path | None) -> list[str]:
    """The tokens of a ``--keep`` file, one a line; in quotes with escapes as in ``tokenizer.json``, or as they are.

    Raises:
        ValueError: If there is no such file, or it is no text.
    """
    if path is None:
        return []
    if not Path(path).is_file():
        raise ValueError(f'--keep {path}: no such file; expected one with a token a line.')
    try:
        lines = Path(path).read_text(encoding='utf-8-sig').split('\n')
    except UnicodeDecodeError as error:
        raise ValueError(f'--keep {path} is not UTF-8 ({error}).') from error
    return [_unquoted(line) for line in (line.removesuffix('\r') for line in lines) if line]


def _unquoted(line: str) -> str:
    try:
        token = json.loads(line) if line.startswith('"') else line
    except ValueError:  # the token itself begins with a quote
        return line
    return token if isinstance(token, str) and token else line


def read_kept(folder: Path, vocabulary: str) -> list[int]:
    """The kept ids that another trimmed folder notes, for a tokenizer whose tokens have the hash ``vocabulary``.

    Raises:
        ValueError: If it is no such folder, or its source had another tokenizer.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise ValueError(f'--like {folder} holds no {RECORD}; expected a folder that trim-vocab wrote.')
    try:
        record = load_json(path)
        kept, made_from = [int(number) for number in record['kept']], record['source_vocabulary']
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'--like: {path} is not what trim-vocab writes ({type(error).__name__}: {error}).') from error
    if made_from != vocabulary:
        raise ValueError(
            f'--like {folder} was made from another tokenizer: its tokens have the hash {made_from}, those here '
            f'{vocabulary}. The same list fits models of one tokenizer alone.'
        )
    return kept
