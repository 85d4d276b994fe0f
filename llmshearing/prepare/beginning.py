"""The first documents of one text, for whoever looks at some text and prepares none.

The readers are those of ``prepare``: JSON lines, Parquet, saved data sets, plain text, told by their content. Of a file
that is one document, no more than is wanted is read, so a text may be of any size.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from llmshearing.data.mds import mds_folders
from llmshearing.prepare import worker
from llmshearing.prepare.contents import NOT_UTF8, open_binary, reading
from llmshearing.prepare.pieces import read_pieces
from llmshearing.prepare.sources import find_sources
from llmshearing.prepare.spec import Domain
from llmshearing.prepare.tokenizer import Encoder, TokenizerPlan
from llmshearing.utils.paths import expand_path, is_hidden, walk_files

__all__ = ['mds_or_text', 'open_encoder', 'read_beginning', 'read_passages']

PIECE = 2**20  # bytes read at once
PASSAGE = 4096  # characters

# What the readers advise who writes a spec for `prepare`, and what it is where a text is named by its path alone.
ADVICE = (
    ('domains.text: ', ''),
    ('set text_key to', 'set --text-key to'),
    (', or format: folder to take each file as a document', ''),
    (
        "choose with glob, e.g. '**/*.jsonl', or set format: folder to take each file as one document",
        "name files of one kind, e.g. 'FOLDER/**/*.jsonl'",
    ),
    (
        'set format to one of jsonl, txt, parquet, or folder (a file is a document)',
        'give it an ending that tells, such as .txt or .jsonl',
    ),
)


def mds_or_text(data: Path) -> tuple[list[Path], list[Path]]:
    """What ``--data`` holds: its MDS folders, or where there are none its files of text.

    Raises:
        ValueError: If there is no such file or folder.
    """
    if not data.exists():
        raise ValueError(f'--data {data}: no such file or folder.')
    folders = [data / folder for folder in mds_folders(data)] if data.is_dir() else []
    return folders, [] if folders else _text_files(data)


def _text_files(path: Path) -> list[Path]:
    """The file, or all files of a folder and of those linked in it, by name; hidden ones are left out."""
    if path.is_file():
        return [path]
    files = sorted(found for found in map(Path, walk_files(str(path))) if found.is_file())
    return [file for file in files if not is_hidden(file.relative_to(path).parts)]


def open_encoder(plan: TokenizerPlan) -> Encoder:
    """The encoder of a tokenizer, whose template writes the conversations that are read from then on."""
    worker.start(plan)
    return Encoder(plan.backend, plan.name)


def read_passages(option: str, path: str, text_key: str, limit: int) -> Iterator[str]:
    """The documents of :func:`read_beginning` in passages of :data:`PASSAGE` characters, without blank ones."""
    for document in read_beginning(option, path, text_key, limit):
        for start in range(0, len(document), PASSAGE):
            passage = document[start : start + PASSAGE]
            if not passage.isspace():
                yield passage


def read_beginning(option: str, path: str, text_key: str, limit: int) -> Iterator[str]:
    """Documents of a text, until they have enough bytes.

    Conversations are written by the tokenizer's template, for which :func:`open_encoder` must have been called.

    Args:
        option (str): Where the path was given, such as ``'--text'``, for messages.
        path (str): A file, or a folder of such.
        text_key (str): Field or column that holds the text.
        limit (int): Bytes after which no further piece is read.

    Raises:
        ValueError: For a file that is not there, or is no text in UTF-8 or UTF-16.
    """
    domain = Domain('text', (expand_path(option, path),), text_key=text_key)
    try:
        for source in find_sources(domain):
            if limit <= 0:
                return
            if source.kind in ('txt', 'file'):  # of any size, and a document as a whole
                document = _head_of(source.path, limit)
                limit -= len(document.encode())
                yield document
                continue
            for piece in read_pieces(domain, [source], PIECE):
                for document in worker.read_documents(piece, text_key, None):
                    if isinstance(document, worker.BadRecord):
                        raise ValueError(f'{document.path}, record {document.number}: {document.reason}')
                    yield document[0]
                limit -= piece.size
                if limit <= 0:
                    break
    except ValueError as error:
        reason = str(error)
        for for_a_spec, for_a_path in ADVICE:
            reason = reason.replace(for_a_spec, for_a_path)
        raise ValueError(f'{option} {path}: {reason}') from error


def _head_of(path: str, size: int) -> str:
    with reading(path), open_binary(path) as file:
        data = file.read(size)
    if b'\0' in data:
        raise ValueError('it holds NUL bytes: it is no text, or UTF-16 without a byte order mark')
    try:
        return codecs.getincrementaldecoder('utf-8')().decode(data)  # what is cut off at the end is left out
    except UnicodeDecodeError as error:
        raise ValueError(NOT_UTF8.format(error)) from error
