"""What is in a file, by its first bytes: names are a hint at best.

Data sets are published as JSON lines in ``.json``, compressed without an ending, with a byte order mark, or in UTF-16.
Taken by its name such a file becomes text with JSON syntax, or nothing. So compression and encoding are read from the
content wherever a file is opened, and whether it holds records is decided by looking at the first of them.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

__all__ = [
    'NOT_UTF8',
    'NO_TEXT',
    'WRAP',
    'Content',
    'is_compressed',
    'json_values',
    'look_into',
    'open_binary',
    'reading',
]

HEAD = 1 << 16  # bytes looked at; as many more as the first record needs, up to MOST
MOST = 1 << 26
_MAGIC = {b'\x1f\x8b': 'gzip', b'\x28\xb5\x2f\xfd': 'zstd', b'BZh': 'bz2', b'\xfd7zXZ\x00': 'xz'}
# pzstd adds frames of its own.
_MAGIC |= {bytes([first]) + b'\x2a\x4d\x18': 'zstd' for first in range(0x50, 0x60)}
_MARKS = {  # byte order marks; the longer ones first, as one begins with the other
    codecs.BOM_UTF32_LE: 'utf-32',
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}
NO_TEXT = (
    'it holds NUL bytes: it is no text, or UTF-16 without a byte order mark; unpack an archive, and write other '
    'formats as Parquet or JSON lines'
)
NOT_UTF8 = 'it is not UTF-8 ({}); convert it, with iconv -f latin1 -t utf-8 for example'
WRAP = (
    "write each as a record, for example with jq -c '{{{}: (.[]? // .)}}' FILE > FILE.jsonl"  # to name the text key in
)
_LONGEST_VALUE = 1 << 28  # characters of one value in a JSON list


class Content(NamedTuple):
    """What a file holds.

    Attributes:
        kind (str): ``parquet``, ``jsonl`` (a JSON record a line), ``json`` (records in a list, or over several lines),
            ``strings`` (a JSON list of them), ``text``, ``binary`` (with NUL bytes), or ``empty``.
        record (dict | None): The first record, if it is JSON and could be read.
    """

    kind: str
    record: dict[str, Any] | None = None


def is_compressed(path: str) -> str | None:
    """The compression of a file by its first bytes: gzip, zstd, bz2 or xz; ``None`` if there is none."""
    with open(path, 'rb') as file:
        head = file.read(6)
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    return None if found == 'bz2' and not head[3:4].isdigit() else found


def open_binary(path: str) -> BinaryIO:
    """Opens a file for reading its content as UTF-8: decompressed, without byte order mark, UTF-16 and 32 recoded."""
    compression = is_compressed(path)
    if compression == 'zstd':
        import pyarrow

        stream = io.BufferedReader(pyarrow.input_stream(path, compression='zstd'))
    elif compression is not None:
        stream = io.BufferedReader({'gzip': gzip.open, 'bz2': bz2.open, 'xz': lzma.open}[compression](path, 'rb'))
    else:
        stream = open(path, 'rb')
    head = stream.peek(4)[:4]
    if head.startswith(codecs.BOM_UTF8):
        stream.read(3)
    encoding = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
    return stream if encoding is None else io.BufferedReader(_Recoded(stream, encoding))


class _Recoded(io.RawIOBase):
    """The text of a stream, as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._text = io.TextIOWrapper(stream, encoding, newline='')
        self._rest = b''

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or self._text.read(max(1, len(buffer) // 4)).encode('utf-8')
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._text.close()
        super().close()


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns what the libraries raise for a file that is broken into one ValueError with its name."""
    try:
        yield
    except UnicodeError as error:
        raise ValueError(f'{path} is not the UTF-16 or UTF-32 its byte order mark says ({error})') from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if getattr(error, 'errno', None) is not None:  # the system's own errors say enough
            raise
        if 'too much memory' in str(error):
            raise ValueError(
                f'{path} was compressed with a window of more than 128 MB (zstd --long); decompress it with '
                f'`zstd -d --long=31`, or compress it again with --long=27 at most'
            ) from error
        if isinstance(error, gzip.BadGzipFile) and 'Not a gzipped file' in str(error):  # its beginning was one
            raise ValueError(
                f'{path} holds other bytes after its gzip data; write it again without them: '
                'gzip -dc FILE.gz > FILE (it warns of them and leaves them out)'
            ) from error
        raise ValueError(f'{path} is broken or truncated ({error}); fetch it again') from error


def look_into(path: str) -> Content:
    """Tells what a file holds.

    Raises:
        ValueError: If it is compressed and broken.
    """
    try:
        with reading(path), open_binary(path) as file:
            head, more = file.read(HEAD), file.read(1)
            content = _content_of(head, bool(more))
            while more and content.kind in ('jsonl', 'json') and content.record is None and len(head) < MOST:
                head, more = head + more + file.read(len(head)), file.read(1)
                content = _content_of(head, bool(more))
            return content
    except ValueError as error:
        if isinstance(error.__cause__, UnicodeError):  # told of the document, should the file be taken as one
            return Content('text')
        raise


def _content_of(head: bytes, cut: bool) -> Content:
    """What begins so; ``cut`` where there is more of it."""
    if head.startswith(b'PAR1'):
        return Content('parquet')
    text = head.decode('utf-8', 'ignore').lstrip()
    if not text and not cut:
        return Content('empty')
    lines = text.split('\n')[: -1 if cut else None]
    if text.startswith('{'):
        first = _first_value(lines[0]) if lines else None
        if isinstance(first, dict) or not lines:  # or a first line that is longer than the head
            return Content('jsonl', first)
        spread = _first_value(text)
        if isinstance(spread, dict) or lines[0].strip() == '{':
            return Content('json', spread)
        records = (value for value in map(_first_value, lines[1:]) if isinstance(value, dict))
        if (record := next(records, None)) is not None:  # the first line is broken
            return Content('jsonl', record)
    elif text.startswith('['):
        inside = text[1:].lstrip()
        if isinstance(_first_value(inside), str):
            return Content('strings')
        if inside.startswith('{'):
            first = _first_value(inside)
            if first is not None or cut:
                return Content('json', first)
    return Content('binary' if b'\0' in head else 'text')


def _first_value(text: str) -> Any:
    """The JSON value that a text begins with; ``None`` if it is none or cut off."""
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[0]
    except (ValueError, RecursionError):
        return None


def json_values(file: BinaryIO, path: str) -> Iterator[bytes]:
    """The values of a JSON list, or those that follow each other in a file, each on one line.

    Raises:
        ValueError: Where the file is no JSON, with the number of the value.
    """
    decode = codecs.getincrementaldecoder('utf-8')('surrogateescape').decode
    scan, text, at, count, ended = json.JSONDecoder().raw_decode, '', 0, 0, False
    is_list = closed = False
    while True:
        while at < len(text) and text[at] in ' \t\r\n,[]':
            is_list |= text[at] == '['
            closed |= text[at] == ']'
            at += 1
        value = problem = None
        try:
            value = scan(text, at) if at < len(text) else None
        except (ValueError, RecursionError) as error:
            problem = error
        if value is not None and (value[1] < len(text) or ended):  # a number may go on
            count += 1
            yield text[at : value[1]].encode('utf-8', 'surrogateescape').replace(b'\n', b' ').replace(b'\r', b' ')
            at = value[1]
            continue
        if ended or len(text) - at > _LONGEST_VALUE:
            if problem is not None or (is_list and not closed):
                reason = problem or 'the list does not end'
                raise ValueError(f'{path} is broken after {count} records ({reason}); repair it, or fetch it again')
            return
        block = file.read(max(HEAD, len(text) - at))
        ended = not block
        text, at = text[at:] + decode(block, ended), 0
