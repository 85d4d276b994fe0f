"""A source folder in, one with fewer tokens out: counts, chooses, rewrites tensor by tensor, proves.

Everything that can be wrong with source, options and text is found before a weight is read. The folder appears under
its name only when the proof has passed (:mod:`llmshearing.vocabulary.proof`); a killed run leaves nothing but a hidden
folder, which the next one replaces.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor
from llmshearing.checkpoints.source import WHOLE_UP_TO, check_weights, read_weights
from llmshearing.checkpoints.weight_files import check_has_config
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.config.source import refuse_unusable
from llmshearing.data.fingerprint import fast_backend
from llmshearing.export.shard_writer import SHARD_BYTES, ModelFolderWriter
from llmshearing.models.source_config import read_config
from llmshearing.prepare.tokenizer import TokenizerPlan, plan_tokenizer
from llmshearing.utils.files import load_json, refuse_unwritable
from llmshearing.utils.paths import refuse_existing
from llmshearing.vocabulary.choice import rank_tokens
from llmshearing.vocabulary.embeddings import rows_by_token, trimmed_tensors
from llmshearing.vocabulary.folder import PICTURE, write_card, write_files, write_trim_record
from llmshearing.vocabulary.growth import (
    growth_picture,
    growth_table,
    measure_growth,
    size_table,
    sizes_between,
    tokens_per_byte,
)
from llmshearing.vocabulary.proof import check_logits, check_tensors_equal, check_tokenizer_folder
from llmshearing.vocabulary.rewriting import ids_named
from llmshearing.vocabulary.settings import TrimSettings, read_kept, read_wished
from llmshearing.vocabulary.text import DomainText, count_tokens, find_texts
from llmshearing.vocabulary.tokenizer_file import TokenizerFile, parse_tokenizer_file, read_tokenizer_file

__all__ = ['trim_source']

Report = Callable[[str], None]


def trim_source(
    source: Path | str,
    output: Path | str,
    settings: TrimSettings,
    data: Sequence[Path | str] = (),
    like: Path | str | None = None,
    overwrite: bool = False,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Writes ``source`` with fewer tokens to ``output``; returns what ``vocabulary.json`` says.

    Args:
        source (Path): Hugging Face folder with a ``tokenizer.json``.
        output (Path): Folder to write.
        settings (TrimSettings): Size, and what else decides which tokens stay.
        data (Sequence[Path | str]): What tokens are counted on, see :mod:`llmshearing.vocabulary.text`.
        like (Path | None): In place of size and data: a folder that this wrote of another model with the same
            tokenizer, whose tokens are taken.
        overwrite (bool): Replace an existing output.
        report (Callable): Receives a line now and then.

    Raises:
        ValueError: For a tokenizer that cannot be trimmed, settings or text that do not fit it, an ``output`` that
            exists and may not be replaced, or a result that does not do what the source does.
    """
    output = Path(output)
    refuse_existing('--output', output, overwrite, (source, *data, like))
    refuse_unwritable('--output', output)
    opened = _open(Path(source))
    report(
        f'{opened.path}: {opened.rows:,} rows of the embedding, {len(opened.file.ids):,} tokens ({opened.file.kind})'
    )
    if like is not None:
        kept, texts, made_with = _taken_from(opened, Path(like)), [], ' with the tokens of another model'
        curve = None
    else:
        if not data:
            raise ValueError('--data: expected text to count tokens on, or --like and a folder of ours.')
        kept, texts, curve = _chosen(opened, settings, data, report)
        counted = sum(int(text.counts.sum()) for text in texts)
        made_with = f' from {counted:,} tokens of {", ".join(text.name for text in texts)}'
    check_weights(opened.path, opened.config)
    with ModelFolderWriter(output, max_shard_bytes=SHARD_BYTES, overwrite=overwrite) as writer:
        for name, tensor in trimmed_tensors(opened.stored, opened.by_token, kept):
            writer.add(name, tensor)
        writer.finish_tensors()
        write_files(opened.path, opened.settings, opened.file, kept, writer.path)
        report(f'written: {writer.parameters:,} parameters; checking')
        record = {
            'source': str(opened.settings.get('_name_or_path') or opened.path.name),
            'source_vocabulary': opened.plan.described['vocabulary'],
            'size_before': len(opened.file.ids),
            'made_with': made_with,
            'settings': {**dataclasses.asdict(settings), 'keep': settings.keep and Path(settings.keep).name},
            'checked': _check(opened, writer.path, kept, texts),
            'tokens_per_byte': _growth(opened, writer.path, texts),
            'by_size': curve,
            'kept': kept,
        }
        if curve is not None:
            picture = growth_picture(curve['sizes'], curve['tokens_per_byte'], len(kept))
            (writer.path / PICTURE).write_text(picture, encoding='utf-8')
        write_card(opened.path, output.name, record, writer.path)
        write_trim_record(record, writer.path)
        writer.commit()
    _tell(record, output, report)
    return record


@dataclasses.dataclass(frozen=True)
class _Source:
    """A source after the checks that need neither text nor weights."""

    path: Path
    config: PretrainedConfig
    settings: dict[str, Any]
    file: TokenizerFile
    tokenizer: Any
    plan: TokenizerPlan
    by_token: dict[str, int]
    stored: dict[str, StoredTensor]

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return next(iter(self.by_token.values()))

    def named(self) -> set[int]:
        """Ids that its config files and its tokenizer name."""
        path = self.path / 'generation_config.json'
        generation = load_json(path) if path.is_file() else {}
        return {
            *ids_named(self.settings, self.rows),
            *ids_named(generation, self.rows),
            *self.tokenizer.all_special_ids,
        }


def _open(folder: Path) -> _Source:
    check_has_config(str(folder), folder)
    file, config = read_tokenizer_file(folder), read_config(folder)
    refuse_unusable(str(folder), config)
    by_token, tokenizer = rows_by_token(config), read_tokenizer(folder)
    plan = plan_tokenizer(str(folder), False, False)  # nothing stands between documents that are counted
    rows = next(iter(by_token.values()))
    if plan.backend is None:
        raise ValueError(f'{folder}: the tokenizer does not do what its tokenizer.json says; it cannot be trimmed.')
    # transformers adds tokens that tokenizer_config.json alone lists.
    added = json.loads(plan.backend)['added_tokens']
    file = parse_tokenizer_file({**file.content, 'added_tokens': added})
    if max(file.ids.values()) >= rows:
        raise ValueError(
            f'{folder}: the tokenizer has the id {max(file.ids.values())}, but the embedding {rows} rows; put the '
            'tokenizer that belongs to the model into its folder.'
        )
    check_weights(folder, config, values=False)  # the numbers in them before they are written
    settings = load_json(folder / 'config.json')
    for key in ('bos_token_id', 'eos_token_id', 'pad_token_id'):  # what the type implies where the file says nothing
        implied = getattr(config, key, None)
        if key not in settings and ids_named({key: implied}, rows):
            settings[key] = implied
    return _Source(folder, config, settings, file, tokenizer, plan, by_token, read_weights(folder, config))


def _taken_from(source: _Source, like: Path) -> list[int]:
    kept = read_kept(like, source.plan.described['vocabulary'])
    missing = sorted({*source.file.needed_ids(), *source.named()} - set(kept))
    if missing or max(kept) >= source.rows:
        raise ValueError(
            f'--like {like}: its list of tokens does not fit {source.path}, which '
            + (f'needs the id {missing[0]} as well' if missing else f'has {source.rows} rows and not {max(kept) + 1}')
            + '; choose the tokens with this model as the source, and take that list for the other.'
        )
    return kept


def _chosen(
    source: _Source, settings: TrimSettings, data: Sequence[Path | str], report: Report
) -> tuple[list[int], list[DomainText], dict[str, Any]]:
    """The kept ids, the text, and tokens per byte against size; refuses what can be refused before text is read."""
    wished, named = read_wished(settings.keep), source.named()
    least = len(rank_tokens(source.file, {}, named, wished).needed)
    present = len({*source.file.ids.values(), *named})
    size = settings.check(least, present)
    paths = find_texts(data)
    texts = count_tokens(paths, source.tokenizer, source.plan, settings.text_key, settings.read_bytes)
    counts: np.ndarray = np.sum([text.counts for text in texts], axis=0)
    for text in texts:
        report(f'{text.name}: {int(text.counts.sum()):,} tokens counted, {text.size:,} bytes held out')
    ranking = rank_tokens(source.file, dict(enumerate(counts.tolist())), named, wished)
    sizes = sizes_between(least, len(ranking.needed) + len(ranking.others), size)
    growth = measure_growth(json.loads(str(source.plan.backend)), ranking, sizes, texts)
    return ranking.kept(size), texts, {'sizes': sizes, 'tokens_per_byte': growth}


def _check(source: _Source, folder: Path, kept: Sequence[int], texts: Sequence[DomainText]) -> dict[str, Any]:
    passages = [passage for text in texts for passage in text.held_out]
    words = check_tokenizer_folder(source.path, folder, kept, passages)
    config = read_config(folder)
    check_weights(folder, config, values=False)
    check_tensors_equal(source.stored, source.by_token, kept, folder, config)
    whole = sum(torch.Size(tensor.shape).numel() for tensor in source.stored.values()) <= WHOLE_UP_TO
    dtype = torch.float32 if whole else next(iter(source.stored.values())).dtype
    logits = check_logits(source.path, folder, kept, dtype, whole)
    return {'words': words.words, 'words_kept': words.kept, **logits}


def _growth(source: _Source, folder: Path, texts: Sequence[DomainText]) -> dict[str, dict[str, float]]:
    """Tokens per byte by domain, ``before`` and ``after``; nothing where no text was read."""
    if not texts:
        return {}
    backends = {'before': source.plan.backend, 'after': fast_backend(read_tokenizer(folder))}
    return {
        when: {text.name: tokens_per_byte(Tokenizer.from_str(str(backend)), text) for text in texts}
        for when, backend in backends.items()
    }


def _tell(record: dict[str, Any], output: Path, report: Report) -> None:
    checked, growth = record['checked'], record['tokens_per_byte']
    logits = 'equal to the last bit' if checked['equal'] else f'{checked["largest_logit_difference"]:.2g} apart'
    report(
        f'checked: {checked["words_kept"]:,} of {checked["words"]:,} words have only tokens that stay, and the same '
        f'ones; what enters the LM head is equal to the last bit, logits are {logits} ({checked["computed_in"]})'
    )
    tables = ''
    if growth:
        curve = record['by_size']
        tables = (
            f'\n\n{growth_table(growth["before"], growth["after"])}'
            f'\n\n{size_table(curve["sizes"], curve["tokens_per_byte"])}'
        )
    report(f'{len(record["kept"]):,} tokens, written to {output}{tables}')
