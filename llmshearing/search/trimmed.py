"""A search of a source with fewer tokens, which is trimmed first, on the text of the search, into the search's folder.

``vocab_size`` is no axis of a cut, since tokenizer and data change with it. So a pinned one makes another source, once
and by the rules of ``trim-vocab``, and all else is a search of that one. Losses per token of two vocabularies do not
compare, those per byte of text do; a result tells both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from llmshearing.search.settings import SearchSettings
from llmshearing.utils.locks import hold_lock
from llmshearing.vocabulary.settings import TrimSettings
from llmshearing.vocabulary.trim_source import trim_source

__all__ = ['trimmed_source', 'without_vocabulary']


def without_vocabulary(settings: SearchSettings) -> tuple[int | None, SearchSettings]:
    """The pinned number of tokens, None where there is none, and the settings of a search of such a source."""
    pins = dict(settings.pins)
    return pins.pop('vocab_size', None), dataclasses.replace(settings, pins=pins)


def trimmed_source(
    source: str | Path,
    size: int,
    text: Sequence[str | Path],
    text_key: str,
    output: Path,
    report: Callable[[str], None],
) -> Path:
    """The folder of the source with fewer tokens, made where it is missing; of several processes one makes it.

    Args:
        source (str | Path): Folder of the source.
        size (int): Tokens that stay.
        text (Sequence[str | Path]): To count tokens on, each file a domain.
        text_key (str): Field or column that holds the text.
        output (Path): Folder of the search.
        report (Callable): Receives a line now and then.

    Raises:
        ValueError: For what :func:`~llmshearing.vocabulary.trim_source.trim_source` refuses.
    """
    folder = output / f'trimmed-{size}'
    output.mkdir(parents=True, exist_ok=True)
    with hold_lock(output / f'trimmed-{size}.lock', wait=True):
        if not folder.exists():
            try:
                trim_source(source, folder, TrimSettings(size, 1, text_key=text_key), text, report=report)
            except ValueError as error:
                raise ValueError(f'--pin vocab_size={size}: {error}') from error
    return folder
