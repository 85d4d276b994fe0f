"""Hugging Face models measured on prepared evaluation splits, domain by domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from llmshearing.checkpoints.source import load_source
from llmshearing.compat.torch import DTYPES, usable_device
from llmshearing.compat.transformers import attention_implementation, dtype_argument
from llmshearing.data.fingerprint import check_model_tokenizer
from llmshearing.data.mds import mds_folders, read_token_index, read_tokens
from llmshearing.models.source_config import read_config
from llmshearing.scaling.loss import domain_loss
from llmshearing.utils.checks import check_integer, check_one_of

__all__ = ['find_domains', 'load_model', 'measure_models']


def find_domains(data: str | Path, split: str = 'eval', domains: Sequence[str] | None = None) -> dict[str, Path]:
    """The MDS folder of each domain below ``data/split``.

    Raises:
        ValueError: No such folder, no domain in it, a wanted domain that is not there, or one whose index is none.
    """
    root = Path(data) / split
    if not root.is_dir():
        raise ValueError(
            f'{root}: no such folder; expected one MDS folder per domain below it, as `llmshearing prepare` writes'
        )
    found = {folder: root / folder for folder in mds_folders(root) if folder != '.' and '/' not in folder}
    if not found:
        raise ValueError(f'{root}: no domain found; expected folders with an index.json below it')
    unknown = [domain for domain in domains or () if domain not in found]
    if unknown:
        raise ValueError(f'unknown domain {unknown[0]!r}; {root} has {sorted(found)}')
    wanted = found if domains is None else {domain: found[domain] for domain in domains}
    for folder in wanted.values():
        read_token_index(folder)
    return wanted


def load_model(name: str, dtype: str = 'float32', device: str = 'auto') -> PreTrainedModel:
    """Loads a Hugging Face decoder for evaluation.

    Raises:
        ValueError: Nothing loadable there, an unknown dtype or device, or weights that do not fit the config.
    """
    check_one_of('dtype', dtype, DTYPES)
    device = usable_device(None if device == 'auto' else device)
    try:
        config = read_config(name)
        settings = {'attn_implementation': attention_implementation(config), **dtype_argument(DTYPES[dtype])}
        model = load_source(name, name, config, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        reason = ('' if Path(name).exists() else 'no such folder; as a hub name: ') + ' '.join(str(error).split())
        raise ValueError(f'{name}: not a Hugging Face model that can be loaded ({reason})') from error
    return model.to(device).eval()


def measure_models(
    models: Sequence[str],
    domains: dict[str, Path],
    batch_size: int = 4,
    max_sequences: int | None = None,
    dtype: str = 'float32',
    device: str = 'auto',
    report: Callable[[str], Any] = lambda line: None,
) -> list[dict]:
    """Measures every model on every domain; one model is in memory at a time.

    Args:
        models (Sequence[str]): Folders (or hub names) of Hugging Face models with the tokenizer the data were prepared
            with.
        domains (dict[str, Path]): Domain name to MDS folder, as :func:`find_domains` gives them.
        batch_size (int): Sequences in a forward pass.
        max_sequences (int | None): Only the first so many sequences of each domain; None for all.
        dtype (str): Of the weights and the forward pass; the cross-entropy is always float32.
        device (str): ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        report (Callable[[str], Any]): Receives one line per model and domain.

    Raises:
        ValueError: As :func:`load_model`, :func:`read_tokens` and :func:`domain_loss`, or for data made with another
            tokenizer than a model's.

    Returns:
        list[dict]: Entries of POINTS.json's ``models``: name, params, losses, and under ``evaluation`` per domain the
        standard error, sequences and tokens.
    """
    check_integer('batch_size', batch_size, 1)
    points = []
    for name in models:
        check_model_tokenizer(name, domains.values())
        model = load_model(name, dtype, device)
        entry = {'name': name, 'params': model.num_parameters(), 'losses': {}, 'evaluation': {}}
        for domain, folder in domains.items():
            sequences = islice(read_tokens(folder), max_sequences)
            measured = domain_loss(model, sequences, batch_size, f'{name}: domain {domain!r}')
            entry['losses'][domain] = measured.pop('loss')
            entry['evaluation'][domain] = measured
            report(f'{name}: {domain}: loss {entry["losses"][domain]:.4f} over {measured["tokens"]} tokens')
        points.append(entry)
        del model
    return points
