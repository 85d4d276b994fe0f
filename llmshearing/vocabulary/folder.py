"""The files of a trimmed folder beside its weights: config, tokenizer, card, licence, what was done, a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmshearing.compat.configs import dump_config
from llmshearing.export.companions import copy_companions
from llmshearing.export.model_card import derived_card
from llmshearing.models.source_files import read_source_files, source_licence
from llmshearing.utils.files import dump_json, load_json
from llmshearing.vocabulary.growth import growth_table, size_table
from llmshearing.vocabulary.rewriting import new_numbers, with_new_ids, with_new_ids_in_tokenizer
from llmshearing.vocabulary.settings import RECORD
from llmshearing.vocabulary.tokenizer_file import TOKENIZER, TokenizerFile

__all__ = ['PICTURE', 'write_card', 'write_files', 'write_trim_record']

PICTURE = 'tokens_per_byte.svg'
# Other forms of the same vocabulary, which would hold what is gone; tokenizer.json has all that they say.
OTHER_FORMS = ('vocab.*', 'merges.txt', '*.model', 'tokenizer*')
OWN_FORM = (TOKENIZER, 'tokenizer_config.json')


def write_files(
    source: Path, config: Mapping[str, Any], tokenizer: TokenizerFile, kept: Sequence[int], folder: Path
) -> None:
    """Writes config, generation config, tokenizer and licence files, and records.

    Args:
        source (Path): The source's folder.
        config (Mapping[str, Any]): Its ``config.json``, completed by the ids that its type implies.
        tokenizer (TokenizerFile): Its tokenizer.
        kept (Sequence[int]): Old ids in the order of the new ones.
        folder (Path): Where to write.
    """
    new = new_numbers(kept)
    copy_companions(source, folder)
    for pattern in OTHER_FORMS:
        for path in folder.glob(pattern):
            if path.name not in OWN_FORM:
                path.unlink()
    settings = {**with_new_ids(config, new), 'vocab_size': len(kept)}
    settings.pop('auto_map', None)  # leads to code
    dump_config(settings, folder / 'config.json')
    dump_json(folder / TOKENIZER, with_new_ids_in_tokenizer(tokenizer.content, kept), ensure_ascii=False)
    for name, change in (
        ('generation_config.json', lambda old: with_new_ids(old, new)),
        ('added_tokens.json', lambda old: {token: new[number] for token, number in old.items() if number in new}),
        ('tokenizer_config.json', lambda old: _tokenizer_config(old, new)),
    ):
        path = folder / name
        if path.is_file():
            dump_json(path, change(load_json(path)), ensure_ascii=False)


def write_trim_record(record: Mapping[str, Any], folder: Path) -> None:
    """``vocabulary.json``, a line for each key: a list of thousands of numbers does not make as many lines."""
    lines = (f'{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}' for key, value in record.items())
    (folder / RECORD).write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')


def write_card(source: Path, name: str, record: Mapping[str, Any], folder: Path) -> None:
    """``README.md``: derived from what, how, under which licence, what was checked, and the table."""
    licence = source_licence(read_source_files(str(source)))
    checked = record['checked']
    before, after = record['size_before'], len(record['kept'])
    parts = [
        f'{record["source"]} with {after:,} of its {before:,} tokens. On text whose tokens all stay it has the same '
        'tokens and computes the same; other text is written with more, smaller tokens.',
        f'Made with `llmshearing trim-vocab`{record["made_with"]}; which tokens stayed is in `{RECORD}`. Data that '
        "were prepared with the source's tokenizer must be prepared again.",
        '## Checked\n\n'
        f'- {checked["words_kept"]:,} of {checked["words"]:,} held-out words have none but tokens that stay: the same\n'
        '- every tensor is that of the source to the last bit, embedding and LM head without the rows of other tokens\n'
        '- on a sample, what enters the LM head is equal to the last bit; the largest difference of a logit, computed '
        f'in {checked["computed_in"]}, is {checked["largest_logit_difference"]:.2g}',
    ]
    if record['tokens_per_byte']:
        table = growth_table(record['tokens_per_byte']['before'], record['tokens_per_byte']['after'])
        by_size = size_table(record['by_size']['sizes'], record['by_size']['tokens_per_byte'])
        parts.append(
            f'## Tokens per byte\n\n{table}\n\n![tokens per byte against vocabulary size]({PICTURE})\n\n{by_size}'
        )
    card = derived_card(licence, 'vocabulary-trimmed', record['source'], name, *parts)
    (folder / 'README.md').write_text(card, encoding='utf-8')


def _tokenizer_config(content: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    result = dict(content)
    added = content.get('added_tokens_decoder')
    if isinstance(added, dict):
        result['added_tokens_decoder'] = {
            str(place): added[str(number)] for number, place in new.items() if str(number) in added
        }
    return result
