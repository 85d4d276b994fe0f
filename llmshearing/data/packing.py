"""Raw text in an MDS folder, packed as ``prepare`` packs: documents end to end, each with its end token.

Read as it is, each document is cut at the sequence length, and nothing says where it ends: of long documents most is
never seen. So a small folder is packed beside itself before the run, once. Packing is tokenizing, and what takes longer
than a moment belongs before the run, to ``llmshearing prepare``, which reads such folders; it is refused here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter, Stream
from transformers import PreTrainedTokenizerBase

from llmshearing.compat.streaming import distributed
from llmshearing.compat.tokenizers import plain_ids, special_in_text
from llmshearing.data.fingerprint import describe_tokenizer
from llmshearing.data.mds import read_index, read_rows
from llmshearing.data.streams import DomainStream, stream_folder
from llmshearing.utils.locks import hold_lock
from llmshearing.utils.paths import check_mds_index

__all__ = ['RowPacker', 'holds_text', 'pack_text', 'packed_folder', 'packed_stream', 'separators', 'share_cut_off']

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 28  # about a minute of tokenizing
LEFT_BEHIND = 86400  # seconds after which nobody is at it any more
_LOOKED_AT = 200  # documents
_BATCH = 256  # documents tokenized at once


class RowPacker:
    """Cuts ids that follow each other into rows of ``length``, [rows, length]; the ``rest`` begins the next row."""

    def __init__(self, length: int, dtype: str = 'int64'):
        self.length, self.rest = length, np.empty(0, dtype)

    def add(self, ids: Sequence[int]) -> np.ndarray:
        """The rows that are full with these ids."""
        joined = np.concatenate([self.rest, np.asarray(ids, self.rest.dtype)])
        full = len(joined) - len(joined) % self.length
        self.rest = joined[full:]
        return joined[:full].reshape(-1, self.length)


def separators(
    tokenizer: PreTrainedTokenizerBase, bos: bool | None = None, eos: bool | None = None
) -> tuple[int | None, int | None]:
    """Decides which ids stand before and after each document.

    Args:
        tokenizer (PreTrainedTokenizerBase): Asked what it puts around a text by itself.
        bos (bool | None): The user's word; ``None`` leaves it to the tokenizer.
        eos (bool | None): The same for the end. When nothing would stand between two documents, ``None`` adds it.

    Returns:
        tuple[int | None, int | None]: Beginning id and end id, ``None`` for none.

    Raises:
        ValueError: If a token is wanted that the tokenizer does not define, or it makes no tokens.
    """
    begin: Any = tokenizer.bos_token_id
    end: Any = tokenizer.eos_token_id
    ids = tokenizer('text', add_special_tokens=True)['input_ids']
    if not ids:
        raise ValueError(
            f'the tokenizer in {tokenizer.name_or_path} ({type(tokenizer).__name__}) makes no token of the word '
            '"text": its files do not belong together; put those of the model there'
        )
    adds_bos = begin is not None and ids[0] == begin
    adds_eos = end is not None and ids[-1] == end
    bos = adds_bos if bos is None else bos
    eos = (adds_eos or not bos) if eos is None else eos
    for name, wanted, token_id in (('bos', bos, begin), ('eos', eos, end)):
        if wanted and token_id is None:
            raise ValueError(
                f'{name} is wanted between documents but the tokenizer has no {name} token; name one in its '
                f'tokenizer_config.json ("{name}_token"), or set {name}: false in the spec of `llmshearing prepare`'
            )
    return (begin if bos else None), (end if eos else None)


def holds_text(folder: str | Path) -> bool:
    """Whether a local MDS folder holds raw text and no tokens.

    Raises:
        ValueError: If its text is no string, which only ``prepare`` reads.
    """
    path = Path(folder, 'index.json')
    shards = check_mds_index(path) if path.is_file() else []
    columns = dict(zip(shards[0].get('column_names', []), shards[0].get('column_encodings', []))) if shards else {}
    if 'tokens' in columns or 'text' not in columns:
        return False
    if columns['text'] != 'str':
        raise ValueError(
            f'{folder} holds its text as {columns["text"]}, and not as str; `llmshearing prepare` reads it, with '
            'text_key for a field inside.'
        )
    return True


def share_cut_off(folder: str | Path, tokenizer: PreTrainedTokenizerBase, max_seq_len: int) -> float:
    """Share of the tokens of a folder's first documents that is lost where each is cut at the sequence length."""
    texts = (row['text'] for reader in read_index(folder) for row in read_rows(folder, reader))
    lengths = np.array([len(ids) for ids in plain_ids(tokenizer, list(islice(texts, _LOOKED_AT)))])
    return np.maximum(lengths - max_seq_len, 0).sum() / max(lengths.sum(), 1)


def packed_stream(domain: str, stream: Stream, tokenizer: PreTrainedTokenizerBase, max_seq_len: int) -> Stream:
    """The stream of a domain; where it holds raw text, that of its packed form, made by the node's first rank.

    Every rank must ask.

    Raises:
        ValueError: As :func:`packed_folder` and :func:`pack_text`.
    """
    folder = stream_folder(stream)
    if stream.remote or not holds_text(folder):
        return stream
    packed = packed_folder(domain, folder, tokenizer, max_seq_len)
    if distributed.get_local_rank() == 0:
        pack_text(folder, packed, tokenizer, max_seq_len)
    distributed.barrier()
    return DomainStream(local=str(packed))


def packed_folder(domain: str, folder: str | Path, tokenizer: PreTrainedTokenizerBase, max_seq_len: int) -> Path:
    """Where the packed form of a folder of raw text is, or is to be: hidden, inside it.

    The name says what it was packed from and with, so that it is used again only for the same.

    Raises:
        ValueError: If there is too much text to pack now, or the folder cannot be written, with the share of the tokens
            that would be lost unpacked.
    """
    folder = Path(folder)
    index = (folder / 'index.json').read_bytes()
    identity = [hashlib.sha256(index).hexdigest(), describe_tokenizer(tokenizer), separators(tokenizer), max_seq_len]
    out = folder / f'.packed-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}'
    size = sum(shard['raw_data']['bytes'] for shard in json.loads(index)['shards'])
    if (out / 'index.json').exists():
        return out
    reason = f'holds {size / 1e9:.2g} GB of raw text' if size > MOST_BYTES else None
    if not os.access(folder, os.W_OK):
        reason = f'holds raw text, and {folder} cannot be written to pack it there'
    if reason is not None:
        lost = share_cut_off(folder, tokenizer, max_seq_len)
        raise ValueError(
            f'Domain {domain!r} {reason}: unpacked, {lost:.0%} of its tokens would be cut off at max_seq_len='
            f'{max_seq_len}, and no document would have an end. Pack it before the run: llmshearing prepare, with '
            f'domains: {{{domain}: {folder}}}.'
        )
    return out


def pack_text(folder: str | Path, out: Path, tokenizer: PreTrainedTokenizerBase, max_seq_len: int) -> None:
    """Packs the raw text of an MDS folder into another, which is complete as soon as it is there.

    Args:
        folder (str | Path): The folder, with a column ``text``.
        out (Path): From :func:`packed_folder`. Nothing is done if it is there.
        tokenizer (PreTrainedTokenizerBase): The model's.
        max_seq_len (int): Tokens in a sample; the last incomplete one is dropped.

    Raises:
        ValueError: If there is less than one sample.
    """
    if (out / 'index.json').exists():  # perhaps where nothing can be written
        return
    with hold_lock(out.with_name('.packing.lock'), wait=True, optional=True):  # against other nodes and runs
        if not (out / 'index.json').exists():
            _pack(folder, out, tokenizer, max_seq_len)


def _pack(folder: str | Path, out: Path, tokenizer: PreTrainedTokenizerBase, max_seq_len: int) -> None:
    for left in out.parent.glob(f'{out.name}.new*'):
        if time.time() - left.stat().st_mtime > LEFT_BEHIND:
            shutil.rmtree(left, ignore_errors=True)
    packer, written = RowPacker(max_seq_len, 'uint32'), 0
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'{out.name}.new-') as own:  # a disk may have no locks
        new = Path(own, 'packed')
        with MDSWriter(out=str(new), columns={'tokens': f'ndarray:uint32:{max_seq_len}'}, hashes=['sha1']) as writer:
            for ids in _documents(folder, tokenizer):
                rows = packer.add(ids)
                written += len(rows)
                for row in rows:
                    writer.write({'tokens': row})
        if not written:
            raise ValueError(
                f'{folder} holds {len(packer.rest)} tokens of text, less than one sample of {max_seq_len}.'
            )
        try:
            os.replace(new, out)
        except OSError:
            if not (out / 'index.json').exists():  # else another process was faster, with the same bytes
                raise


def _documents(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Ids of some documents at a time, end to end, with what stands around each."""
    before, after = ([] if token is None else [token] for token in separators(tokenizer))
    special, spelled = special_in_text(tokenizer), []
    for reader in read_index(folder):
        rows = read_rows(folder, reader)
        while texts := [row['text'] for row in islice(rows, _BATCH)]:
            ids = [[*before, *one, *after] for one in plain_ids(tokenizer, texts) if one]
            spelled += [found[0] for found in map(special.search, texts) if found]
            yield [token for one in ids for token in one]
    if spelled:
        log.warning('%s: %d documents spell special tokens, such as %s.', folder, len(spelled), spelled[0])
