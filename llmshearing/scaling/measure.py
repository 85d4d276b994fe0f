"""Per-domain loss of Hugging Face models on prepared evaluation splits.

The loss is the mean next-token cross-entropy over all predicted tokens of a domain, in nats: for sequences of S tokens
each gives S - 1 terms, and every term counts the same. This is llm-foundry's ``LanguageCrossEntropy`` on the same
sequences, so a measured number can stand beside the one a run logs. The decision here: read the shards directly, in
order, without a dataset's shared memory or workers; evaluation reads each sample once, and a command must leave nothing
behind.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from streaming.base.compression import decompress
from streaming.base.format import reader_from_json
from transformers import PreTrainedModel

from llmshearing.compat.transformers import dtype_argument, load_causal_lm, read_tokenizer
from llmshearing.data.fingerprint import check_tokenizer
from llmshearing.utils.paths import check_mds_index

__all__ = [
    'DTYPES',
    'batches',
    'count_parameters',
    'domain_loss',
    'find_domains',
    'load_model',
    'measure_models',
    'read_tokens',
]

log = logging.getLogger(__name__)

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


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
    found = {path.parent.name: path.parent for path in sorted(root.glob('*/index.json'))}
    if not found:
        raise ValueError(f'{root}: no domain found; expected folders with an index.json below it')
    unknown = [domain for domain in domains or () if domain not in found]
    if unknown:
        raise ValueError(f'unknown domain {unknown[0]!r}; {root} has {sorted(found)}')
    wanted = found if domains is None else {domain: found[domain] for domain in domains}
    for folder in wanted.values():
        _shards(folder)
    return wanted


def _shards(folder: Path) -> list[dict]:
    """The shards that the folder's index lists.

    Raises:
        ValueError: The index is none, names files elsewhere, or is of shards without a usable column ``tokens``.
    """
    shards = check_mds_index(folder / 'index.json')
    for shard in shards:
        columns = shard.get('column_names')
        if shard.get('format') != 'mds' or not isinstance(columns, list) or 'tokens' not in columns:
            raise ValueError(
                f'{folder}: expected MDS shards with a column named tokens, got format '
                f'{shard.get("format")} with {columns}'
            )
        try:
            encoding = dict(zip(columns, shard['column_encodings']))['tokens']
            reader_from_json(str(folder), None, shard)
            if not shard['raw_data']:
                raise ValueError('it has no raw_data')
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{folder / "index.json"} is not an index of MDS shards ({type(error).__name__}: {error});'
                f' prepare or copy the folder again'
            ) from error
        if encoding != 'bytes' and not encoding.startswith('ndarray'):
            raise ValueError(
                f'{folder}: column tokens is {encoding}, expected ndarray or bytes (int64); tokenize the text first'
            )
    return shards


def read_tokens(folder: str | Path) -> Iterator[np.ndarray]:
    """Yields the token sequences of an MDS folder in order, each an int64 array [tokens].

    The column ``tokens`` holds arrays of unsigned integers, or bytes of int64 as llm-foundry's converters write them.
    Compressed shards are unpacked into a temporary folder, one at a time.

    Raises:
        ValueError: The folder is not MDS, a shard file is missing, or it has no usable column ``tokens``.
    """
    folder = Path(folder)
    for shard in _shards(folder):
        raw, packed = shard['raw_data'], shard['zip_data']
        with tempfile.TemporaryDirectory() as scratch:
            where = folder
            if not (folder / raw['basename']).exists():
                if not packed or not (folder / packed['basename']).exists():
                    raise ValueError(f'{folder}: shard {raw["basename"]} is missing; copy the whole folder here')
                _check_size(folder / packed['basename'], packed['bytes'])
                where = Path(scratch)
                (where / raw['basename']).write_bytes(_unpacked(folder / packed['basename'], shard['compression']))
            _check_size(where / raw['basename'], raw['bytes'])
            reader = reader_from_json(str(where), None, shard)
            reader.validate(allow_unsafe_types=False)
            try:
                for sample in reader:
                    tokens = sample['tokens']
                    if isinstance(tokens, bytes):
                        tokens = np.frombuffer(tokens, np.int64)
                    yield tokens.reshape(-1).astype(np.int64)
            except (IndexError, TypeError, ValueError) as error:
                raise ValueError(
                    f'{folder}: shard {raw["basename"]} is damaged ({error}); prepare or copy it again'
                ) from error


def _unpacked(path: Path, compression: str) -> bytes:
    try:
        return decompress(compression, path.read_bytes())
    except Exception as error:  # every compression's library has its own kinds
        raise ValueError(f'{path} cannot be decompressed ({error}); prepare or copy it again') from error


def _check_size(path: Path, size: int) -> None:
    if path.stat().st_size != size:
        raise ValueError(
            f'{path} has {path.stat().st_size} bytes, its index says {size}: it was cut or changed; '
            f'prepare or copy it again'
        )


def batches(sequences: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Groups sequences, in order, into arrays [at most batch_size, tokens]; a change of length starts a new batch."""
    batch: list[np.ndarray] = []
    for sequence in sequences:
        if batch and (len(batch) == batch_size or len(sequence) != len(batch[0])):
            yield np.stack(batch)
            batch = []
        batch.append(sequence)
    if batch:
        yield np.stack(batch)


@torch.inference_mode()
def domain_loss(model: PreTrainedModel, sequences: Iterable[np.ndarray], batch_size: int, where: str) -> dict:
    """Loss of a model on one domain.

    Args:
        model: In evaluation mode; its device is used.
        sequences: Token sequences, each an int64 array of at least two tokens.
        batch_size: Sequences in a forward pass.
        where: Start of every message, such as the domain's name.

    Returns:
        dict: ``loss`` (nats per predicted token), ``sequences``, ``tokens`` (predicted ones) and ``standard_error`` of
        the loss, from the spread between sequences (None for a single sequence).

    Raises:
        ValueError: No sequences, tokens outside the vocabulary, sequences longer than the model's positions, or a loss
            that is not finite.
    """
    vocabulary = model.get_input_embeddings().get_parameter('weight').shape[0]
    positions = getattr(model.config, 'max_position_embeddings', None)
    sums: list[float] = []
    counts: list[int] = []
    for batch in batches(sequences, batch_size):
        if batch.shape[1] < 2:
            raise ValueError(
                f'{where}: a sequence of {batch.shape[1]} token has no next token to predict; prepare longer ones'
            )
        if batch.min() < 0 or batch.max() >= vocabulary:
            raise ValueError(
                f'{where}: token {batch.max() if batch.min() >= 0 else batch.min()} is outside the '
                f'vocabulary of {vocabulary}; the data were prepared with another tokenizer'
            )
        if positions is not None and batch.shape[1] > positions:
            raise ValueError(
                f'{where}: sequences of {batch.shape[1]} tokens, but the model has {positions} positions; '
                f'prepare the data with a smaller max_seq_len'
            )
        tokens = torch.from_numpy(batch).to(model.device)
        logits = model(input_ids=tokens, use_cache=False).logits
        for row, sequence in zip(logits, tokens):
            # One sequence at a time bounds the float32 copy of the logits.
            loss = torch.nn.functional.cross_entropy(row[:-1].float(), sequence[1:], reduction='sum')
            sums.append(loss.item())
            counts.append(len(sequence) - 1)
    if not counts:
        raise ValueError(f'{where}: no sequences to measure; prepare an evaluation split with at least one')
    mean = math.fsum(sums) / sum(counts)
    if not math.isfinite(mean):
        raise ValueError(f'{where}: the loss is {mean}; try --dtype float32, and check that the model folder is sound')
    error = None
    if len(counts) > 1:
        spread = np.array(sums) - mean * np.array(counts)
        error = float(np.sqrt((spread**2).sum() * len(counts) / (len(counts) - 1)) / sum(counts))
    return {'loss': mean, 'standard_error': error, 'sequences': len(counts), 'tokens': sum(counts)}


def load_model(name: str, dtype: str = 'float32', device: str = 'auto') -> PreTrainedModel:
    """Loads a Hugging Face decoder for evaluation.

    Raises:
        ValueError: Nothing loadable there, an unknown dtype or device, or weights that are missing from the folder
            (they would be left at random values).
    """
    if dtype not in DTYPES:
        raise ValueError(f'unknown dtype {dtype!r}; one of {", ".join(DTYPES)}')
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        model, loading = load_causal_lm(name, **dtype_argument(DTYPES[dtype]))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = ('' if Path(name).exists() else 'no such folder; as a hub name: ') + str(error).splitlines()[0][:200]
        raise ValueError(f'{name}: not a Hugging Face model that can be loaded ({reason})') from error
    if loading['missing_keys'] or loading['mismatched_keys']:
        wrong = sorted(map(str, [*loading['missing_keys'], *loading['mismatched_keys']]))
        raise ValueError(
            f'{name}: weights missing or of another shape, among them {wrong[0]}; the folder does not '
            f'hold the whole model'
        )
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device {device!r} cannot be used: {str(error).splitlines()[0]}') from error


def count_parameters(model: torch.nn.Module) -> int:
    """Exact number of parameters, tied weights counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _check_data(name: str, domains: dict[str, Path]) -> None:
    """Raises a ValueError if the data were made with another tokenizer than the one in the model's folder."""
    try:
        tokenizer = read_tokenizer(name)
    except (OSError, ValueError, KeyError):  # a model without one; what else is wrong with it is told when it is loaded
        log.warning('%s has no tokenizer that could be compared with the one that made the data.', name)
        return
    check_tokenizer(tokenizer, [(str(folder), None) for folder in domains.values()])


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
        models: Folders (or hub names) of Hugging Face models with the tokenizer the data were prepared with.
        domains: Domain name to MDS folder, as :func:`find_domains` gives them.
        batch_size: Sequences in a forward pass.
        max_sequences: Only the first so many sequences of each domain; None for all.
        dtype: Of the weights and the forward pass; the cross-entropy is always float32.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        report: Receives one line per model and domain.

    Raises:
        ValueError: As :func:`load_model`, :func:`read_tokens` and :func:`domain_loss`, or for data made with another
            tokenizer than a model's.

    Returns:
        list[dict]: Entries of POINTS.json's ``models``: name, params, losses, and under ``evaluation`` per domain the
        standard error, sequences and tokens.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    points = []
    for name in models:
        _check_data(name, domains)
        model = load_model(name, dtype, device)
        entry = {'name': name, 'params': count_parameters(model), 'losses': {}, 'evaluation': {}}
        for domain, folder in domains.items():
            sequences = islice(read_tokens(folder), max_sequences)
            measured = domain_loss(model, sequences, batch_size, f'{name}: domain {domain!r}')
            entry['losses'][domain] = measured.pop('loss')
            entry['evaluation'][domain] = measured
            report(f'{name}: {domain}: loss {entry["losses"][domain]:.4f} over {measured["tokens"]} tokens')
        points.append(entry)
        del model
    return points
