"""Everything in a model folder's JSON that names a token by its number, with new numbers.

Pure functions from content to content. What a file says beside numbers of tokens stays as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmshearing.utils.checks import is_integer
from llmshearing.vocabulary.tokenizer_file import parse_tokenizer_file

__all__ = ['ids_named', 'new_numbers', 'with_new_ids', 'with_new_ids_in_tokenizer']

# Keys of config.json and generation_config.json whose values are ids, lists of ids, or lists of those.
ID_KEYS = re.compile(r'(.*_)?token_ids?|.*_token_index|(begin_)?suppress_tokens|(bad|force)_words_ids')
# Keys whose values are lists of pairs, and which of the two is ids: the other is a number of its own.
PAIR_KEYS = {'sequence_bias': 0, 'forced_decoder_ids': 1}


def new_numbers(kept: Sequence[int]) -> dict[int, int]:
    """New id by old id."""
    return {old: new for new, old in enumerate(kept)}


def ids_named(settings: Any, rows: int) -> set[int]:
    """Ids that a config names, at any depth; a number outside the embedding's rows, as -1 for no token, is none."""
    if isinstance(settings, Mapping):
        found = set()
        for key, value in settings.items():
            if key in PAIR_KEYS and isinstance(value, list):
                found |= _numbers([pair[PAIR_KEYS[key]] for pair in value])
            else:
                found |= _numbers(value) if _is_of_ids(key) else ids_named(value, rows)
        return {number for number in found if 0 <= number < rows}
    return set()


def with_new_ids(settings: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """A config's content with its ids renumbered; numbers that are no ids stay."""
    result = {}
    for key, value in settings.items():
        if key in PAIR_KEYS and isinstance(value, list):
            value = [_renumbered_pair(pair, PAIR_KEYS[key], new) for pair in value]
        elif _is_of_ids(key):
            value = _renumbered(value, new)
        elif isinstance(value, Mapping):
            value = with_new_ids(value, new)
        result[key] = value
    return result


def with_new_ids_in_tokenizer(content: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The source's ``tokenizer.json`` with the kept tokens alone, given by old ids in the order of the new ones."""
    file, new = parse_tokenizer_file(dict(content)), new_numbers(kept)
    model = dict(file.model)
    if file.kind == 'Unigram':
        model['vocab'] = [entry for number, entry in enumerate(model['vocab']) if number in new]
        if model.get('unk_id') is not None:
            model['unk_id'] = new[model['unk_id']]
    else:
        ordered = sorted((new[number], token) for token, number in file.model_ids.items() if number in new)
        model['vocab'] = {token: number for number, token in ordered}
        model['merges'] = [
            merge
            for merge, (left, right) in zip(model['merges'], file.merges)
            if {left, right, left + right} <= model['vocab'].keys()
        ]
    added = [{**token, 'id': new[token['id']]} for token in content.get('added_tokens') or ()]
    result = {
        **content,
        'model': model,
        'added_tokens': sorted(added, key=lambda token: token['id']),
        'post_processor': _renumbered_processor(content.get('post_processor'), new),
    }
    if content.get('padding'):
        result['padding'] = {**content['padding'], 'pad_id': _renumbered(content['padding']['pad_id'], new)}
    return result


def _renumbered_processor(processor: Any, new: Mapping[int, int]) -> Any:
    if isinstance(processor, list):
        return [_renumbered_processor(part, new) for part in processor]
    if not isinstance(processor, Mapping):
        return processor
    result = {}
    for name, value in processor.items():
        if name == 'ids':
            result[name] = [new[number] for number in value]
        elif name in ('sep', 'cls') and isinstance(value, list):
            result[name] = [value[0], new[value[1]]]
        else:
            result[name] = _renumbered_processor(value, new)
    return result


def _is_of_ids(key: str) -> bool:
    return ID_KEYS.fullmatch(key) is not None


def _numbers(value: Any) -> set[int]:
    if isinstance(value, list):
        return set().union(*map(_numbers, value))
    return {value} if is_integer(value) else set()


def _renumbered_pair(pair: list, place: int, new: Mapping[int, int]) -> list:
    return [_renumbered(part, new) if number == place else part for number, part in enumerate(pair)]


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [_renumbered(one, new) for one in value]
    return new.get(value, value) if is_integer(value) else value
