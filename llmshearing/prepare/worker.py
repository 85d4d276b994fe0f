"""What a worker process of `prepare` does with a piece: look at its documents, or tokenize the chosen ones.

Both are functions of the piece alone, so it does not matter which worker runs them, or how often.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from llmshearing.data.turns import content_of, turns_of_columns
from llmshearing.prepare.contents import NO_TEXT, NOT_UTF8, WRAP, open_binary, reading
from llmshearing.prepare.fields import (
    CONVERSATIONS,
    MISSING,
    ChatTemplate,
    NoChatTemplate,
    field_names,
    find_field,
    parse_conversation,
)
from llmshearing.prepare.pieces import Piece, batched
from llmshearing.prepare.tokenizer import Encoder, TokenizerPlan

__all__ = ['DOCUMENT', 'EXAMPLES', 'BadRecord', 'read_documents', 'scan_piece', 'start', 'tokenize_piece']

# One document: 128 bits of the hash of its text (two words, little endian) and the text's length in UTF-8.
DOCUMENT = np.dtype([('high', '<u8'), ('low', '<u8'), ('size', '<u8')])
EXAMPLES = 5  # bad records shown
_BATCH_BYTES = 1 << 18  # text tokenized at once: enough to be fast, little enough to keep memory flat
_SLICE = 1 << 13  # characters of one document that count in the estimate of tokens per byte

_encoder: Encoder  # these by `start`
_plan: TokenizerPlan
_chat: ChatTemplate | None = None  # made when the tokenizer's first conversation is met


def start(plan: TokenizerPlan) -> None:
    """Makes this process ready to tokenize; called before any piece."""
    global _encoder, _plan, _chat
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # one process per core already
    _encoder, _plan, _chat = Encoder(plan.backend, plan.name), plan, None


class BadRecord(NamedTuple):
    """A record that could not be read, and why."""

    path: str
    number: int
    reason: str


class Scan(NamedTuple):
    """What a piece holds: documents as ``DOCUMENT`` records, what was left out, and a sample's tokens and bytes.

    ``special`` counts the documents that spell special tokens, and ``spelled`` has the first of them if any.
    ``sample`` has the sums over the sampled texts of: tokens, bytes, tokens squared, tokens times bytes, bytes squared.
    """

    documents: np.ndarray
    empty: int
    bad: int
    examples: list[BadRecord]
    special: int
    spelled: list[BadRecord]
    sample: list[int]


class Tokens(NamedTuple):
    """Ids of the chosen documents of a piece, per split, end to end, with the length of each document."""

    ids: list[np.ndarray]
    lengths: list[np.ndarray]


def read_documents(
    piece: Piece, text_key: str, separator: str | None, spelled: list[BadRecord] | None = None
) -> Iterator[tuple[str, bytes] | BadRecord]:
    """Reads the records of a piece in order, skipping blank lines.

    Args:
        piece (Piece): From :func:`llmshearing.prepare.pieces.read_pieces`.
        text_key (str): Field of a JSON record that holds the text, or a conversation for the chat template.
        separator (str | None): What ends a document in a piece of kind ``text``.
        spelled (list[BadRecord] | None): Takes the first special token that each document spells, if any. Those that a
            chat template wrote are meant. Default: ``None``, not looked for.

    Yields:
        tuple[str, bytes] | BadRecord: A document's text and its UTF-8 form, or why there is none.
    """
    for number, path, record in _records(piece, separator):
        try:
            text, written = _text_of(record, piece.kind, text_key)
            text = text.removeprefix('\ufeff')  # a mark that was copied along
            encoded = text.encode('utf-8')
            if spelled is not None and (token := _plan.special.search(written)):
                spelled.append(BadRecord(path, number, token[0]))
            yield text, encoded
        except NoChatTemplate:
            raise
        except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
            reason = NOT_UTF8.format(error) if isinstance(error, UnicodeDecodeError) else str(error)
            yield BadRecord(path, number, reason)


def _text_of(record: Any, kind: str, text_key: str) -> tuple[str, str]:
    """The text of a record, and what of it no chat template wrote."""
    global _chat
    if kind == 'json' and b'\0' not in record:
        fields = json.loads(record)
        if not isinstance(fields, dict):
            raise ValueError(f'expected a JSON object, got {type(fields).__name__}; {WRAP.format(text_key)}')
        record = find_field(fields, text_key)
        if record is MISSING:
            raise ValueError(f'no {text_key!r}')
    elif kind == 'files':
        with reading(record), open_binary(record) as file:
            record = file.read()
    if kind != 'texts' and isinstance(record, bytes) and b'\0' in record:
        raise ValueError(NO_TEXT)
    if isinstance(record, str) and text_key.split('.')[-1] in CONVERSATIONS:
        record = parse_conversation(record)
    if isinstance(record, Mapping):
        record = turns_of_columns(record)
    if isinstance(record, list):
        if not any(isinstance(turn, Mapping) for turn in record):
            raise ValueError(
                f'the text is a list of {len(record)}, neither a string nor a conversation (turns with role and '
                'content); join it to one string'
            )
        _chat = _chat or ChatTemplate(_plan.name, _plan.bos is not None, _plan.eos is not None)
        return _chat.render(record), '\n'.join(content_of(turn) or '' for turn in record)
    if isinstance(record, bytes):
        record = record.decode('utf-8')
    if isinstance(record, Mapping):
        names = ', '.join(field_names(record, f'{text_key}.'))
        raise ValueError(f'the text is a record of its own; set text_key to one of {names}')
    if not isinstance(record, str):
        kind = 'null' if record is None else type(record).__name__
        raise ValueError(f'the text is {kind}, not a string; leave such records out')
    return record, record


def _records(piece: Piece, separator: str | None) -> Iterator[tuple[int, str, Any]]:
    if isinstance(piece.data, bytes):
        end = '\n' if piece.kind == 'json' else separator or '\n'
        lines = piece.data.split(end.encode('utf-8'))
        for number, line in enumerate(lines, piece.first):
            if line and not line.isspace():
                yield number, piece.path, line
    elif piece.kind == 'files':
        for path in piece.data:
            yield 1, path, path
    else:
        for number, text in enumerate(piece.data, piece.first):
            yield number, piece.path, text


def hash_text(encoded: bytes) -> tuple[int, int]:
    """128 bits of BLAKE2b of a text in UTF-8, as two numbers: what identifies a document everywhere."""
    digest = hashlib.blake2b(encoded, digest_size=16).digest()
    return int.from_bytes(digest[:8], 'little'), int.from_bytes(digest[8:], 'little')


def scan_piece(piece: Piece, text_key: str, separator: str | None, sample_bytes: int) -> Scan:
    """Hashes the documents of a piece and measures tokens per byte on about ``sample_bytes`` of them."""
    rows, samples, examples, spelled, empty, bad = [], [], [], [], 0, 0
    for document in read_documents(piece, text_key, separator, spelled):
        if isinstance(document, BadRecord):
            bad += 1
            examples = examples if len(examples) == EXAMPLES else [*examples, document]
            continue
        text, encoded = document
        if not text or text.isspace():
            empty += 1
            continue
        high, low = hash_text(encoded)
        rows.append((high, low, len(encoded)))
        start = low % (len(text) - _SLICE + 1) if len(text) > _SLICE else 0
        samples.append((low, text[start : start + _SLICE]))
    documents = np.array(rows, DOCUMENT)
    chosen, sizes = [], []
    for _, text in sorted(samples):
        if sample_bytes <= 0:
            break
        chosen.append(text)
        sizes.append(len(text.encode('utf-8')))
        sample_bytes -= sizes[-1]
    around = (_plan.bos is not None) + (_plan.eos is not None)
    tokens = [len(ids) + around for ids in _encoded(chosen)]
    pairs = list(zip(tokens, sizes, strict=True))
    products = [sum(t * t for t in tokens), sum(t * b for t, b in pairs), sum(b * b for b in sizes)]
    return Scan(documents, empty, bad, examples, len(spelled), spelled[:1], [sum(tokens), sum(sizes), *products])


def tokenize_piece(
    piece: Piece, text_key: str, separator: str | None, documents: np.ndarray, choice: np.ndarray, splits: int
) -> Tokens:
    """Tokenizes the chosen documents of a piece.

    ``documents`` are the scan's ``DOCUMENT`` records of this piece, [documents], and ``choice`` has the index of the
    split of each, -1 for none, [documents].

    Raises:
        ValueError: If the piece does not hold the documents that were scanned, or an id does not fit the vocabulary.
    """
    texts, wanted, index = [], [], 0
    for document in read_documents(piece, text_key, separator):
        if isinstance(document, BadRecord) or not document[0] or document[0].isspace():
            continue
        if index < len(choice) and choice[index] >= 0:
            if hash_text(document[1]) != (documents[index]['high'], documents[index]['low']):
                raise _changed(piece)
            texts.append(document[0])
            wanted.append(choice[index])
        index += 1
    if index != len(choice):
        raise _changed(piece)
    lists: list[list[np.ndarray]] = [[] for _ in range(splits)]
    for split, ids in zip(wanted, _encoded(texts), strict=True):
        lists[split].append(_wrap(ids, _plan))
    empty = np.empty(0, _plan.dtype)
    return Tokens(
        [np.concatenate([empty, *arrays]) for arrays in lists],
        [np.array([len(array) for array in arrays], np.int64) for arrays in lists],
    )


def _changed(piece: Piece) -> ValueError:
    return ValueError(f'{piece.path} changed while it was being read; leave the input alone and run again')


def _wrap(ids: np.ndarray, plan: TokenizerPlan) -> np.ndarray:
    """Puts beginning and end ids around a document and brings it to the stored type."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < plan.size:
        raise ValueError(f'tokenizer {plan.name!r} made the id {ids.max()}, outside its vocabulary of {plan.size}')
    before, after = plan.around
    return np.concatenate([np.array(before, np.int64), ids, np.array(after, np.int64)]).astype(plan.dtype)


def _encoded(texts: Iterable[str]) -> Iterator[np.ndarray]:
    for batch, _ in batched(texts, len, _BATCH_BYTES):
        yield from _encoder.encode(batch)
