"""The three passes of `prepare` over one domain: scan, plan, tokenize. Each continues where its journal ends."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llmshearing.prepare.pack import Journal, read_journal
from llmshearing.prepare.pieces import read_pieces
from llmshearing.prepare.plan import BINS, Demand, TokenRate, choose, intervals, place, read_blocks
from llmshearing.prepare.pool import WorkerPool
from llmshearing.prepare.sources import Skipped, Source, find_sources
from llmshearing.prepare.spec import Domain, Spec
from llmshearing.prepare.tokenizer import TokenizerPlan
from llmshearing.prepare.worker import DOCUMENT, EXAMPLES, scan_piece, tokenize_piece

__all__ = ['VERSION', 'Context', 'Input', 'digest', 'find_input', 'plan', 'scan', 'tokenize', 'too_small']

log = logging.getLogger(__name__)

VERSION = 2  # of the journals; a change starts work afresh
_SCANNED = 3  # of what a scan notes; a change scans unfinished work again
ENOUGH = 0.5  # of a sample, by the measured tokens per byte: what is refused before anything is tokenized
_SAMPLE_BYTES = 2 << 20  # text of a domain that is tokenized to estimate tokens per byte


@dataclass
class Context:
    """What all passes need.

    Attributes:
        spec (Spec): The request.
        tokenizer (TokenizerPlan): How documents become ids.
        key (str): Hash of everything that decides the result.
        pool (WorkerPool): The workers.
        progress (bool): Whether to show bars on a terminal.
    """

    spec: Spec
    tokenizer: TokenizerPlan
    key: str
    pool: WorkerPool
    progress: bool

    def bar(self, **options: Any) -> tqdm:
        """A progress bar that shows on terminals only."""
        return tqdm(disable=None if self.progress else True, unit_scale=True, **options)


@dataclass
class Input:
    """A domain while it is worked on.

    Attributes:
        domain (Domain): Its part of the spec.
        sources (list[Source]): Its files.
        size (int): Their size in bytes.
        piece_bytes (int): Size of the pieces they are read in.
        key (str): Hash of the files' identities and of how they are read.
        skipped (Skipped): Paths that are not read.
        counts (dict[str, int]): Sums over the scan: documents, empty, bad, special, bytes.
        spelled (str | None): The first special token that a document spells, and where.
        sample (list[int]): Sums over the scan of :class:`llmshearing.prepare.worker.Scan`'s sample.
        ends (np.ndarray): Ends of the splits' intervals, [splits].
        chosen (list[int]): Documents in each interval, without duplicates.
        chosen_bytes (int): Their text in bytes.
        duplicates (int): Documents dropped because an earlier one has the same text.
    """

    domain: Domain
    sources: list[Source]
    size: int
    piece_bytes: int
    key: str
    skipped: Skipped = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    spelled: str | None = None
    sample: list[int] = field(default_factory=list)
    ends: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    chosen: list[int] = field(default_factory=list)
    chosen_bytes: int = 0
    duplicates: int = 0

    def scan_name(self, context: Context) -> str:
        """Name of the scan's journal (conversations and the measured tokens per byte depend on the tokenizer)."""
        tokenizer = context.tokenizer
        return f'{self.domain.name}-{digest([_SCANNED, self.key, tokenizer.fingerprint, tokenizer.chat_template])}'

    def scan_path(self, context: Context) -> Path:
        """File of the scan's ``DOCUMENT`` records."""
        return Path(context.spec.work) / f'{self.scan_name(context)}.documents.bin'

    def rate(self) -> TokenRate:
        """Tokens per byte, as measured in the scan.

        Raises:
            ValueError: If the tokenizer makes nothing of the text.
        """
        if not self.sample[0]:
            raise ValueError(
                f'the tokenizer makes no tokens of the text of domains.{self.domain.name}; use another '
                'tokenizer, or leave the domain out'
            )
        return TokenRate.measured(*self.sample)


def digest(value: Any) -> str:
    """A short hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def find_input(domain: Domain) -> Input:
    """Finds the files of a domain.

    Raises:
        ValueError: If there are none, or their format is unclear.
    """
    skipped: Skipped = {}
    sources = find_sources(domain, skipped)
    if skipped:
        reasons = '; '.join(f'{len(paths)} {reason}, such as {paths[0]}' for reason, paths in skipped.items())
        log.warning('domains.%s: not all files are read: %s', domain.name, reasons)
    identities = [source.identity() for source in sources]
    size = sum(size for _, files in identities for _, size, _ in files)
    reading = [identities, domain.text_key, domain.separator, domain.hf_split]
    # Smaller pieces for a smaller input, so that a small one still keeps all cores busy.
    return Input(domain, sources, size, min(max(size // 64, 1 << 18), 1 << 22), digest(reading), skipped)


class _Tally:
    """What a scan has counted so far: sums, and the first records that could not be read.

    Args:
        domain (str): Its name, for messages.
        limit (int): Unreadable records that it may have.
    """

    def __init__(self, domain: str, limit: int) -> None:
        self.domain, self.limit = domain, limit
        self.counts = dict.fromkeys(['documents', 'empty', 'bad', 'special', 'bytes'], 0)
        self.sample = [0] * 5
        self.examples: list[list] = []
        self.spelled: str | None = None

    def add(self, facts: dict[str, Any]) -> None:
        """Adds the facts of a piece, as the journal has them; raises a ValueError for too many unreadable records."""
        for name in self.counts:
            self.counts[name] += facts[name]
        self.sample = [sum(pair) for pair in zip(self.sample, facts['sample'])]
        self.examples.extend(facts['examples'][: EXAMPLES - len(self.examples)])
        for path, number, token in facts['spelled']:
            self.spelled = self.spelled or f'{path}, record {number}: {token}'
        if self.counts['bad'] > self.limit:
            shown = '; '.join(f'{path}, record {number}: {reason}' for path, number, reason in self.examples)
            raise ValueError(
                f'domains.{self.domain} has more unreadable records than max_bad_lines ({self.limit}); repair '
                f'them or raise max_bad_lines. The first: {shown}'
            )

    def tell(self) -> None:
        """Warns of the unreadable records of a whole domain; raises a ValueError where it has no document."""
        counts, examples = self.counts, self.examples
        if not counts['documents']:
            first = next((f'; the first, {path}, record {number}: {reason}' for path, number, reason in examples), '')
            raise ValueError(
                f'domains.{self.domain} has no document with text ({counts["empty"]} empty, {counts["bad"]} '
                f'unreadable{first}); check path and text_key, or leave the domain out'
            )
        if counts['bad'] > len(examples):
            log.warning(
                'domains.%s: %d records were unreadable and left out, %d were read. The first %d:',
                self.domain,
                counts['bad'],
                counts['documents'],
                len(examples),
            )
        for path, number, reason in examples:
            log.warning('domains.%s: skipped %s, record %s: %s', self.domain, path, number, reason)
        if counts['special']:
            log.warning(
                'domains.%s: %d of %d documents spell special tokens, which become control ids, as in transformers. '
                'The first: %s. That is right in text that a chat template wrote; elsewhere write them as < /s>.',
                self.domain,
                counts['special'],
                counts['documents'],
                self.spelled,
            )


def scan(item: Input, context: Context) -> None:
    """Hashes and counts all documents; fills ``item.counts`` and leaves ``DOCUMENT`` records in the journal.

    Raises:
        ValueError: If too many records are unreadable, or there is no document.
    """
    domain, work, name = item.domain, Path(context.spec.work), item.scan_name(context)
    tally = _Tally(domain.name, context.spec.max_bad_lines)
    journal = Journal(work, name, ['documents'])
    total = None if any(source.is_packed() for source in item.sources) else item.size
    bar = context.bar(total=total, unit='B', desc=f'scan {domain.name}')
    sample_bytes = max(1 << 13, _SAMPLE_BYTES * item.piece_bytes // max(item.size, 1))

    def tasks() -> Iterator[tuple[int, tuple]]:
        for number, piece in enumerate(read_pieces(domain, item.sources, item.piece_bytes)):
            if number >= journal.count:
                yield piece.size, (piece, domain.text_key, domain.separator, sample_bytes)

    try:
        for facts in read_journal(work, name):
            tally.add(facts)
        for size, result in context.pool.map(scan_piece, tasks()):
            sizes = result.documents['size']
            facts = {**result._asdict(), 'documents': len(sizes), 'bytes': int(sizes.sum())}
            tally.add(facts)
            journal.append([result.documents], **facts)
            bar.update(size)
    finally:
        bar.close()
        journal.close()
    tally.tell()
    item.counts, item.sample, item.spelled = tally.counts, tally.sample, tally.spelled


def plan(item: Input, context: Context, duplicate: np.ndarray) -> None:
    """Gives each split its interval; fills ``ends``, ``chosen``, ``chosen_bytes`` and ``duplicates`` of the item.

    Args:
        item (Input): A scanned domain.
        context (Context): For the splits and the seed.
        duplicate (np.ndarray): Nonzero where an earlier document has the same text, [documents].

    Raises:
        ValueError: If a split that is wanted would get no document.
    """
    spec, start = context.spec, 0
    size, size_squared, count = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS, np.int64)
    for block in read_blocks(item.scan_path(context)):
        fresh = block[duplicate[start : start + len(block)] == 0]
        start += len(block)
        bins = place(fresh['low'], spec.seed)
        size += np.bincount(bins, fresh['size'], BINS)
        size_squared += np.bincount(bins, fresh['size'].astype(float) ** 2, BINS)
        count += np.bincount(bins, minlength=BINS)
    item.duplicates = item.counts['documents'] - int(count.sum())
    budgets = [spec.budget(item.domain, split) for split in spec.splits]
    demands = [Demand(None if budget == 0 else split.fraction, budget) for split, budget in zip(spec.splits, budgets)]
    item.ends = intervals(demands, size, size_squared, item.rate(), spec.max_seq_len)
    item.chosen = np.diff(np.concatenate([[0], np.cumsum(count)])[np.concatenate([[0], item.ends])]).tolist()
    item.chosen_bytes = int(size[: item.ends[-1]].sum())
    sizes = np.diff(np.concatenate([[0], np.cumsum(size)])[np.concatenate([[0], item.ends])])
    for split, budget, chosen, split_bytes in zip(spec.splits, budgets, item.chosen, sizes):
        tokens = round(float(split_bytes) * item.rate().mean)
        if budget != 0 and (not chosen or tokens < ENOUGH * spec.max_seq_len):  # before hours of work
            raise too_small(item, split.name, tokens, spec)


def too_small(item: Input, split: str, tokens: int, spec: Spec) -> ValueError:
    """The error for a split of which not one sample can be made."""
    documents = item.counts['documents'] - item.duplicates
    if not documents:
        return ValueError(
            f'domains.{item.domain.name}: each of its {item.counts["documents"]} documents is a duplicate of one in an '
            'earlier domain, and a text goes to one domain only; leave this domain out, or list it first'
        )
    return ValueError(
        f'domains.{item.domain.name}: split {split!r} gets {tokens} tokens of {documents} distinct '
        f'documents in all, less than one sample of max_seq_len={spec.max_seq_len}; a document goes to '
        'one split only. Give the domain more or shorter documents, the split a larger share, or set '
        f'domains.{item.domain.name}.tokens.{split}: 0 to leave it out'
    )


def tokenize(item: Input, context: Context, duplicate: np.ndarray) -> tuple[Journal, list[int]]:
    """Tokenizes the chosen documents until the budgets are met.

    Args:
        item (Input): A planned domain.
        context (Context): For everything else.
        duplicate (np.ndarray): As in :func:`plan`.

    Returns:
        tuple[Journal, list[int]]: Journal with one file of ids per split, cut at the budget, and how many documents
        each split has (a document that is cut counts).
    """
    spec, domain, dtype = context.spec, item.domain, np.dtype(context.tokenizer.dtype)
    limits = [
        None if b is None else -(-b // spec.max_seq_len) * spec.max_seq_len
        for b in (spec.budget(domain, split) for split in spec.splits)
    ]
    work, name = Path(spec.work), f'{domain.name}-{context.key}'
    journal = Journal(work, name, [split.name for split in spec.splits])
    last = {'piece': -1, 'used': [0] * len(limits)}
    for last in read_journal(work, name):
        pass  # sums run on: the last line is what counts
    done, used = last['piece'], np.array(last['used'], np.int64)

    def full() -> bool:
        lengths = (length // dtype.itemsize for length in journal.lengths)
        return all(limit is not None and length >= limit for length, limit in zip(lengths, limits))

    def tasks() -> Iterator[tuple[int, tuple]]:
        pieces = read_pieces(domain, item.sources, item.piece_bytes)
        scanned = read_journal(work, item.scan_name(context))
        start = 0
        with open(item.scan_path(context), 'rb') as file:
            for number, (piece, facts) in enumerate(zip(pieces, scanned)):
                if full():
                    break
                documents = np.fromfile(file, DOCUMENT, facts['documents'])
                choice = choose(documents, duplicate[start : start + len(documents)] != 0, item.ends, spec.seed)
                start += len(documents)
                if number > done and (choice >= 0).any():
                    yield number, (piece, domain.text_key, domain.separator, documents, choice, len(limits))

    bar = context.bar(
        total=round(item.chosen_bytes * item.rate().mean),
        unit='tok',
        desc=f'tokenize {domain.name}',
        initial=sum(journal.lengths) // dtype.itemsize,
    )
    try:
        for number, result in context.pool.map(tokenize_piece, tasks()):
            arrays = []
            for index, (ids, lengths, limit) in enumerate(zip(result.ids, result.lengths, limits)):
                begin = journal.lengths[index] // dtype.itemsize
                room = len(ids) if limit is None else max(0, limit - begin)
                arrays.append(ids[:room])
                used[index] += np.count_nonzero(np.cumsum(lengths) - lengths < room)
            journal.append(arrays, piece=number, used=used.tolist())
            bar.update(sum(map(len, arrays)))
    finally:
        bar.close()
    return journal, used.tolist()
