"""The config transform of llm-foundry that prepares and checks a run before anything is built, on every rank.

It runs first under ``llmshearing train`` and ``llmfoundry train`` alike. Runs without any part of this package are left
alone. The order is from keys to what they stand for: sections by themselves, then against each other, then against the
folders and checkpoints that they name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from llmshearing.config.chosen_weights import check_chosen_weights
from llmshearing.config.data import check_data
from llmshearing.config.files import check_names
from llmshearing.config.parts import our_parts, pruning_name, section_names
from llmshearing.config.process import prepare_process
from llmshearing.config.pruning import check_export, check_pruning
from llmshearing.config.resume import check_fits, check_resume
from llmshearing.config.secrets import check_no_secrets
from llmshearing.config.sections import check_config
from llmshearing.config.source import check_source
from llmshearing.config.stored_teacher import check_stored_teacher, serve_stored_teacher
from llmshearing.config.times import describe_epochs
from llmshearing.config.tokenizer import check_rows, check_same_tokenizer, open_tokenizer
from llmshearing.config.vain import tell_vain_settings
from llmshearing.utils.checks import is_number

__all__ = ['check_run', 'prepare_run']

log = logging.getLogger(__name__)


def prepare_run(config: dict[str, Any]) -> dict[str, Any]:
    """The config transform: prepares the process, fills defaults in and checks the result.

    Several nodes meet here already: what one of them finds on its disk ends all, and they begin with the same source.

    Raises:
        ValueError: As :func:`check_run`, and if a node has another source than the first.
    """
    if any(our_parts(config)):
        _meet_other_nodes(config)
        from llmshearing.utils.ranks import raised_together

        with raised_together():
            prepare_process(config)
            serve_stored_teacher(config)
            check_run(config)
        _compare_sources(config['model'])
    return config


def _meet_other_nodes(config: Mapping[str, Any]) -> None:
    """Starts the process group as llm-foundry is about to, where there is more than one node."""
    from composer.utils import dist, get_device

    if dist.get_world_size() > dist.get_local_world_size():
        given: Any = config.get('dist_timeout')
        timeout = given if is_number(given) and given > 0 else 600.0  # llm-foundry's default; others are refused soon
        dist.initialize_dist(get_device(None), timeout)


def _compare_sources(model: Mapping[str, Any]) -> None:
    from llmshearing.checkpoints.identity import refuse_other_sources

    source = model.get('pretrained_model_name_or_path')
    if source is not None:
        refuse_other_sources(source, model.get('pretrained', True))


def check_run(config: dict[str, Any]) -> None:
    """Checks a configuration with one of our parts and changes nothing.

    Raises:
        ValueError: Naming what was got, what is possible and what to change.
    """
    check_no_secrets(config)
    pruning, callbacks = pruning_name(config), section_names(config.get('callbacks'))
    if 'dynamic_batch_loading' in callbacks and section_names(config.get('train_loader'), 'name') != ['dynamic_text']:
        raise ValueError('callbacks.dynamic_batch_loading needs train_loader.name: dynamic_text.')
    if pruning is not None and section_names(config.get('model'), 'name') != ['sheared_causal_lm']:
        raise ValueError(
            f'algorithms.{pruning} needs model.name: sheared_causal_lm, got '
            f'{section_names(config.get("model"), "name")}.'
        )
    check_config(config)
    tell_vain_settings(config)
    check_stored_teacher(config)
    check_names(config)
    if config['train_loader']['name'] == 'dynamic_text':
        _check_rounds(config)
    check_resume(config)
    tokenizer = open_tokenizer(config['tokenizer'])
    source = check_source(config)
    if tokenizer is not None:
        check_same_tokenizer(tokenizer, config['tokenizer']['name'], config['model'])
        if source is not None:
            check_rows(tokenizer, config['tokenizer']['name'], config['model'], source.vocab_size)
        check_data(config, tokenizer)
    if source is not None:
        if not config['model'].get('peft_config'):  # which renames weights
            check_chosen_weights(config['optimizer'], source)
        check_fits(config, source)
    if pruning is not None:
        assert source is not None  # sheared_causal_lm has one
        check_pruning(config, config['algorithms'][pruning] or {}, source)
    if 'export_pruned' in callbacks:
        check_export(config)


def _check_rounds(config: Mapping[str, Any]) -> None:
    """Refuses or tells what is not meant where an epoch is a mixing round."""
    dataset, batches = config['train_loader']['dataset'], config.get('train_subset_num_batches')
    if batches not in (None, -1, dataset.get('round_batches')):
        raise ValueError(
            f'train_subset_num_batches: {batches} would serve the beginning of every mixing round and nothing else; '
            'remove it and say with max_duration how long to train.'
        )
    if dataset['max_seq_len'] != config['max_seq_len']:
        raise ValueError(
            f'train_loader.dataset.max_seq_len: {dataset["max_seq_len"]} is not the max_seq_len: '
            f'{config["max_seq_len"]} of the run, by which positions and windows are checked; use the same.'
        )
    epochs = describe_epochs(config)
    if epochs is not None:
        log.warning(epochs)
    for number, loader in enumerate(config.get('eval_loaders') or []):
        length = loader['dataset'].get('max_seq_len')
        if loader['name'] == 'text' and length != dataset['max_seq_len']:
            raise ValueError(
                f'eval_loader[{number}].dataset.max_seq_len: {length} is not the {dataset["max_seq_len"]} of '
                'train_loader: losses of shorter or longer sequences are no measure of the mixture; use the same.'
            )
