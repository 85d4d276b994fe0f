"""Loss of a model on the token sequences of one domain.

It is the mean next-token cross-entropy over all predicted tokens, in nats: for sequences of S tokens each gives S - 1
terms, and every term counts the same. This is llm-foundry's ``LanguageCrossEntropy`` on the same sequences, so a
measured number can stand beside the one a run logs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from llmshearing.data.mds import check_ids

__all__ = ['batches', 'domain_loss', 'sequence_losses']


def batches(sequences: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Groups sequences, in order, into arrays [at most batch_size, tokens]; a change of length starts a new batch."""
    for _, alike in groupby(sequences, len):
        while batch := list(islice(alike, batch_size)):
            yield np.stack(batch)


def sequence_losses(logits: Tensor, tokens: Tensor) -> list[float]:
    """Next-token cross-entropy of each sequence in nats, summed over its S - 1 terms.

    Args:
        logits (Tensor): [batch, S, vocabulary].
        tokens (Tensor): [batch, S], int64.
    """
    return [  # one sequence at a time bounds the float32 copy of the logits
        functional.cross_entropy(row[:-1].float(), sequence[1:], reduction='sum').item()
        for row, sequence in zip(logits, tokens)
    ]


@torch.inference_mode()
def domain_loss(model: PreTrainedModel, sequences: Iterable[np.ndarray], batch_size: int, where: str) -> dict:
    """Loss of a model on one domain.

    Args:
        model (PreTrainedModel): In evaluation mode; its device is used.
        sequences (Iterable[np.ndarray]): Token sequences, each an int64 array of at least two tokens.
        batch_size (int): Sequences in a forward pass.
        where (str): Start of every message, such as the domain's name.

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
        check_ids(where, batch, vocabulary)
        if positions is not None and batch.shape[1] > positions:
            raise ValueError(
                f'{where}: sequences of {batch.shape[1]} tokens, but the model has {positions} positions; '
                f'prepare the data with a smaller max_seq_len'
            )
        tokens = torch.from_numpy(batch).to(model.device)
        sums += sequence_losses(model(input_ids=tokens, use_cache=False).logits, tokens)
        counts += [batch.shape[1] - 1] * len(batch)
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
