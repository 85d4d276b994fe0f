"""The tokenizer's part in `prepare`: what it puts around a document, what type holds its ids, how to name it.

Workers of a fast tokenizer need only its JSON and the small `tokenizers` library, not transformers: they start in a
fraction of a second. Whether that short way gives the ids of the Hugging Face tokenizer is checked before it is used;
otherwise, and for slow tokenizers, workers load the Hugging Face tokenizer itself.

A fast tokenizer needs about 115 bytes of memory per byte of a text. A book-sized document is therefore tokenized in
overlapping windows, joined where two windows agree, so that memory does not follow the largest document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from llmshearing.compat.tokenizers import special_in_text
from llmshearing.compat.transformers import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ['OVERLAP', 'WINDOW', 'Encoder', 'TokenizerPlan', 'encode_in_windows', 'plan_tokenizer', 'smallest_dtype']

WINDOW = 1 << 18  # characters of a long document tokenized at once
OVERLAP = 1 << 12  # characters that two windows share
_AGREE = 16  # tokens that must be equal on both sides of a joint


@dataclass(frozen=True)
class TokenizerPlan:
    """Everything a worker needs to turn text into ids.

    Attributes:
        name (str): What ``AutoTokenizer`` loads.
        backend (str | None): JSON of the fast tokenizer; ``None`` to load ``name`` in the worker.
        bos (int | None): Id put before each document, if any.
        eos (int | None): Id put after each document, if any.
        dtype (str): ``uint16`` or ``uint32``, the smallest that holds every id.
        size (int): Largest id plus one.
        fingerprint (str): SHA-256 of everything that decides the ids.
        class_name (str): Class of the Hugging Face tokenizer.
        described (dict[str, Any]): What the manifest says for those who read the data, see
            :func:`~llmshearing.data.fingerprint.describe_tokenizer`.
        chat_template (str): The template for conversations, as JSON; it decides ids where there are some.
        special (re.Pattern[str]): Finds what a text spells and the tokenizer takes for a special token.
    """

    name: str
    backend: str | None
    bos: int | None
    eos: int | None
    dtype: str
    size: int
    fingerprint: str
    class_name: str
    described: dict[str, Any]
    chat_template: str
    special: re.Pattern[str]

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """Ids that stand before and after each document."""
        before, after = ([] if token is None else [token] for token in (self.bos, self.eos))
        return before, after


def smallest_dtype(vocab_size: int) -> str:
    """The smallest unsigned type whose values reach ``vocab_size - 1``: ``uint16`` or ``uint32``."""
    if not 0 < vocab_size <= 1 << 32:
        raise ValueError(f'the vocabulary has {vocab_size} entries; expected between 1 and 2**32')
    return 'uint16' if vocab_size <= 1 << 16 else 'uint32'


def plan_tokenizer(name: str, bos: bool | None, eos: bool | None) -> TokenizerPlan:
    """Loads a tokenizer and works out how documents become ids.

    Raises:
        ValueError: If it cannot be loaded, lacks a wanted token, or has an empty vocabulary.
    """
    from llmshearing.data.fingerprint import describe_tokenizer, fast_backend, tokenizer_identity
    from llmshearing.data.packing import separators

    try:
        tokenizer = read_tokenizer(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f'tokenizer {name!r} cannot be loaded ({str(error).splitlines()[0]}); expected a folder with '
            'a Hugging Face tokenizer, or a name that is in the cache or can be downloaded'
        ) from error
    bos_id, eos_id = separators(tokenizer, bos, eos)
    described = describe_tokenizer(tokenizer)
    return TokenizerPlan(
        name=name,
        backend=fast_backend(tokenizer),
        bos=bos_id,
        eos=eos_id,
        dtype=smallest_dtype(described['vocab_size']),
        size=described['vocab_size'],
        fingerprint=tokenizer_identity(tokenizer, bos_id, eos_id),
        class_name=type(tokenizer).__name__,
        described=described,
        chat_template=json.dumps(getattr(tokenizer, 'chat_template', None), sort_keys=True),
        special=special_in_text(tokenizer),
    )


class Encoder:
    """Turns texts into ids, without beginning and end tokens.

    Args:
        backend (str | None): JSON of a fast tokenizer.
        name (str): What ``AutoTokenizer`` loads if ``backend`` is ``None``.
    """

    def __init__(self, backend: str | None, name: str) -> None:
        self._fast: Tokenizer | None = None
        self._slow: Any = None
        if backend is not None:
            from tokenizers import Tokenizer

            self._fast = Tokenizer.from_str(backend)
        else:
            self._slow = read_tokenizer(name)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns one int64 array of ids per text."""
        fast = self._fast
        if fast is None:
            batch = self._slow(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
            return [np.array(ids, np.int64) for ids in batch['input_ids']]
        long = {i for i, text in enumerate(texts) if len(text) > WINDOW}
        short = [text for i, text in enumerate(texts) if i not in long]
        encodings = fast.encode_batch_fast(short, add_special_tokens=False)
        ids = iter([np.array(encoding.ids, np.int64) for encoding in encodings])
        return [_encode_long(fast, text) if i in long else next(ids) for i, text in enumerate(texts)]


def _encode_long(fast: Tokenizer, text: str) -> np.ndarray:
    joined = encode_in_windows(partial(_encode_window, fast), text, WINDOW, OVERLAP)
    if joined is None:  # the windows never agree: nothing but the whole text is sure to be right
        joined = np.array(fast.encode_batch_fast([text], add_special_tokens=False)[0].ids, np.int64)
    return joined


def _encode_window(fast: Tokenizer, text: str) -> tuple[np.ndarray, np.ndarray]:
    encoding = fast.encode_batch([text], add_special_tokens=False)[0]
    return np.array(encoding.ids, np.int64), np.array([start for start, _ in encoding.offsets], np.int64)


def encode_in_windows(
    encode: Callable[[str], tuple[np.ndarray, np.ndarray]], text: str, window: int, overlap: int
) -> np.ndarray | None:
    """Tokenizes a text window by window and joins the results.

    Two neighbouring windows share ``overlap`` characters. They are joined at a place where both begin a token and have
    the same tokens for a stretch before and after it: there the beginning of the second window and the end of the first
    have no influence any more, and the joined ids are those of the whole text.

    Args:
        encode (Callable): From a text to its ids and the offsets at which they start, two int64 arrays [tokens].
        text (str): The text.
        window (int): Characters in a window.
        overlap (int): Characters shared by two windows.

    Returns:
        np.ndarray | None: Ids, int64, [tokens]; ``None`` if there are two windows that nowhere agree.
    """
    parts = []
    ids, starts = encode(text[:window])
    begin = 0
    while begin + window < len(text):
        begin += window - overlap
        next_ids, next_starts = encode(text[begin : begin + window])
        next_starts = next_starts + begin
        joint = _find_joint(ids, starts, next_ids, next_starts, begin + overlap // 2)
        if joint is None:
            return None
        parts.append(ids[: joint[0]])
        ids, starts = next_ids[joint[1] :], next_starts[joint[1] :]
    return np.concatenate([*parts, ids])


def _find_joint(
    ids: np.ndarray, starts: np.ndarray, next_ids: np.ndarray, next_starts: np.ndarray, middle: int
) -> tuple[int, int] | None:
    """Indices in two windows of the token nearest to ``middle`` around which both agree."""
    _, left, right = np.intersect1d(starts, next_starts, return_indices=True)  # of equal starts, the first token
    for i in np.argsort(np.abs(starts[left] - middle), kind='stable'):
        a, b = left[i], right[i]
        if min(a, b) < _AGREE or a + _AGREE > len(ids) or b + _AGREE > len(next_ids):
            continue
        if np.array_equal(ids[a - _AGREE : a + _AGREE], next_ids[b - _AGREE : b + _AGREE]):
            return int(a), int(b)
    return None
