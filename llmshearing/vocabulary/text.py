"""Text by domain: how often each token is in it, and passages held out to measure on.

``--data`` is what will be trained on: a file or folder of text (JSON lines, Parquet, plain text), each file a domain;
or what ``llmshearing prepare`` made of it with the source's tokenizer, each folder a domain. Passages do not cross
documents; every eighth of a domain is held out, and not counted, as long as there is room for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.data.fingerprint import check_tokenizer
from llmshearing.data.mds import check_ids, read_tokens
from llmshearing.prepare.beginning import mds_or_text, open_encoder, read_passages
from llmshearing.prepare.tokenizer import Encoder, TokenizerPlan

__all__ = ['READ_BYTES', 'DomainText', 'count_tokens', 'find_texts']

READ_BYTES = 64 * 10**6  # of each domain
EVERY = 8  # one passage of so many is held out
HELD_OUT_BYTES = 2**20  # of each domain; passages beyond are counted
AT_ONCE = 32  # passages


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

    def has_room(self) -> bool:
        """Whether more may be held out."""
        return self.size < HELD_OUT_BYTES

    def hold_out(self, passage: str) -> None:
        """Adds a held-out passage."""
        self.held_out.append(passage)
        self.size += len(passage.encode())


def find_texts(data: Path) -> dict[str, list[Path]]:
    """Files or MDS folders by name of their domain.

    Raises:
        ValueError: If there are none.
    """
    folders, files = mds_or_text(Path(data))
    found: dict[str, list[Path]] = {}
    for folder in folders:  # the same domain in several splits is one
        found.setdefault(folder.name, []).append(folder)
    for path in files:
        found.setdefault(path.name.partition('.')[0] or path.name, []).append(path)
    if not found:
        raise ValueError(f'--data {data}: the folder is empty; give text, or a folder of `llmshearing prepare`.')
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


def _count_text(domain: DomainText, passages: Iterator[str], encoder: Encoder) -> None:
    number = 0
    while some := list(islice(passages, AT_ONCE)):
        counted = []
        for passage in some:
            number += 1
            if number % EVERY == 0 and domain.has_room():
                domain.hold_out(passage)
            else:
                counted.append(passage)
        for ids in encoder.encode(counted):
            domain.counts += np.bincount(ids, minlength=len(domain.counts))
    if not domain.held_out and number:
        domain.hold_out(counted[-1])


def _count_prepared(domain: DomainText, folder: Path, tokenizer: Any, limit: int) -> None:
    seen, last = 0, None
    for number, ids in enumerate(read_tokens(folder), 1):
        check_ids(f'--data: {folder}', ids, len(domain.counts), 'give data of the source, or text')
        if number % EVERY == 0 and domain.has_room():
            domain.hold_out(_decoded(tokenizer, ids))
        else:
            domain.counts += np.bincount(ids, minlength=len(domain.counts))
            last = ids
        seen += 4 * len(ids)  # bytes of text, about
        if seen > limit:
            break
    if not domain.held_out and last is not None:
        domain.hold_out(_decoded(tokenizer, last))


def _decoded(tokenizer: Any, ids: np.ndarray) -> str:
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
