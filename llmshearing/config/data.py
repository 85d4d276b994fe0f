"""What the local folders of ``text`` loaders hold, looked at before anything is built.

``dynamic_text`` looks at its data itself. llm-foundry's ``text`` loaders serve what they find: ids of another
tokenizer, and the beginnings of documents. To train on those is refused; an evaluation may be meant so, and is warned
of.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.config.parts import eval_loaders
from llmshearing.data.fingerprint import check_tokenizer, vocabulary_size
from llmshearing.data.mds import check_ids, read_index, read_token_index, tokens_of
from llmshearing.data.packing import holds_text, share_cut_off
from llmshearing.data.shard_checks import IDS_REMEDY, check_lengths, first_sample, naming_sample
from llmshearing.data.streams import shard_problem
from llmshearing.utils.checks import check_one_of

__all__ = ['check_data']

log = logging.getLogger(__name__)


def check_data(config: Mapping[str, Any], tokenizer: Any) -> None:
    """Checks the folders of a run's ``text`` loaders; what is only remote is compared by its manifest alone.

    Args:
        config (Mapping[str, Any]): A whole llm-foundry training configuration whose keys have been checked.
        tokenizer (Any): The run's.

    Raises:
        ValueError: For data of another tokenizer, ids that it does not have, and text that training would not see.
    """
    loaders = [('train_loader', config['train_loader']), *eval_loaders(config)]
    datasets = [(where, loader['dataset']) for where, loader in loaders if loader['name'] == 'text']
    check_tokenizer(tokenizer, [place for _, dataset in datasets for place in _places(dataset)])
    size = vocabulary_size(tokenizer)
    for where, dataset in datasets:
        key = f'{where}.dataset.local'
        for folder, remote in _places(dataset):
            if remote or not Path(folder, 'index.json').is_file():
                continue
            try:
                lost, message = _check_folder(key, folder, dataset, tokenizer, size)
            except ValueError as error:
                raise ValueError(f'{key}: {error}') from error
            if lost and where == 'train_loader':
                raise ValueError(f'{key}: {message}')
            if message:
                log.warning('%s: %s', key, message)


def _places(dataset: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Folders on this machine and their remote addresses, as ``check_tokenizer`` takes them."""
    for stream in (dataset.get('streams') or {'': {}}).values():
        stream = {**dataset, **{key: value for key, value in (stream or {}).items() if value is not None}}
        if stream.get('local'):
            yield str(Path(stream['local'], stream.get('split') or '')), stream.get('remote')


def _check_folder(key: str, folder: str, dataset: Mapping[str, Any], tokenizer: Any, size: int) -> tuple[float, str]:
    """Refuses ids that the tokenizer does not have; the share of tokens that would not be served, and what to say."""
    problem = shard_problem(folder, read_index(folder))
    if problem is not None:
        raise ValueError(f'{problem}.')
    length = dataset['max_seq_len']
    if holds_text(folder):
        lost = share_cut_off(folder, tokenizer, length)
        return lost, (
            f'{folder} holds raw text. The loader `text` cuts or pads each document to max_seq_len={length}, which '
            f'leaves out {lost:.0%} of the tokens of the first ones, and ends none by a token; use `dynamic_text`, '
            'which packs documents, or `llmshearing prepare`.'
        )
    longest = _check_tokens(key, folder, dataset, size)
    if longest <= length:
        return 0.0, ''
    lost = 1 - length / longest
    return lost, (
        f'{folder} holds sequences of {longest} tokens. The loader `text` serves the first max_seq_len={length} of '
        f'each, which leaves out {lost:.0%}; set max_seq_len to {longest}, or prepare the data again.'
    )


def _check_tokens(key: str, folder: str, dataset: Mapping[str, Any], size: int) -> int:
    """Checks the first sample of every shard, and returns the largest number of tokens in one of them."""
    from llmfoundry.data import SUPPORTED_MDS_ENCODING_TYPES

    encoding = dataset.get('token_encoding_type', 'int64')
    check_one_of('token_encoding_type', encoding, SUPPORTED_MDS_ENCODING_TYPES)
    longest, shards = 0, read_token_index(folder)
    try:
        check_lengths(folder, shards)
    except ValueError as error:  # such samples are padded
        log.warning('%s: %s', key, error)
    for shard in shards:
        sample = first_sample(shard)
        if sample is not None:
            with naming_sample('tokens', shard, 0):
                tokens = tokens_of(sample, np.dtype(encoding))
                check_ids('it', tokens, size, IDS_REMEDY)
            longest = max(longest, len(tokens))
    return longest
