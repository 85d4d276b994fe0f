"""What may stand below ``dataset`` of the loaders ``dynamic_text``, ``text`` and ``finetuning``.

llm-foundry picks from that mapping what its data sets take and passes over the rest, so a misspelt key there is not
noticed until the data is wrong, or at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmshearing.config.parts import build_for_checks
from llmshearing.config.tree import walk
from llmshearing.utils.annotations import parameters_of
from llmshearing.utils.checks import check_integer
from llmshearing.utils.paths import check_mds_index
from llmshearing.utils.settings import check_keys
from llmshearing.utils.suggestions import refuse_unknown

__all__ = ['check_dataset', 'check_workers']

# What torch takes of loaders with processes of their own alone, what it is without, and what llm-foundry gives.
OF_WORKERS = {'timeout': (0, 0), 'prefetch_factor': (None, 2), 'persistent_workers': (False, True)}
SIZES = ('cache_limit',)
GIVEN = ('tokenizer', 'batch_size')  # by llm-foundry


def check_dataset(where: str, loader: str, dataset: Mapping[str, Any]) -> None:
    """Raises a ValueError that names a key of ``dataset`` that cannot be used.

    Args:
        where (str): Place in the configuration, for the message.
        loader (str): Name of the loader.
        dataset (Mapping[str, Any]): Its ``dataset``.
    """
    for entry in walk(dataset):
        if entry.key in SIZES and isinstance(entry.value, str):
            _check_size(f'{where}.{entry.shown}', entry.value)
    checks = {'dynamic_text': _check_dynamic_text, 'text': _check_text, 'finetuning': _check_finetuning}
    if loader in checks:
        checks[loader](where, dataset)


def _check_size(where: str, value: str) -> None:
    """Refuses a number of bytes that Streaming would look at after the model is built."""
    from streaming.base.util import bytes_to_int

    try:
        size = bytes_to_int(value)
    except ValueError:
        size = 0
    if size < 1:
        raise ValueError(f'{where}: expected a number of bytes above 0, such as 100gb, got {value!r}.')


def check_workers(where: str, section: Mapping[str, Any]) -> None:
    """Raises a ValueError for what a loader of llm-foundry's asks of workers that it does not have.

    Args:
        where (str): Place in the configuration, for the message.
        section (Mapping[str, Any]): The loader; ``dynamic_text`` passes over such settings.
    """
    if section['name'] not in ('text', 'finetuning') or section.get('num_workers') != 0:
        return
    for key, (without, default) in OF_WORKERS.items():
        value = section.get(key, default)
        if value != without:
            raise ValueError(
                f'{where}.{key}: {value} is for workers, and num_workers: 0 starts none; set it to '
                f'{json.dumps(without)}, or num_workers to 1 or more.'
            )


def _check_dynamic_text(where: str, dataset: Mapping[str, Any]) -> None:
    from llmfoundry.data.text_data import StreamingTextDataset

    from llmshearing.data.dynamic_dataset import DynamicTextDataset
    from llmshearing.data.dynamic_text import dataset_keys
    from llmshearing.data.streams import check_domain_settings

    refuse_unknown(where, dataset, [*dataset_keys(), 'shuffle'])
    check_keys(where, dataset, DynamicTextDataset, StreamingTextDataset, given=GIVEN)
    check_domain_settings(f'{where}.domains', dataset['domains'])


def _check_text(where: str, dataset: Mapping[str, Any]) -> None:
    """The index of a local split is there and stays in its folder; what is remote is only known once it is fetched."""
    _check_streaming(where, dataset)
    if dataset.get('remote') or dataset.get('streams'):
        return
    if not dataset.get('local'):
        raise ValueError(f'{where}: missing local, the folder of the prepared split.')
    index = Path(dataset['local'], dataset.get('split') or '', 'index.json')
    if not index.is_file():
        raise ValueError(f'{where}.local: {index.parent} is no prepared split (no index.json there).')
    check_mds_index(index)


def _check_streaming(where: str, dataset: Mapping[str, Any], *constructors: Callable) -> None:
    """The keys of Streaming's data sets and of other constructors."""
    from llmfoundry.data.text_data import StreamingTextDataset
    from streaming import Stream

    from llmshearing.data.dynamic_text import COLLATOR_KEYS

    constructors = (*constructors, StreamingTextDataset)
    known = [key for constructor in constructors for key in parameters_of(constructor) if key not in GIVEN]
    refuse_unknown(where, dataset, [*known, *COLLATOR_KEYS])
    streams = dataset.get('streams')
    if streams is not None:
        if not isinstance(streams, Mapping):
            raise ValueError(f'{where}.streams: expected keys and values (settings by name), got {streams!r}.')
        for name, settings in streams.items():
            check_keys(f'{where}.streams.{name}', settings, Stream)
    # llm-foundry takes streams by name, its class a list of what it makes of them.
    others = {key: value for key, value in dataset.items() if key != 'streams'}
    check_keys(where, others, *constructors, given=GIVEN)
    check_integer(f'{where}.max_seq_len', dataset['max_seq_len'], least=1)


def _finetuning(
    max_seq_len: int,
    shuffle: bool,
    decoder_only_format: bool,
    hf_name: str | None = None,
    split: str | None = None,
    hf_kwargs: dict[str, Any] | None = None,
    preprocessing_fn: str | dict[str, Any] | None = None,
    safe_load: bool | None = None,
    target_prompts: str = 'none',
    target_responses: str = 'last',
    allow_pad_trimming: bool = False,
    packing_ratio: float | str | None = None,
    auto_packing_replication: int | None = None,
    max_leftover_bins_to_keep: int | None = None,
    pad_to_longest: bool = False,
) -> None:
    """The settings of llm-foundry's ``finetuning`` data sets, which it documents but has no signature for."""


def _check_finetuning(where: str, dataset: Mapping[str, Any]) -> None:
    from llmfoundry.data.finetuning.tasks import dataset_constructor

    _check_streaming(where, dataset, _finetuning)
    function = dataset.get('preprocessing_fn')
    if isinstance(function, str):
        find = dataset_constructor.get_preprocessing_fn_from_str
        build_for_checks(f'{where}.preprocessing_fn', find, {'preprocessor': function})
    places = [key for key in ('hf_name', 'local', 'remote', 'streams') if dataset.get(key)]
    if not places:
        raise ValueError(f'{where}: missing hf_name, or local and remote, or streams: where the examples are.')
