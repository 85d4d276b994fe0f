"""The documents of a domain, cut into pieces of a few megabytes.

One reader runs through all input in order and hands out pieces; parsing, hashing and tokenizing a piece is work for
another process. Reading is a thousand times cheaper than tokenizing, so one reader feeds many workers, compressed and
columnar files need no seeking, and the order of pieces does not depend on who works on them. A piece ends where a
document ends, and where pieces end has no influence on the result.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from llmshearing.data.mds import read_index, read_rows
from llmshearing.prepare.contents import json_values, open_binary, reading
from llmshearing.prepare.fields import BESIDE_TURNS, CONVERSATIONS, MISSING, find_field
from llmshearing.prepare.sources import Source, no_text
from llmshearing.prepare.spec import Domain

__all__ = ['Piece', 'batched', 'read_pieces']

log = logging.getLogger(__name__)

_LOOKED_AT = 20  # lines


@dataclass(frozen=True)
class Piece:
    """Some consecutive documents of one domain.

    Attributes:
        kind (str): ``json`` (data: bytes, one record a line), ``text`` (data: bytes, documents between separators),
            ``files`` (data: paths, a document each) or ``texts`` (data: what the column holds).
        path (str): File the documents are from.
        first (int): Number of the first line, document or row, counted from 1.
        data (bytes | tuple): The documents.
        size (int): About how many bytes of the input this is, for progress.
    """

    kind: str
    path: str
    first: int
    data: bytes | tuple
    size: int


def read_pieces(domain: Domain, sources: list[Source], piece_bytes: int) -> Iterator[Piece]:
    """Reads a domain from beginning to end; where a piece grows to ``piece_bytes`` it ends with its last document.

    Raises:
        ValueError: If the text key, the separator or the split is not there, or a file is broken.
    """
    readers = {'jsonl': _read_lines, 'txt': _read_lines, 'json': _read_json}  # the others have columns
    separator = (domain.separator or '').encode()
    unseparated, separates = None, False
    documents = ('file', 'txt') if domain.separator is None else ('file',)
    for are_documents, some in groupby(sources, lambda source: source.kind in documents):
        if are_documents:
            for files, size in batched((source.path for source in some), os.path.getsize, piece_bytes):
                yield Piece('files', files[0], 1, tuple(files), size)
        else:
            for source in some:
                pieces = readers.get(source.kind, _read_columns)(source, domain, piece_bytes)
                if source.kind != 'txt':
                    yield from pieces
                    continue
                here = False
                for piece in pieces:
                    here = here or separator in piece.data
                    if not here and separator.replace(b'\n', b'\r\n') in piece.data:
                        raise _not_there(domain, piece)
                    unseparated = piece
                    yield piece
                separates |= here
    if unseparated is not None and not separates:
        raise _not_there(domain, unseparated)


def _not_there(domain: Domain, piece: Piece) -> ValueError:
    windows = '; its lines end with "\\r\\n"' if b'\r\n' in piece.data else ''
    return ValueError(
        f'domains.{domain.name}.separator is {domain.separator!r}, which is nowhere in {piece.path}{windows}; correct '
        'it, or leave it out to take each file as one document'
    )


def batched(items: Iterable[Any], size_of: Callable[[Any], int], most: int) -> Iterator[tuple[list[Any], int]]:
    """Consecutive items, and the sum of their sizes, which ends a batch where it reaches ``most``."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= most:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def _read_lines(source: Source, domain: Domain, piece_bytes: int) -> Iterator[Piece]:
    kind, separator = ('json', b'\n') if source.kind == 'jsonl' else ('text', (domain.separator or '').encode())
    first, rest, checked = 1, bytearray(), False
    with reading(source.path), open_binary(source.path) as file:
        while block := file.read(piece_bytes):
            unsearched = max(0, len(rest) - len(separator) + 1)
            rest += block
            if end := _last_end(rest, separator, unsearched):
                data = bytes(rest[:end])
                del rest[:end]
                checked = checked or kind == 'text' or _check_text_key(data, source, domain)
                yield Piece(kind, source.path, first, data, len(data))
                first += data.count(separator)
    if rest:
        if kind == 'json' and not checked:
            _check_text_key(bytes(rest), source, domain)
        yield Piece(kind, source.path, first, bytes(rest), len(rest))


def _last_end(data: bytearray, separator: bytes, start: int) -> int:
    """Where the last separator ends, 0 if there is none.

    Long ones are counted off from the left, since in a run of three newlines the blank line is the first two wherever
    the run is cut.
    """
    if len(separator) == 1:
        return data.rfind(separator, start) + 1
    end = 0
    while (found := data.find(separator, start)) >= 0:
        start = end = found + len(separator)
    return end


def _read_json(source: Source, domain: Domain, piece_bytes: int) -> Iterator[Piece]:
    first = 1
    with reading(source.path), open_binary(source.path) as file:
        lines = (record + b'\n' for record in json_values(file, source.path))
        for some, size in batched(lines, len, piece_bytes):
            data = b''.join(some)
            if first == 1:
                _check_text_key(data, source, domain)
            yield Piece('json', source.path, first, data, size)
            first += len(some)


def _check_text_key(data: bytes, source: Source, domain: Domain) -> bool:
    """Looks at the first records of a file: a wrong text key should not cost a scan of everything."""
    records = []
    for line in data.split(b'\n', _LOOKED_AT)[:_LOOKED_AT]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    if records and all(find_field(record, domain.text_key) is MISSING for record in records):
        raise no_text(domain, source.path, records[0])
    _tell_beside(domain, *records)
    return bool(records)


def _tell_beside(domain: Domain, *records: Mapping[str, Any]) -> None:
    """Tells of what belongs to a conversation and stands in a field beside it, which is not read."""
    outer, dot, last = domain.text_key.rpartition('.')
    for name in BESIDE_TURNS if last in CONVERSATIONS else ():
        key = f'{outer}{dot}{name}'
        if any(find_field(record, key) not in (MISSING, None, '', [], '[]') for record in records):
            _tell(domain.name, domain.text_key, key)


@functools.cache
def _tell(domain: str, text_key: str, beside: str) -> None:
    log.warning(
        'domains.%s: beside %r its records have %r, which is left out; where it is part of the conversation, write it '
        'into the turns, as the first one, of the role system.',
        domain,
        text_key,
        beside,
    )


def _read_columns(source: Source, domain: Domain, piece_bytes: int) -> Iterator[Piece]:
    import pyarrow

    first = 1
    rows = {'parquet': _parquet_batches, 'hf': _hf_batches, 'mds': _mds_batches}[source.kind](source, domain)
    try:
        for texts, size in batched(chain.from_iterable(rows), _size_of, piece_bytes):
            yield Piece('texts', source.path, first, tuple(texts), size)
            first += len(texts)
    except (pyarrow.ArrowInvalid, OSError) as error:  # the second of a damaged page
        if getattr(error, 'errno', None) is not None:
            raise
        raise ValueError(f'domains.{domain.name}: {source.path} cannot be read ({error}); fetch it again') from error


def _size_of(text: Any) -> int:
    return len(text) if isinstance(text, str) else 1


def _column(domain: Domain, path: str, names: Iterable[str]) -> str:
    """The column that holds the text key, or the field that it lies in."""
    names, key = list(names), domain.text_key
    if found := [name for name in names if key == name or key.startswith(f'{name}.')]:
        _tell_beside(domain, dict.fromkeys(names, True))
        return max(found, key=len)
    raise no_text(domain, path, dict.fromkeys(names))


def _values(rows: Iterable[dict[str, Any]], domain: Domain) -> list[Any]:
    """The text of each row; None, which is told as no string, where there is none."""
    found = (find_field(row, domain.text_key) for row in rows)
    return [None if value is MISSING else value for value in found]


def _parquet_batches(source: Source, domain: Domain) -> Iterator[list]:
    from pyarrow import parquet

    with parquet.ParquetFile(source.path, buffer_size=1 << 20) as file:
        column = _column(domain, source.path, file.schema_arrow.names)
        wanted = domain.text_key if domain.text_key != column and column in file.schema_arrow.names else column
        for batch in file.iter_batches(batch_size=256, columns=[wanted]):
            yield _values(batch.to_pylist(), domain)


def _hf_batches(source: Source, domain: Domain) -> Iterator[list]:
    import datasets

    dataset = datasets.load_from_disk(source.path).with_format(None)  # what it was saved with is for other readers
    if isinstance(dataset, datasets.DatasetDict):
        names = [str(name) for name in dataset]
        if domain.hf_split is None and len(names) > 1:
            raise ValueError(f'domains.{domain.name}: {source.path} has the splits {", ".join(names)}; set hf_split')
        if domain.hf_split is not None and domain.hf_split not in names:
            raise ValueError(
                f'domains.{domain.name}.hf_split is {domain.hf_split!r}; {source.path} has {", ".join(names)}'
            )
        dataset = dataset[domain.hf_split or names[0]]
    column = _column(domain, source.path, dataset.column_names)
    batch: Any  # lists by column
    for batch in dataset.select_columns([column]).iter(batch_size=256):
        yield _values(({column: value} for value in batch[column]), domain)


def _mds_batches(source: Source, domain: Domain) -> Iterator[list]:
    for reader in read_index(source.path):
        if domain.text_key not in reader.column_names and 'tokens' in reader.column_names:
            raise ValueError(
                f'domains.{domain.name}: {source.path} holds token ids already; name its folders as domains of '
                'dynamic_text instead'
            )
        column = _column(domain, source.path, reader.column_names)
        yield _values(({column: row[column]} for row in read_rows(source.path, reader)), domain)
