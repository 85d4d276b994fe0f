"""Which tokenizer made the data, and whether the one here makes the same ids.

Ids alone do not tell: data of another tokenizer of the same size trains without an error, on nonsense. So ``prepare``
notes in ``manifest.json`` what its tokenizer is, and training, evaluation and reference losses compare. Compared is
what decides ids, not how it is stored: other versions of transformers write the same tokenizer down in other ways, and
some build another one from the same files. So the manifest holds a hash of the vocabulary, and a sample of text with
its ids, to be tokenized again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmshearing.compat.streaming import read_remote_text
from llmshearing.compat.tokenizers import SAMPLE, around_special, plain_ids
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.data.mds import MANIFEST

__all__ = [
    'check_model_tokenizer',
    'check_tokenizer',
    'describe_tokenizer',
    'fast_backend',
    'tokenizer_difference',
    'tokenizer_identity',
    'vocabulary_size',
]

log = logging.getLogger(__name__)

PROBES = ('Hello, world!', '  two\n\tlines ', 'x', 'na\u00efve \u4f60\u597d \U0001f600 1234567890', 'a  b   c\r\n')


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Largest token id of a tokenizer plus one (added tokens included; ids may have gaps)."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a manifest says of a tokenizer for :func:`check_tokenizer`, by the names of its parts.

    They are ``vocab_size``, ``vocabulary``, ``sample`` and ``around_special``, a sample of its special tokens; older
    manifests are without the last.
    """
    size = vocabulary_size(tokenizer)
    texts = {'sample': SAMPLE, 'around_special': around_special(tokenizer)}
    ids = plain_ids(tokenizer, list(texts.values()))
    return {
        'vocab_size': size,
        'vocabulary': _vocabulary_hash(tokenizer, size),
        **{name: {'text': text, 'ids': ' '.join(map(str, own))} for (name, text), own in zip(texts.items(), ids)},
    }


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, folders: Iterable[tuple[str, str | None]]) -> None:
    """Compares a tokenizer with the one that made the data, where ``prepare`` left its manifest beside the data.

    A manifest is looked for in each folder and the two above it, of a link where it leads to and then where it lies,
    then at the same places of the remote address. A ``manifest.json`` of another program says nothing of the data: it
    is passed over with a warning. There is one as well for a folder that its manifest does not list.

    Args:
        tokenizer (PreTrainedTokenizerBase): The one that is to fit the data.
        folders (Iterable[tuple[str, str | None]]): MDS folders: on this machine, and the remote address if any.

    Raises:
        ValueError: If the tokenizer makes other ids, naming the manifest and the first difference.
    """
    manifests: dict[str, dict[str, Any] | None] = {}  # by place; those of ours are compared once
    for local, remote in folders:
        paths = dict.fromkeys((Path(local).resolve(), Path(local).absolute()))
        places = [str(folder / MANIFEST) for path in paths for folder in (path, *path.parents[:2])]
        if remote:
            parts = remote.rstrip('/').split('/')
            places += ['/'.join([*parts[: len(parts) - up], MANIFEST]) for up in range(min(3, len(parts) - 2))]
        for place in places:
            if place not in manifests:
                manifests[place] = manifest = _read_manifest(place)
                if manifest is not None:
                    _compare(tokenizer, manifest['tokenizer'], place)
            if (manifest := manifests[place]) is not None:
                _warn_unlisted(manifest, place, next(iter(paths)))
                break


def check_model_tokenizer(model: str | Path, folders: Iterable[str | Path]) -> None:
    """Compares the tokenizer in a model's folder with the one that made the data; one that has none gets a warning.

    Args:
        model (str | Path): Folder, or name on the hub.
        folders (Iterable[str | Path]): MDS folders on this machine.

    Raises:
        ValueError: As :func:`check_tokenizer`.
    """
    try:
        tokenizer = read_tokenizer(model)
    except (OSError, ValueError):  # a model without one; what else is wrong with it is told when it is loaded
        log.warning('%s has no tokenizer that could be compared with the one that made the data.', model)
        return
    check_tokenizer(tokenizer, [(str(folder), None) for folder in folders])


def _warn_unlisted(manifest: dict[str, Any], place: str, folder: Path) -> None:
    """A folder below a manifest that says nothing of it may have been left by an earlier data set."""
    parts, domains = folder.parts[-2:], manifest.get('domains')
    lies_two_below = str(folder.parents[1] / MANIFEST) == place
    if not lies_two_below or not isinstance(domains, dict):
        return
    split, domain = parts
    if split not in ((domains.get(domain) or {}).get('splits') or ()):
        log.warning(
            '%s lies below %s, which does not list it: which tokenizer made it is not known, and it may have been left '
            'by an earlier data set. Prepare it again, or remove it.',
            folder,
            place,
        )


def _read_manifest(place: str) -> dict[str, Any] | None:
    """The manifest there; ``None`` where there is none, or one that `prepare` did not write."""
    if '://' in place:
        try:
            text = read_remote_text(place)
        except ValueError as error:
            log.info('The tokenizer of the data is not compared by %s: %s', place, error)
            return None
    else:
        text = Path(place).read_text(encoding='utf-8', errors='replace') if os.path.isfile(place) else None
    if text is None:
        return None
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = None
    made_with = manifest.get('tokenizer') if isinstance(manifest, dict) else None
    if isinstance(manifest, dict) and isinstance(made_with, dict) and isinstance(made_with.get('vocab_size'), int):
        return manifest
    log.warning(
        '%s is not a manifest that `llmshearing prepare` wrote: it is not used to compare the tokenizer of the '
        'data with the one here.',
        place,
    )
    return None


def _compare(tokenizer: PreTrainedTokenizerBase, made_with: dict[str, Any], place: str) -> None:
    difference = tokenizer_difference(tokenizer, made_with)
    if difference is not None:
        raise ValueError(
            f'The data below {os.path.dirname(place)} was made with another tokenizer, {made_with.get("name")!r} '
            f'({made_with.get("class")}), than the one here, {tokenizer.name_or_path!r} '
            f'({type(tokenizer).__name__}): {difference}. Use that tokenizer, or prepare the data again with this one.'
        )


def tokenizer_difference(tokenizer: PreTrainedTokenizerBase, made_with: dict[str, Any]) -> str | None:
    """How a tokenizer differs from what :func:`describe_tokenizer` says of one with as many ids or less.

    In words, with "it" for the latter; ``None`` where they make the same ids.
    """
    size = vocabulary_size(tokenizer)
    difference = None
    if made_with['vocab_size'] > size:
        difference = f'it has {made_with["vocab_size"]} ids, the one here {size}'
    elif isinstance(made_with.get('sample'), dict):  # from 2026 on
        samples = (made_with[name] for name in ('sample', 'around_special') if name in made_with)
        difference = next(filter(None, (_sample_difference(tokenizer, sample) for sample in samples)), None)
        if difference is None and made_with.get('vocabulary') != _vocabulary_hash(tokenizer, made_with['vocab_size']):
            difference = 'some of its ids stand for other tokens'
    elif made_with.get('fingerprint') is not None:
        identity = tokenizer_identity(tokenizer, made_with.get('bos_token_id'), made_with.get('eos_token_id'))
        if made_with['fingerprint'] != identity:
            difference = 'the fingerprints differ'
    return difference


def _sample_difference(tokenizer: PreTrainedTokenizerBase, sample: dict[str, Any]) -> str | None:
    there = [int(token) for token in sample['ids'].split()]
    (here,) = plain_ids(tokenizer, [sample['text']])
    for position, (one, other) in enumerate(zip(there, here)):
        if one != other:
            after = tokenizer.decode(here[max(0, position - 4) : position])
            return f'after {after!r} of a sample it has the id {one}, this one {other}'
    return None if len(there) == len(here) else f'it makes {len(there)} ids of a sample, this one {len(here)}'


def _vocabulary_hash(tokenizer: PreTrainedTokenizerBase, size: int) -> str:
    """Hash of the tokens with ids below ``size``; tokens added behind them later change no data."""
    tokens = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number < size)
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase, bos: int | None, eos: int | None) -> str:
    """SHA-256 of all that decides the ids of documents, as these libraries write it down.

    Args:
        tokenizer (PreTrainedTokenizerBase): The tokenizer.
        bos (int | None): Id before each document.
        eos (int | None): Id after each document.
    """
    identity = [fast_backend(tokenizer) or _slow_identity(tokenizer), bos, eos]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def fast_backend(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """JSON of a fast tokenizer without the truncation and padding that a saved one may carry along.

    ``None`` for a slow tokenizer, and where the JSON alone does not give the ids of the whole.
    """
    if not tokenizer.is_fast:
        return None
    from tokenizers import Tokenizer

    backend: Any = tokenizer.backend_tokenizer
    whole = json.loads(backend.to_str())
    text = json.dumps({**whole, 'truncation': None, 'padding': None}, ensure_ascii=False)
    probes = [*PROBES, around_special(tokenizer)]  # `split_special_tokens` is not in the JSON
    short = [one.ids for one in Tokenizer.from_str(text).encode_batch(probes, add_special_tokens=False)]
    return text if short == tokenizer(probes, add_special_tokens=False)['input_ids'] else None


def _slow_identity(tokenizer: PreTrainedTokenizerBase) -> list:
    file = getattr(tokenizer, 'vocab_file', None)
    content = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and os.path.isfile(file) else ''
    vocab = tokenizer.get_vocab()
    return [type(tokenizer).__name__, content, sorted(vocab.items(), key=lambda item: (item[1], item[0]))]
