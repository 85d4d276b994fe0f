"""What shards hold, compared with their index, the tokenizer and the run before training.

Whatever is told here would show up as a crash or, worse, as wrong tokens in the middle of a run. Shards that are not on
this machine yet are checked as far as their index tells; Streaming checks their hashes when it fetches them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from llmshearing.compat.streaming import MDSReader, Reader, get_hash
from llmshearing.data.lengths import check_sizes, local_bytes, token_sizes
from llmshearing.data.mds import check_ids, check_token_column, encodings_of
from llmshearing.data.stored_teacher import TeacherNote, check_index, read_column

__all__ = [
    'IDS_REMEDY',
    'check_lengths',
    'check_stored',
    'check_teacher',
    'check_tokens',
    'fingerprint',
    'first_sample',
    'name_sample',
    'naming_sample',
    'shard_path',
    'verify_shard',
]

HASHED_BYTES = 1 << 36
"""Hashes of a teacher's shards are compared before training where those on this machine have no more bytes."""
SAMPLED_ROWS = 16
"""Samples of each shard that are looked at where its hash is not."""
IDS_REMEDY = 'or token_encoding_type is wrong: prepare it again, or name what it was made with'


def verify_shard(shard: Reader, algorithm: str) -> None:
    """Compares a local shard with its hash in the index; shards that are fetched are checked by Streaming itself.

    Args:
        shard (Reader): The shard, on this machine.
        algorithm (str): Name of the hash, as ``validate_hash`` of Streaming.

    Raises:
        ValueError: If they differ, or the index has no such hash.
    """
    info, path = shard.file_pairs[0][0], shard_path(shard)
    if algorithm not in info.hashes:
        raise ValueError(f'validate_hash is {algorithm}, but the index of {path} has {sorted(info.hashes)} only.')
    content = np.memmap(path, np.uint8, 'r')  # gigabytes of which no rank is to hold a copy
    found = get_hash(algorithm, content)  # pyright: ignore[reportArgumentType]  # takes any buffer
    if found != info.hashes[algorithm]:
        raise ValueError(
            f'{path} is damaged: its {algorithm} is {found}, but its index says '
            f'{info.hashes[algorithm]}. Restore the file, or prepare the data again.'
        )


def fingerprint(shards: Sequence[Reader]) -> str:
    """What tells a domain's shards from others with as many samples: a hash of the sizes and hashes in its index.

    The same wherever the shards are kept and however they are compressed. Data whose index has no hashes
    (``hashes: []`` when it was written) is told apart by the sizes alone.
    """
    told = hashlib.sha256()
    for shard in shards:
        for raw, _ in shard.file_pairs:
            told.update(repr((len(shard), raw.bytes, sorted(raw.hashes.items()))).encode())
    return told.hexdigest()[:16]


def check_stored(
    domains: Mapping[str, Sequence[Any]],
    read_tokens: Callable[[Mapping[str, Any]], np.ndarray],
    max_seq_len: int,
    vocab_size: int,
) -> None:
    """Checks what can be known of domains' tokens before training: by the index, and by a sample of each shard here.

    Raises:
        ValueError: If a domain holds no ``tokens``, or ``tokens`` that do not fit.
    """
    for domain, shards in domains.items():
        columns = encodings_of(shards[0])
        if 'tokens' not in columns:
            found = 'raw text at a remote place' if 'text' in columns else f'the columns {sorted(columns)}'
            raise ValueError(
                f'Domain {domain!r} has {found}, but a column `tokens`, or `text` on this machine, is needed. Make '
                'one with llmshearing prepare.'
            )
        for shard in shards:
            check_token_column(f'Domain {domain!r}: {shard_path(shard)}', encodings_of(shard))
        shape = re.fullmatch(r'ndarray:\w+:([\d,]+)', columns['tokens'])
        if shape and shape.group(1) != str(max_seq_len):
            _refuse_length(f'Domain {domain!r} holds sequences of {shape.group(1)}', shape.group(1), max_seq_len)
        check_lengths(f'Domain {domain!r}', shards)
        for shard in shards:
            sample = first_sample(shard)
            if sample is not None:
                with naming_sample(f'Domain {domain!r}', shard, 0):
                    check_tokens(read_tokens(sample), max_seq_len, vocab_size)


def check_teacher(
    notes: Mapping[str, TeacherNote],
    domains: Mapping[str, Sequence[Reader]],
    read_tokens: Callable[[Mapping[str, Any]], np.ndarray],
    max_seq_len: int,
    part: int,
    parts: int,
) -> None:
    """Checks the teacher's column of all domains before training, as far as their shards are on this machine.

    Each domain's index is compared with its note; each shard is looked at by its first sample and its hash, or by some
    samples where it has none, or there are more than ``HASHED_BYTES``. Of the shards, this process takes ``part`` of
    ``parts``.

    Raises:
        ValueError: Naming the shard that is damaged, or whose column does not belong to its tokens or teacher.
    """
    here = []
    for domain, shards in domains.items():
        own = [shard for shard in shards if isinstance(shard, MDSReader)]
        check_index(domain, notes[domain], own, max_seq_len)
        here += [(domain, shard) for shard in own if len(shard) and os.path.isfile(shard_path(shard))]
    few = sum(shard.raw_data.bytes for _, shard in here) <= HASHED_BYTES
    for domain, shard in here[part::parts]:
        algorithm = min(shard.raw_data.hashes, default=None) if few else None
        samples = np.linspace(0, len(shard) - 1, 1 if algorithm else SAMPLED_ROWS, dtype=int)
        for number in np.unique(samples).tolist():
            sample = shard[number]
            where = partial(name_sample, f'Domain {domain!r}', shard, number)
            read_column(sample, read_tokens(sample), notes[domain], where)
        if algorithm:
            verify_shard(shard, algorithm)


def shard_path(shard: Reader) -> str:
    """Where a shard is, or will be, on this machine."""
    return os.path.join(shard.dirname, shard.split, shard.file_pairs[0][0].basename)


def check_lengths(where: str, shards: Sequence[MDSReader]) -> None:
    """Raises a ValueError for a sample of another length, as far as the shards are on this machine."""
    expected = None
    for shard in shards:
        data = local_bytes(shard) if shard.column_sizes.count(None) else None
        sizes = None if data is None else token_sizes(shard, data)
        expected = check_sizes(f'{where}: {shard_path(shard)}', sizes, expected)


def name_sample(where: str, shard: Reader, number: int) -> str:
    """Domain or loader, shard and number of a sample, for messages."""
    return f'{where}: sample {number} of {shard_path(shard)}'


@contextmanager
def naming_sample(where: str, shard: Reader, number: int) -> Iterator[None]:
    """Names domain or loader, shard and sample in what is wrong with the sample."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{name_sample(where, shard, number)}: {error}') from error


def check_tokens(tokens: np.ndarray, max_seq_len: int, vocab_size: int) -> None:
    """Raises if a stored sample is not what the model expects: so many tokens, with ids below the vocabulary's size.

    Raises:
        ValueError: If the length or an id does not fit.
    """
    if len(tokens) != max_seq_len:
        _refuse_length(f'it holds {len(tokens)}', len(tokens), max_seq_len)
    check_ids('it', tokens, vocab_size, IDS_REMEDY)


def _refuse_length(what: str, found: int | str, max_seq_len: int) -> None:
    raise ValueError(
        f'{what} tokens, but max_seq_len is {max_seq_len}. Set max_seq_len to {found}, or prepare the data again.'
    )


def first_sample(shard: Reader) -> dict[str, Any] | None:
    """The first sample of a shard, or None where it is not on this machine, unpacked, or has none."""
    return shard[0] if len(shard) and os.path.isfile(shard_path(shard)) else None
