"""Where documents come from: files found by name, cut into pieces of a few megabytes.

One reader runs through all input in order and hands out pieces; parsing, hashing and tokenizing a piece is work for
another process. Reading is a thousand times cheaper than tokenizing, so one reader feeds many workers, compressed and
columnar files need no seeking, and the order of pieces does not depend on who works on them. A piece ends where a
document ends, and where pieces end has no influence on the result.
"""

from __future__ import annotations

import glob as globbing
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmshearing.prepare.spec import Domain

_ENDINGS = {'jsonl': ('.jsonl', '.ndjson', '.json'), 'txt': ('.txt',), 'parquet': ('.parquet', '.pq')}
_COMPRESSED = ('.gz', '.zst')
_LOOKED_AT = 20  # lines
_HF_MARKERS = ('dataset_info.json', 'dataset_dict.json')


@dataclass(frozen=True)
class Source:
    """A file (or a saved Hugging Face data set) and how to read it: jsonl, txt, file, parquet or hf."""

    path: str
    kind: str

    def identity(self) -> list[Any]:
        """What changes when the content changes: path, size and modification time."""
        paths = sorted(p for p in Path(self.path).rglob('*') if p.is_file()) if self.kind == 'hf' else [Path(self.path)]
        stats = [(str(p), p.stat()) for p in paths]
        return [self.kind, [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]]

    def is_packed(self) -> bool:
        """Whether the size on disk says little about the size of the text."""
        return self.kind in ('parquet', 'hf') or self.path.lower().endswith(_COMPRESSED)


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


def find_sources(domain: Domain) -> list[Source]:
    """Lists the files of a domain, in reading order.

    Raises:
        ValueError: If a path does not exist, matches nothing, or its format cannot be told.
    """
    sources: list[Source] = []
    for path in domain.path:
        where = f'domains.{domain.name}: {path!r}'
        if os.path.isdir(path):
            sources += _find_in_folder(Path(path), domain, where)
        elif os.path.exists(path):
            sources.append(Source(path, _kind(path, domain, where)))
        elif globbing.has_magic(path):
            matches = sorted(p for p in globbing.glob(path, recursive=True) if os.path.isfile(p))
            if not matches:
                raise ValueError(f'{where} matches no file; check the pattern and the current folder')
            sources += [Source(match, _kind(match, domain, where)) for match in matches]
        else:
            raise ValueError(f'{where} does not exist; relative paths start at the current folder, {os.getcwd()}')
    return sources


def _find_in_folder(folder: Path, domain: Domain, where: str) -> list[Source]:
    is_saved_dataset = any((folder / marker).exists() for marker in _HF_MARKERS)
    if domain.format == 'hf' or (domain.format == 'auto' and is_saved_dataset):
        if not is_saved_dataset:
            raise ValueError(
                f'{where} is not a data set on disk (no {" or ".join(_HF_MARKERS)}); write one with '
                'datasets.Dataset.save_to_disk, or name another format'
            )
        return [Source(str(folder), 'hf')]
    found = (p for p in folder.glob(domain.glob or '**/*') if p.is_file())
    files = sorted(str(p) for p in found if not any(part.startswith('.') for part in p.relative_to(folder).parts))
    if not files:
        raise ValueError(f'{where} holds no file' + (f' that matches glob {domain.glob!r}' if domain.glob else ''))
    if domain.format == 'auto':
        records = [f for f in files if _ending(f) in ('jsonl', 'parquet') and not f.endswith('.json')]
        if not records:
            return [Source(f, 'txt' if _ending(f) == 'txt' else 'file') for f in files]
        if len(records) < len(files):
            other = next(f for f in files if f not in set(records))
            raise ValueError(
                f'{where} holds both record files ({records[0]}) and others ({other}); choose with glob, '
                "e.g. '**/*.jsonl', or set format: folder to take each file as one document"
            )
    return [Source(f, _kind(f, domain, where)) for f in files]


def _ending(path: str) -> str | None:
    name = os.path.basename(path).lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    return next((kind for kind, endings in _ENDINGS.items() if name.endswith(endings)), None)


def _kind(path: str, domain: Domain, where: str) -> str:
    if domain.format == 'folder':
        return 'file'
    if domain.format == 'hf':
        raise ValueError(f'{where} is a file; format hf reads a folder written by datasets.Dataset.save_to_disk')
    kind = domain.format if domain.format != 'auto' else _ending(path)
    if kind is None:
        raise ValueError(
            f'{where}: the format of {path} cannot be told from its name; set format to one of jsonl, '
            'txt, parquet, or folder (a file is a document)'
        )
    return kind


def open_binary(path: str) -> BinaryIO:
    """Opens a plain, ``.gz`` or ``.zst`` file for reading its content."""
    if path.lower().endswith('.gz'):
        return gzip.open(path, 'rb')
    if path.lower().endswith('.zst'):
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(path, compression='zstd'))
    return open(path, 'rb')


def read_pieces(domain: Domain, sources: list[Source], piece_bytes: int) -> Iterator[Piece]:
    """Reads a domain from beginning to end.

    Args:
        domain (Domain): For its text key, separator and split.
        sources (list[Source]): From :func:`find_sources`.
        piece_bytes (int): Where a piece grows past this it ends, at the end of a document.

    Raises:
        ValueError: If the text key or the split is not there, or a file is broken.
    """
    files: list[str] = []
    size = 0
    for source in sources:
        whole = source.kind == 'file' or (source.kind == 'txt' and domain.separator is None)
        if files and (not whole or size >= piece_bytes):
            yield Piece('files', files[0], 1, tuple(files), size)
            files, size = [], 0
        if whole:
            files.append(source.path)
            size += os.path.getsize(source.path)
        elif source.kind in ('jsonl', 'txt'):
            yield from _read_lines(source, domain, piece_bytes)
        else:
            yield from _read_columns(source, domain, piece_bytes)
    if files:
        yield Piece('files', files[0], 1, tuple(files), size)


def _read_lines(source: Source, domain: Domain, piece_bytes: int) -> Iterator[Piece]:
    kind, separator = ('json', b'\n') if source.kind == 'jsonl' else ('text', (domain.separator or '').encode())
    first, rest, checked = 1, bytearray(), False
    try:
        with open_binary(source.path) as file:
            while block := file.read(piece_bytes):
                unsearched = max(0, len(rest) - len(separator) + 1)
                rest += block
                if end := _last_end(rest, separator, unsearched):
                    data = bytes(rest[:end])
                    del rest[:end]
                    checked = checked or kind == 'text' or _check_text_key(data, source, domain)
                    yield Piece(kind, source.path, first, data, len(data))
                    first += data.count(separator)
    except (EOFError, zlib.error, OSError) as error:
        if getattr(error, 'errno', None) is not None:  # the system's own errors say enough
            raise
        raise ValueError(
            f'domains.{domain.name}: {source.path} is broken or truncated ({error}); fetch it again'
        ) from error
    if rest:
        if kind == 'json' and not checked:
            _check_text_key(bytes(rest), source, domain)
        yield Piece(kind, source.path, first, bytes(rest), len(rest))


def _last_end(data: bytearray, separator: bytes, start: int) -> int:
    """Where the last separator ends, 0 if there is none. Long ones are counted off from the left, since in a run of
    three newlines the blank line is the first two wherever the run is cut."""
    if len(separator) == 1:
        return data.rfind(separator, start) + 1
    end = 0
    while (found := data.find(separator, start)) >= 0:
        start = end = found + len(separator)
    return end


def _check_text_key(data: bytes, source: Source, domain: Domain) -> bool:
    """Looks at the first records of a file: a wrong text key should not cost a scan of everything."""
    if data.lstrip()[:1] == b'[':
        raise ValueError(f'domains.{domain.name}: {source.path} holds a JSON array; expected one object a line')
    records = []
    for line in data.split(b'\n', _LOOKED_AT)[:_LOOKED_AT]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    if records and not any(domain.text_key in record for record in records):
        raise _no_text(domain, source, records[0])
    return bool(records)


def _no_text(domain: Domain, source: Source, names: Any) -> ValueError:
    return ValueError(
        f'domains.{domain.name}: {source.path} has no {domain.text_key!r}, only {", ".join(names)}; set '
        'text_key to the one that holds the text'
    )


def _read_columns(source: Source, domain: Domain, piece_bytes: int) -> Iterator[Piece]:
    import pyarrow

    first, texts, size = 1, [], 0
    batches = _parquet_batches(source, domain) if source.kind == 'parquet' else _hf_batches(source, domain)
    try:
        for batch in batches:
            for text in batch:
                texts.append(text)
                size += len(text) if isinstance(text, str) else 1
                if size >= piece_bytes:
                    yield Piece('texts', source.path, first, tuple(texts), size)
                    first, texts, size = first + len(texts), [], 0
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f'domains.{domain.name}: {source.path} cannot be read ({error}); fetch it again') from error
    if texts:
        yield Piece('texts', source.path, first, tuple(texts), size)


def _parquet_batches(source: Source, domain: Domain) -> Iterator[list]:
    from pyarrow import parquet

    with parquet.ParquetFile(source.path, buffer_size=1 << 20) as file:
        if domain.text_key not in file.schema_arrow.names:
            raise _no_text(domain, source, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=256, columns=[domain.text_key]):
            yield batch.column(0).to_pylist()


def _hf_batches(source: Source, domain: Domain) -> Iterator[list]:
    import datasets

    dataset = datasets.load_from_disk(source.path)
    if isinstance(dataset, datasets.DatasetDict):
        names = list(dataset)
        if domain.hf_split is None and len(names) > 1:
            raise ValueError(f'domains.{domain.name}: {source.path} has the splits {", ".join(names)}; set hf_split')
        if domain.hf_split is not None and domain.hf_split not in names:
            raise ValueError(
                f'domains.{domain.name}.hf_split is {domain.hf_split!r}; {source.path} has {", ".join(names)}'
            )
        dataset = dataset[domain.hf_split or names[0]]
    if domain.text_key not in dataset.column_names:
        raise _no_text(domain, source, dataset.column_names)
    for batch in dataset.select_columns([domain.text_key]).iter(batch_size=256):
        yield batch[domain.text_key]
