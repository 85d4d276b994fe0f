"""What `prepare` is asked to do: the keys of its YAML file, checked before any work starts.

Every key has one meaning and one default, written beside it in the dataclasses below; a key that is not known is an
error which names the nearest one that is, because a misspelt budget that is ignored costs a day of tokenization.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from llmshearing.data.mds import MANIFEST
from llmshearing.utils import numbers
from llmshearing.utils.checks import check_integer, check_number, is_number
from llmshearing.utils.paths import expand_path
from llmshearing.utils.suggestions import refuse_unknown

__all__ = ['Domain', 'Spec', 'Split', 'check_folder_name', 'parse_tokens', 'parse_spec']

FORMATS = ('auto', 'jsonl', 'txt', 'parquet', 'folder', 'hf', 'mds')
DEFAULT_SPLITS = {'eval': {'fraction': 0.02}, 'prune': {'fraction': 0.1}, 'continue': {}}


@dataclass(frozen=True)
class Domain:
    """Where the documents of one domain are.

    Attributes:
        name (str): Name of the domain and of its folders.
        path (tuple[str, ...]): Files, folders or patterns, read in this order (the matches of a pattern, sorted).
        format (str): One of ``FORMATS``; ``auto`` goes by the content.
        text_key (str): Field or column that holds the text, with dots for one inside another (``meta.text``), or a
            conversation, which the tokenizer's chat template writes.
        glob (str | None): Which files of a folder to read, e.g. ``'**/*.py'``; all of them if ``None``.
        separator (str | None): What ends a document inside a ``.txt`` file; ``None``: a file is one document.
        hf_split (str | None): Which split of a Hugging Face ``DatasetDict`` to read.
        tokens (Mapping[str, int]): Budget of this domain in a split, instead of the split's own. 0: no such folder.
    """

    name: str
    path: tuple[str, ...]
    format: str = 'auto'
    text_key: str = 'text'
    glob: str | None = None
    separator: str | None = None
    hf_split: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """A share of every domain's documents.

    Attributes:
        name (str): Name of the split and of its folder.
        fraction (float | None): Share of the documents, by the hash of their text.
        tokens (int | None): Budget per domain, at which the split is cut. Without a fraction it also sizes the share.
    """

    name: str
    fraction: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Spec:
    """A checked request to :func:`llmshearing.prepare.pipeline.prepare`.

    Attributes:
        tokenizer (str): Folder or name that ``AutoTokenizer`` loads.
        max_seq_len (int): Tokens in every sample.
        out (str | None): Output folder, local; ``None`` if only a remote copy is wanted.
        remote (str | None): Where to upload finished folders (any address Streaming's writer takes).
        work (str): Local folder of unfinished work, removed at the end: ``.prepare`` inside the folder that is asked
            for, by default ``out``, or the current folder if ``out`` is remote.
        domains (tuple[Domain, ...]): At least one.
        splits (tuple[Split, ...]): In order of priority.
        seed (int): Which documents fall into which split.
        bos (bool | None): Put the beginning token before each document; ``None``: as the tokenizer does.
        eos (bool | None): Put the end token after each document; ``None``: as the tokenizer does, and in any case
            when it would put neither, so that documents are separated.
        max_bad_lines (int): Unreadable records that a domain may have.
        compression (str | None): Shard compression, e.g. ``zstd:3``.
        hashes (tuple[str, ...]): Checksums written for every shard.
        shard_size (int | str): Upper limit of a shard, e.g. ``64mb``.
    """

    tokenizer: str
    max_seq_len: int
    out: str | None
    remote: str | None
    work: str
    domains: tuple[Domain, ...]
    splits: tuple[Split, ...]
    seed: int = 17
    bos: bool | None = None
    eos: bool | None = None
    max_bad_lines: int = 100
    compression: str | None = None
    hashes: tuple[str, ...] = ('sha1',)
    shard_size: int | str = 1 << 26

    def budget(self, domain: Domain, split: Split) -> int | None:
        """The number of tokens wanted of ``domain`` in ``split``; ``None`` for all there are."""
        return domain.tokens.get(split.name, split.tokens)


def parse_tokens(value: Any, what: str) -> int:
    """Reads a number of tokens such as ``2_000_000``, ``1e6``, ``'400M'`` or ``'0.4B'``.

    Raises:
        ValueError: If it is not a whole number of at least 0.
    """
    try:
        number = 0.0 if value in (0, '0') and value is not False else numbers.parse_count(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 2**63 or abs(number - round(number)) > 1e-6 * max(number, 1):
        raise ValueError(f'{what} is {value!r}; expected a number of tokens such as 2000000, 400M or 0.4B')
    return round(number)


def parse_spec(raw: Mapping[str, Any]) -> Spec:
    """Checks a mapping as read from YAML.

    Args:
        raw (Mapping[str, Any]): The keys of :class:`Spec`, where ``out`` is a local folder, a remote address or a pair
            [local, remote], ``domains`` maps a name to a path or to the keys of :class:`Domain`, and ``splits`` maps a
            name to the keys of :class:`Split`.

    Returns:
        Spec: The same, with defaults filled in.

    Raises:
        ValueError: For an unknown, missing or senseless value, naming it and what is expected.
    """
    known = [f.name for f in fields(Spec) if f.name != 'remote']
    _check_keys(raw, known, required=('tokenizer', 'max_seq_len', 'out', 'domains'), where='the spec')
    out, remote = _parse_out(raw['out'])
    splits = _parse_splits(raw.get('splits') or DEFAULT_SPLITS)
    domains = raw['domains']
    if not isinstance(domains, Mapping) or not domains:
        raise ValueError(f'domains is {domains!r}; expected a mapping from a domain name to where its documents are')
    hashes = raw.get('hashes', Spec.hashes) or ()
    hashes = [hashes] if isinstance(hashes, str) else hashes
    if not isinstance(hashes, (list, tuple)) or not all(isinstance(name, str) for name in hashes):
        raise ValueError(f'hashes is {raw["hashes"]!r}; expected a list of names such as [sha1]')
    domains = tuple(_parse_domain(name, value, [s.name for s in splits]) for name, value in domains.items())
    _refuse_alike('domain', [domain.name for domain in domains])
    _refuse_alike('split', [split.name for split in splits])
    for split in splits[:-1]:
        open_ended = split.fraction is None and split.tokens is None
        greedy = [domain.name for domain in domains if open_ended and split.name not in domain.tokens]
        if greedy:
            raise ValueError(
                f'splits.{split.name} has neither fraction nor tokens, so it would take every document of '
                f'{greedy[0]} and leave none to {splits[-1].name}; give it one, or list it last'
            )
    budgets = [domain.tokens.get(split.name, split.tokens) for domain in domains for split in splits]
    if not any(budget is None or budget > 0 for budget in budgets):
        raise ValueError('every split of every domain has tokens: 0, so nothing would be written; raise one of them')
    return Spec(
        tokenizer=expand_path('tokenizer', str(raw['tokenizer'])),
        max_seq_len=_whole(raw['max_seq_len'], 'max_seq_len', least=2),
        out=out,
        remote=remote,
        work=os.path.join(expand_path('work', _text(raw.get('work'), 'work') or '') or out or '.', '.prepare'),
        domains=domains,
        splits=splits,
        seed=_whole(raw.get('seed', Spec.seed), 'seed', least=0),
        bos=_switch(raw.get('bos', 'auto'), 'bos'),
        eos=_switch(raw.get('eos', 'auto'), 'eos'),
        max_bad_lines=_whole(raw.get('max_bad_lines', Spec.max_bad_lines), 'max_bad_lines', least=0),
        compression=_text(raw.get('compression'), 'compression'),
        hashes=tuple(sorted(hashes)),
        shard_size=raw.get('shard_size', Spec.shard_size),
    )


def _parse_out(value: Any) -> tuple[str | None, str | None]:
    if isinstance(value, str) and value:
        value = expand_path('out', value)
        return (None, value) if '://' in value or value.startswith('dbfs:') else (value, None)
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, str) and v for v in value):
        return expand_path('out', value[0]), expand_path('out', value[1])
    raise ValueError(f'out is {value!r}; expected a folder, a remote address, or a pair [local folder, remote address]')


def _parse_splits(raw: Any) -> tuple[Split, ...]:
    if not isinstance(raw, Mapping) or not raw:
        raise ValueError(f'splits is {raw!r}; expected a mapping such as {{eval: {{tokens: 2M}}, continue: {{}}}}')
    splits = []
    for name, value in raw.items():
        check_folder_name(name, 'split')
        value = {} if value is None else value
        _check_keys(value, ['fraction', 'tokens'], where=f'splits.{name}')
        fraction, tokens = value.get('fraction'), value.get('tokens')
        if fraction is not None:
            check_number(f'splits.{name}.fraction', fraction, 0, 1, above=True)
        tokens = None if tokens is None else parse_tokens(tokens, f'splits.{name}.tokens')
        splits.append(Split(name, None if fraction is None else float(fraction), tokens))
    total = sum(s.fraction or 0 for s in splits)
    if total > 1 + 1e-9:
        raise ValueError(f'the fractions of splits add up to {total:g}; expected at most 1: make one of them smaller')
    return tuple(splits)


def _parse_domain(name: Any, raw: Any, splits: list[str]) -> Domain:
    check_folder_name(name, 'domain')
    where = f'domains.{name}'
    raw = {'path': raw} if isinstance(raw, (str, list, tuple)) else raw
    _check_keys(raw, [f.name for f in fields(Domain) if f.name != 'name'], required=('path',), where=where)
    path = [raw['path']] if isinstance(raw['path'], str) else raw['path']
    if not isinstance(path, (list, tuple)) or not path or not all(isinstance(p, str) and p for p in path):
        raise ValueError(f'{where}.path is {raw["path"]!r}; expected a file, a folder, a pattern, or a list of them')
    file_format = raw.get('format', 'auto')
    if file_format not in FORMATS:
        raise ValueError(f'{where}.format is {file_format!r}; expected one of {", ".join(FORMATS)}')
    if raw.get('separator') == '':
        raise ValueError(f'{where}.separator is empty; expected the text between two documents, or null')
    tokens = raw.get('tokens') or {}
    _check_keys(tokens, splits, where=f'{where}.tokens')
    return Domain(
        name=name,
        path=tuple(expand_path(f'{where}.path', part) for part in path),
        format=file_format,
        text_key=str(raw.get('text_key', 'text')),
        **{key: _text(raw.get(key), f'{where}.{key}') for key in ('glob', 'separator', 'hf_split')},
        tokens={k: parse_tokens(v, f'{where}.tokens.{k}') for k, v in tokens.items() if v is not None},
    )


def _check_keys(raw: Any, known: list[str], required: tuple[str, ...] = (), where: str = '') -> None:
    if not isinstance(raw, Mapping):
        raise ValueError(f'{where} is {raw!r}; expected a mapping with the keys {", ".join(known)}')
    refuse_unknown(where, raw, known)
    for key in required:
        if raw.get(key) is None:
            raise ValueError(f'{where} lacks the key {key!r}')


def check_folder_name(name: Any, what: str) -> None:
    """Raises a ValueError for a name of a domain or split that is not fit for a folder's name."""
    if not isinstance(name, str):
        raise ValueError(
            f'{what} name {name!r}: without quotes YAML reads it as {type(name).__name__}, not as text; '
            "put it in quotes, as '2023' or 'no'"
        )
    if name == MANIFEST:
        raise ValueError(f'{what} name {name!r}: a file of that name says what was prepared; choose another name')
    if not re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_.-]*', name):
        raise ValueError(f'{what} name {name!r} becomes a folder name; expected letters, digits, "_", "-" and "."')


def _refuse_alike(what: str, names: list[str]) -> None:
    folded: dict[str, str] = {}
    for name in names:
        if (other := folded.setdefault(name.lower(), name)) != name:
            raise ValueError(
                f'{what} names {other!r} and {name!r} differ in case alone, and disks of macOS and Windows would put '
                'both in one folder; rename one of them'
            )


def _whole(value: Any, what: str, least: int) -> int:
    if is_number(value) and value == int(value):  # YAML reads 1e3 as a fraction
        value = int(value)
    check_integer(what, value, least)
    return value


def _text(value: Any, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f'{what} is {value!r}; expected text, or null')
    return value


def _switch(value: Any, what: str) -> bool | None:
    if value is None or value == 'auto':
        return None
    if isinstance(value, bool):
        return value
    raise ValueError(f'{what} is {value!r}; expected auto, true or false')
