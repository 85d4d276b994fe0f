"""Everything in a model folder's JSON that names a token by its number, with new numbers.

Pure functions from content to content. What a file says beside numbers of tokens stays as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmshearing.utils.checks import is_integer
from llmshearing.vocabulary.tokenizer_file import change_written_ids, parse_tokenizer_file

__all__ = ['ids_named', 'new_numbers', 'with_new_ids', 'with_new_ids_in_tokenizer']

# Keys of config.json and generation_config.json whose values are ids, lists of ids, or lists of those.
ID_KEYS = re.compile(
    r'(.*_)?token_ids?|.*_token_index|(begin_)?suppress_tokens|(bad|force)_words_ids'
    r'|(bos|eos|eod|pad|unk|sep|cls|mask)_id|.*_(start|end|newline|init)_id'  # as Hunyuan calls them
)
# Keys whose values are lists of pairs, and which of the two is ids: the other is a number of its own.
PAIR_KEYS = {'sequence_bias': 0, 'forced_decoder_ids': 1}


def new_numbers(kept: Sequence[int]) -> dict[int, int]:
    """New id by old id."""
    return {old: new for new, old in enumerate(kept)}


def ids_named(settings: Mapping[str, Any], rows: int) -> set[int]:
    """Ids that a config names, at any depth; a number outside the embedding's rows, as -1 for no token, is none."""
    found: set[int] = set()
    _change_ids(settings, found.add)
    return {number for number in found if 0 <= number < rows}


def with_new_ids(settings: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """A config's content with its ids renumbered; numbers that are no ids stay."""
    return _change_ids(settings, lambda number: new.get(number, number))


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
        'post_processor': change_written_ids(content.get('post_processor'), new.__getitem__),
    }
    padding = content.get('padding')
    if padding:
        result['padding'] = {**padding, 'pad_id': new.get(padding['pad_id'], padding['pad_id'])}
    return result


def _change_ids(settings: Mapping[str, Any], change: Callable[[int], Any]) -> dict[str, Any]:
    """A config's content with a function applied to every id that it names."""
    result = {}
    for key, value in settings.items():
        if key in PAIR_KEYS and isinstance(value, list):
            value = [
                [_changed(part, change) if place == PAIR_KEYS[key] else part for place, part in enumerate(pair)]
                for pair in value
            ]
        elif ID_KEYS.fullmatch(key):
            value = _changed(value, change)
        elif isinstance(value, Mapping):
            value = _change_ids(value, change)
        result[key] = value
    return result


def _changed(value: Any, change: Callable[[int], Any]) -> Any:
    if isinstance(value, list):
        return [_changed(one, change) for one in value]
    return change(value) if is_integer(value) else value
