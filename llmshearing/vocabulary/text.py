"""Text by domain: how often each token is in it, and passages held out to measure on.

``--data`` is what will be trained on: a file or folder of text (JSON lines, Parquet, plain text), each file a domain;
or what ``llmshearing prepare`` made of it with the source's tokenizer, each folder a domain. Passages do not cross
documents; every eighth of a domain is held out, and not counted, as long as there is room for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llmshearing.data.fingerprint import check_tokenizer
from llmshearing.data.mds import check_ids, read_tokens
from llmshearing.prepare.beginning import mds_or_text, open_encoder, read_passages
from llmshearing.prepare.tokenizer import Encoder, TokenizerPlan

__all__ = ['READ_BYTES', 'DomainText', 'count_tokens', 'find_texts']

READ_BYTES = 64 * 10**6  # of each domain
EVERY = 8  # one passage of so many is held out
HELD_OUT_BYTES = 2**20  # of each domain; passages beyond are counted
AT_ONCE = 32  # passages that are tokenized
BYTES_OF_A_TOKEN = 4  # of text, about

Passage = TypeVar('Passage', str, np.ndarray)  # as text, or as token ids


@dataclasses.dataclass
class DomainText:
    """What was seen of one domain.

    Attributes:
        name (str): The file's or folder's.
        counts (np.ndarray): How often each id is in the counted passages, int64 [ids].
        held_out (list[str]): Passages that were not counted. Of a domain of few passages it is the last one, which was.
        size (int): Bytes of the held-out passages in UTF-8.
    """

    name: str
    counts: np.ndarray
    held_out: list[str] = dataclasses.field(default_factory=list)
    size: int = 0

    def count(self, ids: np.ndarray) -> None:
        """Counts the ids of a passage."""
        self.counts += np.bincount(ids, minlength=len(self.counts))

    def divide(self, passages: Iterable[Passage], as_text: Callable[[Passage], str]) -> Iterator[Passage]:
        """Yields the passages to be counted, and holds out the others: every eighth, while there is room.

        Where none was held out, the last one is, too.
        """
        last = None
        for number, passage in enumerate(passages, 1):
            if number % EVERY == 0 and self.size < HELD_OUT_BYTES:
                self.hold_out(as_text(passage))
            else:
                last = passage
                yield passage
        if not self.held_out and last is not None:
            self.hold_out(as_text(last))

    def hold_out(self, passage: str) -> None:
        """Adds a held-out passage."""
        self.held_out.append(passage)
        self.size += len(passage.encode())


def find_texts(data: Sequence[Path | str]) -> dict[str, list[Path]]:
    """Files or MDS folders by name of their domain.

    Raises:
        ValueError: If there are none.
    """
    found: dict[str, list[Path]] = {}
    for place in data:
        folders, files = mds_or_text(Path(place))
        if not folders and not files:
            raise ValueError(f'--data {place}: the folder is empty; give text, or a folder of `llmshearing prepare`.')
        for folder in folders:  # the same domain in several splits is one
            found.setdefault(folder.name, []).append(folder)
        for path in files:
            found.setdefault(path.name.partition('.')[0] or path.name, []).append(path)
    return found


def count_tokens(
    texts: dict[str, list[Path]], tokenizer: Any, plan: TokenizerPlan, text_key: str = 'text', limit: int = READ_BYTES
) -> list[DomainText]:
    """Counts the source's tokens on each domain, reading at most ``limit`` bytes of it.

    ``texts`` are as :func:`find_texts` gives them; ``plan`` is of the tokenizer, for encoding.

    Raises:
        ValueError: For text that cannot be read, or data that another tokenizer prepared.
    """
    encoder = open_encoder(plan)
    prepared = [(str(path), None) for paths in texts.values() for path in paths if path.is_dir()]
    check_tokenizer(tokenizer, prepared)
    found = []
    for name, paths in texts.items():
        domain = DomainText(name, np.zeros(plan.size, np.int64))
        for path in paths:
            if path.is_dir():
                _count_prepared(domain, path, tokenizer, limit // len(paths))
            else:
                _count_text(domain, read_passages('--data', str(path), text_key, limit), encoder)
        if not domain.counts.any():
            raise ValueError(f'--data: {paths[0]} holds no text.')
        found.append(domain)
    return found


def _count_text(domain: DomainText, passages: Iterable[str], encoder: Encoder) -> None:
    counted = domain.divide(passages, str)
    while some := list(islice(counted, AT_ONCE)):
        for ids in encoder.encode(some):
            domain.count(ids)


def _count_prepared(domain: DomainText, folder: Path, tokenizer: Any, limit: int) -> None:
    def decoded(ids: np.ndarray) -> str:
        return tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    for ids in domain.divide(_read_checked(folder, len(domain.counts), limit), decoded):
        domain.count(ids)


def _read_checked(folder: Path, vocabulary: int, limit: int) -> Iterator[np.ndarray]:
    """Token sequences of an MDS folder that stand for about ``limit`` bytes of text."""
    size = 0
    for ids in read_tokens(folder):
        check_ids(f'--data: {folder}', ids, vocabulary, 'give data of the source, or text')
        yield ids
        size += BYTES_OF_A_TOKEN * len(ids)
        if size > limit:
            return
