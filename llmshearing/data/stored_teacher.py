"""A teacher's column beside its tokens: what the index says of it, and whether the two belong together.

``llmshearing teach`` leaves a note in each folder's ``index.json``, under a key that Streaming passes over, so that it
comes along wherever the index goes. Each sample carries, in the column ``teacher_of``, a hash of its tokens, of who
taught them and of the column; it is compared whenever a sample is served. Notes of version 1 are of data in which it is
a hash of the first two, as it still is where work that an older version began was finished. Plain readers see two more
columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmshearing.compat.streaming import MDSReader
from llmshearing.data.fingerprint import describe_tokenizer
from llmshearing.data.mds import encodings_of
from llmshearing.data.teacher_column import KINDS, ColumnFormat
from llmshearing.utils.files import load_json

__all__ = [
    'NOTE',
    'TEACHER',
    'TEACHER_OF',
    'BesideTokens',
    'TeacherNote',
    'check_index',
    'check_same_teacher',
    'check_shards',
    'check_vocabulary',
    'read_column',
    'read_note',
    'shard_mark',
    'tag_of',
]

TEACHER, TEACHER_OF = 'teacher', 'teacher_of'
"""Names of the columns: bytes per token, and the hash of what they belong to."""
NOTE = 'teacher'  # in index.json, and in a batch
VERSIONS = (1, 2)  # that are read; the last one is written


@dataclass(frozen=True)
class TeacherNote:
    """What an index says of its teacher's column.

    Attributes:
        key (str): Hash of the teacher and of everything that decides the bytes, the same for all folders of one call.
        teacher (str): Name of the teacher's folder.
        teacher_hash (str): Of its config and weights.
        kind (str): ``draws`` or ``top_k``.
        count (int): Tokens kept per position.
        vocab_size (int): Tokens that the distribution is over.
        temperature (float): By which the teacher's logits were divided.
        seed (int): Of the draws.
        bytes_per_token (int): Size of the column.
        vocabulary (Mapping[str, Any]): ``vocab_size`` and ``vocabulary`` of the data's tokenizer, see
            :func:`~llmshearing.data.fingerprint.describe_tokenizer`.
        data (str): Fingerprint of the shards that were taught, see :func:`~llmshearing.data.shard_checks.fingerprint`.
        shards (Mapping[str, str]): :func:`shard_mark` of each shard that was written, by file name.
    """

    key: str
    teacher: str
    teacher_hash: str
    kind: str
    count: int
    vocab_size: int
    temperature: float
    seed: int
    bytes_per_token: int
    vocabulary: Mapping[str, Any]
    data: str
    shards: Mapping[str, str]

    @property
    def format(self) -> ColumnFormat:
        """How the column's bytes are to be read."""
        return ColumnFormat(self.kind, self.count, self.vocab_size)

    def to_json(self) -> dict[str, Any]:
        """What stands in the index."""
        return {'version': VERSIONS[-1], **asdict(self)}


def read_note(folder: str | Path) -> TeacherNote | None:
    """The note in the index of an MDS folder on this machine; None where there is none.

    Raises:
        ValueError: If it is none that this version reads.
    """
    path = Path(folder) / 'index.json'
    found = load_json(path).get(NOTE) if path.is_file() else None
    if found is None:
        return None
    try:
        note = TeacherNote(**{name: found[name] for name in TeacherNote.__dataclass_fields__})
        if found['version'] not in VERSIONS or note.kind not in KINDS or note.bytes_per_token != note.format.width:
            raise ValueError('of another version')
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its note of a teacher's column cannot be read ({error}); make the column again with "
            'llmshearing teach.'
        ) from error
    return note


def shard_mark(samples: int, size: int, hashes: Mapping[str, str]) -> str:
    """What tells a shard from others by its index: a hash of its samples, its bytes and the hashes of those."""
    return hashlib.sha256(repr((samples, size, sorted(hashes.items()))).encode()).hexdigest()[:16]


def tag_of(tokens: np.ndarray, key: str, column: np.ndarray | None = None) -> np.uint64:
    """Hash of a sample's tokens, of who taught them and of the column.

    Args:
        tokens (np.ndarray): Whole numbers [length].
        key (str): Of the note.
        column (np.ndarray | None): uint8 [length, bytes per token]. Default: the hash of the first two.
    """
    digest = hashlib.blake2b(np.ascontiguousarray(tokens, '<u4').data, digest_size=8, key=key.encode())
    if column is not None:
        digest.update(np.ascontiguousarray(column).data)
    return np.uint64(int.from_bytes(digest.digest(), 'little'))


def read_column(sample: Mapping[str, Any], tokens: np.ndarray, note: TeacherNote, where: Callable[[], str]) -> Tensor:
    """The bytes of a sample's column, uint8 [length, bytes per token].

    Args:
        sample (Mapping[str, Any]): As it is stored.
        tokens (np.ndarray): Its tokens [length].
        note (TeacherNote): Of its folder.
        where (Callable): Names the sample, for the message.

    Raises:
        ValueError: If it was made of other tokens, by another teacher or with other settings, has changed since, or
            holds what cannot be.
    """
    column, tag = sample[TEACHER], sample[TEACHER_OF]
    if tag != tag_of(tokens, note.key, column) and tag != tag_of(tokens, note.key):
        raise ValueError(
            f"{where()}: the teacher's column does not belong to its tokens, is of another teacher than its index says "
            f'({note.teacher}, {note.key}), or has changed; restore the shard, or run llmshearing teach again.'
        )
    rows = torch.from_numpy(column.copy())
    fits = rows.shape == (len(tokens), note.bytes_per_token)
    fault = note.format.fault(rows) if fits else f'{tuple(rows.shape)} bytes'
    if fault is not None:
        raise ValueError(
            f"{where()}: the teacher's column holds {fault}; restore the shard, or run llmshearing teach again."
        )
    return rows


def check_shards(where: Any, note: TeacherNote, shards: Sequence[MDSReader]) -> None:
    """Compares the shards that an index lists with those that its note was written for.

    Raises:
        ValueError: Naming a shard that is missing, was added or is another one.
    """
    found = {s.raw_data.basename: shard_mark(s.samples, s.raw_data.bytes, s.raw_data.hashes) for s in shards}
    for name in sorted({*found, *note.shards}):
        if found.get(name) != note.shards.get(name):
            what = 'is missing' if name not in found else 'is not the one that the teacher was run on'
            raise ValueError(
                f"{where}: shard {name} of its index {what}, by the note of the teacher's column; restore the folder, "
                'or run llmshearing teach again.'
            )


def check_same_teacher(notes: Mapping[str, TeacherNote | None]) -> dict[str, TeacherNote]:
    """The notes of all domains by name, whose teacher and settings must be one.

    Raises:
        ValueError: Naming a domain without a column, or two that differ.
    """
    missing = [name for name, note in notes.items() if note is None]
    if missing:
        raise ValueError(
            f"Domain {missing[0]!r} has no teacher's column, which distillation with stored: true needs; add one with "
            'llmshearing teach and train on its output, or name a live teacher instead.'
        )
    known = {name: note for name, note in notes.items() if note is not None}
    first = next(iter(known))
    for name, note in known.items():
        if note.key != known[first].key:
            raise ValueError(
                f'Domains {first!r} and {name!r} were taught by different teachers or with different settings '
                f'({known[first].teacher}, {known[first].key}; {note.teacher}, {note.key}); teach them in one call of '
                'llmshearing teach.'
            )
    return known


def check_vocabulary(note: TeacherNote, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises a ValueError where the data that was taught is of another tokenizer than a run's."""
    size, own = note.vocabulary['vocab_size'], describe_tokenizer(tokenizer)
    if own['vocab_size'] != size or own['vocabulary'] != note.vocabulary['vocabulary']:
        raise ValueError(
            f"The teacher's column is of data with another tokenizer ({size} ids, hash "
            f'{note.vocabulary["vocabulary"]}) than the one here, {tokenizer.name_or_path!r} '
            f'({own["vocab_size"]} ids, hash {own["vocabulary"]}); use that tokenizer, or prepare and teach the '
            'data with this one.'
        )


def check_index(domain: str, note: TeacherNote, shards: Sequence[MDSReader], length: int) -> None:
    """Raises a ValueError where an index lists other shards, of samples so long, than its note was written for."""
    check_shards(f'Domain {domain!r}', note, shards)
    wanted = note.format.encoding(length)
    for shard in shards:
        encoding = encodings_of(shard).get(TEACHER)
        if encoding != wanted:
            raise ValueError(
                f"Domain {domain!r}: shard {shard.raw_data.basename} has the teacher's column {encoding}, expected "
                f'{wanted}; run llmshearing teach again.'
            )


class BesideTokens:
    """Collator that puts the teacher's bytes beside what another makes of the tokens.

    Args:
        base_collator (Callable): From token sequences to a batch.
    """

    def __init__(self, base_collator: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.base_collator = base_collator

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """The other's batch with ``teacher``, uint8 [batch, length, bytes per token]."""
        batch = self.base_collator([example['tokens'] for example in examples])
        batch[NOTE] = torch.stack([example[TEACHER] for example in examples])
        return batch
