"""``dynamic_text``: the loader that llm-foundry builds from a YAML, around ``DynamicTextDataset``.

The collator is llm-foundry's, but for one thing: what is learnt from is decided by the attention mask, not by which
tokens equal the padding token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from composer.core.data_spec import DataSpec
from llmfoundry import registry
from llmfoundry.data.utils import LossGeneratingTokensCollatorWrapper, get_tokens_per_batch_func
from llmfoundry.utils.registry_utils import construct_from_registry
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llmshearing.compat.torch import shut_down_workers
from llmshearing.data.dynamic_dataset import DynamicTextDataset
from llmshearing.data.fingerprint import vocabulary_size
from llmshearing.data.mds import check_ids
from llmshearing.data.settings import check_numbers
from llmshearing.data.stored_teacher import BesideTokens
from llmshearing.data.streams import stream_folder
from llmshearing.utils.checks import check_integer, check_number
from llmshearing.utils.suggestions import refuse_unknown

__all__ = [
    'COLLATOR_KEYS',
    'DynamicTextDataset',
    'DynamicTextLoader',
    'build_dynamic_text_dataloader',
    'count_every_token',
]


class DynamicTextLoader(DataLoader):
    """A DataLoader that starts a mixing round each time it is iterated, and counts the batches it hands out."""

    dataset: DynamicTextDataset

    def __iter__(self) -> Iterator[Any]:
        if not self.dataset.start_round():
            return
        for batch in super().__iter__():
            self.dataset.rounds.batch += 1
            yield batch

    def shut_down(self) -> None:
        """Ends the workers now."""
        shut_down_workers(self)


class UnpaddedLabels:
    """Collator that learns from every stored token, and from no id that the tokenizer does not have.

    The usual language-modelling collator takes all tokens equal to the padding token out of the loss. Where a
    tokenizer pads with its end-of-text token, as many do, that removes the end of every document. Packed samples hold
    no padding at all, and where there is some, the attention mask says so.

    Args:
        base_collator (Callable): Makes ``input_ids``, ``labels`` and perhaps ``attention_mask``.
        vocab_size (int): Token ids must be below this. Larger ones would train rows of a padded embedding unnoticed.
        where (str): Names the data in the message on such an id.
    """

    def __init__(
        self, base_collator: Callable[[list[Any]], dict[str, torch.Tensor]], vocab_size: int, where: str
    ) -> None:
        self.base_collator = base_collator
        self.vocab_size = vocab_size
        self.where = where

    def __call__(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        if any(isinstance(example, Mapping) for example in examples):
            examples = [
                {key: example[key] for key in ('input_ids', 'attention_mask')}
                if isinstance(example, Mapping)
                else {'input_ids': example, 'attention_mask': torch.ones_like(example)}
                for example in examples
            ]
        batch = self.base_collator(examples)
        check_ids(self.where, batch['input_ids'], self.vocab_size, 'prepare it again, or name that tokenizer')
        batch['labels'].copy_(batch['input_ids'])
        if 'attention_mask' in batch:
            batch['labels'][batch['attention_mask'] == 0] = -100
        return batch


def count_every_token(loader: DataLoader) -> None:
    """Makes a loader of llm-foundry's ``StreamingTextDataset`` learn from, or measure, every stored token.

    Before its workers start. Loaders that do already, or that have another collator, are left as they are.
    """
    counting = loader.collate_fn
    dataset: Any = loader.dataset
    if isinstance(counting, LossGeneratingTokensCollatorWrapper) and not isinstance(
        counting.base_collator, UnpaddedLabels
    ):
        where = f'The data in {", ".join(map(stream_folder, dataset.streams))}'
        unpadded = UnpaddedLabels(counting.base_collator, vocabulary_size(dataset.tokenizer), where)
        # Tokens are counted once the labels are final.
        loader.collate_fn = LossGeneratingTokensCollatorWrapper(unpadded, counting.token_counting_func)


# Keys of llm-foundry's packing and collating, beside those of its streaming text data set.
COLLATOR_KEYS = (
    'eos_token_id',
    'bos_token_id',
    'override_eos_token_id_mismatch_error',
    'override_bos_token_id_mismatch_error',
    'seq_parallel_replication',
)
_STREAMING_KEYS = (
    'token_encoding_type',
    'download_retry',
    'download_timeout',
    'validate_hash',
    'keep_zip',
    'predownload',
    'cache_limit',
    'allow_unsafe_types',
    'replication',
)


def dataset_keys() -> list[str]:
    """The keys that may stand below ``train_loader.dataset`` in a YAML."""
    own = set(inspect.signature(DynamicTextDataset).parameters) - {'tokenizer', 'batch_size', 'kwargs'}
    return sorted(own | {*_STREAMING_KEYS, *COLLATOR_KEYS})


def build_dynamic_text_dataloader(
    tokenizer: PreTrainedTokenizerBase | None,
    device_batch_size: int | float,
    dataset: dict[str, Any],
    drop_last: bool = True,
    num_workers: int = 0,
    pin_memory: bool = True,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = True,
    timeout: int = 0,
) -> DataSpec:
    """Builds the ``dynamic_text`` loader from the ``train_loader`` section of an llm-foundry YAML.

    Args:
        tokenizer (PreTrainedTokenizerBase | None): The model's tokenizer.
        device_batch_size (int | float): Samples per batch and rank.
        dataset (dict[str, Any]): Settings of ``DynamicTextDataset``, and ``eos_token_id``/``bos_token_id`` as in
            llm-foundry.
        drop_last (bool): Has no effect: a round is made of whole global batches.
        num_workers (int): Processes that read for each rank; 0 reads in the rank's own process.
        pin_memory (bool): As in ``DataLoader``.
        prefetch_factor (int | None): Batches each worker reads ahead.
        persistent_workers (bool): Keep the workers from one round to the next.
        timeout (int): As in ``DataLoader``; without workers there is nobody to wait for.

    Returns:
        DataSpec: the loader with llm-foundry's token counting.

    Raises:
        ValueError: For a key that is not known, or whatever does not fit; before training.
    """
    if tokenizer is None:
        raise ValueError('The dynamic_text loader needs a tokenizer, but got None.')
    config = _checked_settings(dataset)
    check_integer('num_workers', num_workers, 0)
    check_number('timeout', timeout, 0)
    if num_workers and prefetch_factor is not None:
        check_integer('prefetch_factor', prefetch_factor, 1)
    config['replication'], batch_size = _construct(
        registry.dataset_replication_validators,
        'dataset_replication_validator',
        dataset_cfg=config,
        tokenizer=tokenizer,
        device_batch_size=device_batch_size,
    )
    text_dataset = DynamicTextDataset(
        tokenizer=tokenizer,
        batch_size=batch_size,
        **{key: value for key, value in config.items() if key not in COLLATOR_KEYS},
    )
    collate_fn, loader_batch_size = _construct(
        registry.collators,
        'text_collator',
        dataloader_cfg={'name': 'dynamic_text', 'dataset': config},
        tokenizer=tokenizer,
        dataset_batch_size=batch_size,
    )
    if not isinstance(collate_fn, LossGeneratingTokensCollatorWrapper):
        collate_fn = LossGeneratingTokensCollatorWrapper(collate_fn, get_tokens_per_batch_func())
    loader = DynamicTextLoader(
        text_dataset,
        collate_fn=collate_fn,
        batch_size=loader_batch_size,
        drop_last=drop_last,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=persistent_workers and num_workers > 0,
        timeout=timeout if num_workers else 0,
    )
    count_every_token(loader)
    if text_dataset.teacher is not None:
        loader.collate_fn = BesideTokens(loader.collate_fn)
    return _construct(registry.data_specs, 'data_spec', dl=loader, dataset_cfg=config)


def _checked_settings(dataset: dict[str, Any]) -> dict[str, Any]:
    """The settings of a loader's ``dataset`` that decide something, their keys and numbers checked."""
    config = dict(dataset)
    if not config.pop('shuffle', True):
        raise ValueError('dynamic_text always shuffles, but got shuffle: false. Remove it, or use the `text` loader.')
    refuse_unknown('train_loader.dataset', config, dataset_keys())
    check_numbers(config)
    return config


def _construct(parts: Any, name: str, **arguments: Any) -> Any:
    """What llm-foundry, or a plug-in in its place, has in a registry under a name, called."""
    return construct_from_registry(name=name, registry=parts, partial_function=False, kwargs=arguments)
